"""The test vectors in docs/formats are recomputed: page and code say the same."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.core import merkle
from scf.core.canonical import canonical_json
from scf.core.identity import cid_of
from scf.fertilization.batch_plan import BatchPlan, family_hash, held_out_threshold
from scf.fertilization.mixture import Group, Mixture, whole_weights
from scf.fertilization.readers.registry import READERS
from scf.fertilization.shard_cache import ShardCache, SourceFile
from scf.fertilization.shuffle import EpochOrder, KeyedPermutation
from scf.fertilization.weather_checks import WEATHER_CHECKS
from scf.signing.envelope import Envelope
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, verify_envelope
from scf.storage.partitions import Folder
from scf.vault.fossil import encode_fossil, fossil_cid, parse_fossil
from scf.vault.journal_file import ShardSummary
from scf.vault.manifest import PAYLOAD_TYPE, manifest_payload
from scf.vault.shard import leaf

PAGES = Path(__file__).parents[2] / "docs" / "formats"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def vector(name: str, title: str) -> str:
    match = re.search(rf"```\w+ vector={title}\n(.*?)```", page(name), flags=re.DOTALL)
    assert match is not None
    return match[1].strip()


def the_two_lines() -> list[bytes]:
    obj = json.loads(vector("fossil", "fossil"))
    second = {**obj, "provenance": {**obj["provenance"], "index": 5}}
    second["cid"] = fossil_cid(second)
    return [encode_fossil(obj), encode_fossil(second)]


def the_shard() -> ShardSummary:
    lines = the_two_lines()
    sha256 = hashlib.sha256(b"".join(lines)).hexdigest()
    leaves = [leaf(f.cid, f.verdict) for f in map(parse_fossil, lines)]
    size_bytes = sum(map(len, lines))
    path = f"shards/{sha256[:2]}/{sha256[:16]}.ndjson"
    return ShardSummary(path, sha256, size_bytes, 2, merkle.root(leaves).hex())


def test_the_fossil_its_block_and_its_line() -> None:
    text = vector("fossil", "fossil")
    obj = json.loads(text)

    block = bytes.fromhex(vector("fossil", "block").replace("\n", ""))
    assert cid_of(block) == obj["cid"] == fossil_cid(obj)
    assert parse_fossil(text.encode()).cid == obj["cid"]
    assert encode_fossil(obj) == vector("fossil", "line").encode() + b"\n"


def test_the_manifest_and_its_signature() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = PublicKey(private.public_key().public_bytes_raw())
    envelope = json.loads(vector("shard-manifest", "envelope"))
    payload = vector("shard-manifest", "payload").encode()

    assert manifest_payload(the_shard()) == payload
    signed = Signer("vault", public, private.sign).sign_envelope(PAYLOAD_TYPE, payload)
    assert signed.to_json() == envelope
    read = Envelope.from_json(envelope)
    assert verify_envelope(read, [public], payload_type=PAYLOAD_TYPE) == payload
    assert public.raw.hex() in page("shard-manifest")
    for line in the_two_lines():
        fossil = parse_fossil(line)
        assert leaf(fossil.cid, fossil.verdict).decode() in page("shard-manifest")


def test_the_plan_and_its_id() -> None:
    families = [f"pendulum.csv#{number}" for number in range(3)]
    cids = sorted(parse_fossil(line).cid.encode() for line in the_two_lines())
    plan = BatchPlan(
        shards=(the_shard(),),
        fossils=2,
        merkle_root=merkle.root(cids).hex(),
        seed=7,
        held_out_below=held_out_threshold(families, seed=7, fraction=0.15),
    )

    assert canonical_json(plan.to_json()).decode() == vector("batch-plan", "plan")
    assert f"`{plan.plan_id}`" in page("batch-plan")
    for family in families:
        assert f"`{family_hash(7, family)}`" in page("batch-plan")


def test_the_order() -> None:
    told = json.loads(vector("batch-plan", "order"))
    order = EpochOrder(200, seed=7, epoch=0, window_records=128)

    def first(size: int, count: int) -> list[int]:
        return KeyedPermutation(size, "test")(np.arange(count)).tolist()

    assert told == {
        "permutation of 10": first(10, 10),
        "permutation of 1000, first 8": first(1000, 8),
        "permutation of 10^15, first 3": first(10**15, 3),
        "window 0, first 8": order.window(0)[:8].tolist(),
        "window 1, first 8": order.window(1)[:8].tolist(),
    }


def test_the_mixture() -> None:
    told = json.loads(vector("batch-plan", "mixture"))
    weights = whole_weights(np.arange(100) % 4.0)
    groups = [
        Group(np.array([0]), np.array([200]), 1.0),
        Group(np.array([200]), np.array([100]), 3.0, weights),
    ]
    mixture = Mixture(groups, seed=7)
    slots = np.array([0, 1, 68, 69, 70, 274])

    assert told == {
        "slots": mixture.slots_of,
        "epoch 0": mixture.places(0, slots).tolist(),
        "epoch 3": mixture.places(3, slots).tolist(),
    }


def test_the_rows_of_the_shard(tmp_path: Path) -> None:
    source = tmp_path / "shard.ndjson"
    source.write_bytes(b"".join(the_two_lines()))
    os.utime(source, ns=(0, 0))
    cache = ShardCache(Folder.at(tmp_path / "cache"), budget_bytes=10**6)

    rows = cache.open(SourceFile(source, the_shard().sha256))

    assert rows is not None
    data = rows.path.read_bytes()
    assert json.loads(vector("shard-cache", "rows")) == {
        "name": rows.path.name,
        "size_bytes": len(data),
        "blake3": blake3(data).hexdigest(),
        "group offsets": rows.kinds[0].offsets.tolist(),
        "first group": data[4096:][: 2 * sum(rows.kinds[0].row_bytes)].hex(),
    }


@pytest.mark.parametrize("name", [*READERS, *WEATHER_CHECKS])
def test_every_reader_and_check_is_on_a_page(name: str) -> None:
    assert f"`{name}`" in page("fossil") + (PAGES.parent / "readers.md").read_text()
