"""Merkle trees of RFC 6962 (section 2.1): roots, inclusion proofs, consistency proofs.

A leaf hash is SHA-256(0x00 || data), a node SHA-256(0x01 || left || right); the root of no leaves
is SHA-256 of nothing. Trees are split at the largest power of two below their size. Verification
follows RFC 9162, sections 2.1.3.2 and 2.1.4.2. Pure functions: where leaves are kept is the
caller's matter.
"""

import hashlib
from collections.abc import Iterable, Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf's data."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class TreeHasher:
    """The root of a growing tree in O(log n) memory."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of perfect subtrees, largest first

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Roots of the perfect subtrees, largest first: with `size`, all there is to remember."""
        return tuple(self._peaks)

    @classmethod
    def resumed(cls, size: int, peaks: Iterable[bytes]) -> "TreeHasher":
        """A tree of `size` leaves that goes on from its `peaks`.

        Raises:
            ValueError: So many leaves have another number of peaks.
        """
        tree = cls()
        tree.size, tree._peaks = size, list(peaks)
        if size < 0 or size.bit_count() != len(tree._peaks):
            raise ValueError(f"{len(tree._peaks)} peaks of a tree of {size}")
        return tree

    def add(self, data: bytes) -> None:
        """Append a leaf by its data."""
        self.add_hash(leaf_hash(data))

    def add_hash(self, digest: bytes) -> None:
        """Append a leaf by its hash."""
        carry, position = digest, self.size
        while position & 1:
            carry = node_hash(self._peaks.pop(), carry)
            position >>= 1
        self._peaks.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """The root as the tree stands."""
        if not self._peaks:
            return EMPTY_ROOT
        digest = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            digest = node_hash(peak, digest)
        return digest


def root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf data, streaming."""
    hasher = TreeHasher()
    for data in leaves:
        hasher.add(data)
    return hasher.root()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    hasher = TreeHasher()
    for digest in hashes:
        hasher.add_hash(digest)
    return hasher.root()


def inclusion_proof(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `hashes`, from the leaf upward.

    Raises:
        IndexError: No such leaf.
    """
    if not 0 <= index < len(hashes):
        raise IndexError(f"leaf {index} of a tree of {len(hashes)}")
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*inclusion_proof(hashes[:split], index), root_of_hashes(hashes[split:])]
    return [*inclusion_proof(hashes[split:], index - split), root_of_hashes(hashes[:split])]


def verify_inclusion(
    digest: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> bool:
    """Whether `proof` shows leaf hash `digest` at `index` of the tree with `expected_root`."""
    if not 0 <= index < size:
        return False
    node, last, current = index, size - 1, digest
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            current = node_hash(sibling, current)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            current = node_hash(current, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and current == expected_root


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Shows that the tree of the first `old_size` leaves is a prefix of the tree of `hashes`.

    Raises:
        ValueError: `old_size` is not between 0 and the size.
    """
    if not 0 <= old_size <= len(hashes):
        raise ValueError(f"old size {old_size} of a tree of {len(hashes)}")
    if old_size in {0, len(hashes)}:
        return []
    return _subproof(hashes, old_size, is_whole=True)


def verify_consistency(
    old_size: int, old_root: bytes, size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether `proof` shows that the old tree is a prefix of the new one."""
    if not 0 <= old_size <= size:
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    if old_size == size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _subproof(hashes: Sequence[bytes], old_size: int, *, is_whole: bool) -> list[bytes]:
    if old_size == len(hashes):
        return [] if is_whole else [root_of_hashes(hashes)]
    split = _split(len(hashes))
    if old_size <= split:
        below = _subproof(hashes[:split], old_size, is_whole=is_whole)
        return [*below, root_of_hashes(hashes[split:])]
    below = _subproof(hashes[split:], old_size - split, is_whole=False)
    return [*below, root_of_hashes(hashes[:split])]


def _split(size: int) -> int:
    """The largest power of two below `size` (size >= 2)."""
    return 1 << ((size - 1).bit_length() - 1)
