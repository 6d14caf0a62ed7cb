"""RFC 6962 trees: known vectors, and every proof of every small tree."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from scf.core import merkle

# The test vectors of the certificate-transparency project: leaf data and the root after each.
LEAVES = [bytes.fromhex(h) for h in ("", "00", "10", "2021", "3031", "40414243",
          "5051525354555657", "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def test_roots_are_those_of_certificate_transparency() -> None:
    assert {size: merkle.root(LEAVES[:size]).hex() for size in ROOTS} == ROOTS


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert merkle.root([]) == hashlib.sha256(b"").digest()


def test_every_inclusion_proof_of_small_trees_verifies_and_fits_no_other_place() -> None:
    for size in range(1, 34):
        hashes = [merkle.leaf_hash(bytes([i])) for i in range(size)]
        root = merkle.root_of_hashes(hashes)
        for index in range(size):
            proof = merkle.inclusion_proof(hashes, index)
            assert merkle.verify_inclusion(hashes[index], index, size, proof, root)
            assert not merkle.verify_inclusion(merkle.leaf_hash(b"x"), index, size, proof, root)
            if size > 1:
                other = (index + 1) % size
                assert not merkle.verify_inclusion(hashes[index], other, size, proof, root)


def test_every_consistency_proof_of_small_trees_verifies() -> None:
    for size in range(1, 34):
        hashes = [merkle.leaf_hash(bytes([i])) for i in range(size)]
        new = merkle.root_of_hashes(hashes)
        for old_size in range(size + 1):
            old = merkle.root_of_hashes(hashes[:old_size])
            proof = merkle.consistency_proof(hashes, old_size)
            assert merkle.verify_consistency(old_size, old, size, new, proof)
            if 0 < old_size < size:
                wrong = merkle.leaf_hash(b"wrong")
                assert not merkle.verify_consistency(old_size, wrong, size, new, proof)
                assert not merkle.verify_consistency(old_size, old, size, wrong, proof)


@given(st.lists(st.binary(max_size=8), max_size=80))
def test_the_streaming_hasher_agrees_with_the_definition(leaves: list[bytes]) -> None:
    def by_definition(hashes: list[bytes]) -> bytes:
        if not hashes:
            return merkle.EMPTY_ROOT
        if len(hashes) == 1:
            return hashes[0]
        split = 1
        while split * 2 < len(hashes):
            split *= 2
        return merkle.node_hash(by_definition(hashes[:split]), by_definition(hashes[split:]))

    assert merkle.root(leaves) == by_definition([merkle.leaf_hash(leaf) for leaf in leaves])
