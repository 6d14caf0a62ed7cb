"""The test vectors printed in docs/formats: made from fixed keys, the same on every machine."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.audit.entry import Entry
from scf.audit.log import Inclusion
from scf.audit.tiles import Edge
from scf.audit.tree_head import TreeHead, origin_of
from scf.core.canonical import canonical_json
from scf.core.identity import cid_from_digest, sha256_hex
from scf.core.merkle import inclusion_proof, leaf_hash, root
from scf.proofs.statement import Statement, parse_statement
from scf.signing.envelope import IN_TOTO_TYPE
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.vault.shard import leaf

UUID = "00000000-0000-4000-8000-000000000001"


def signer(seed: int = 1) -> Signer:
    """The key whose private half is 32 times the byte `seed`: 1 is the foundry's, 2 the vault's."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    role = "foundry" if seed == 1 else "vault"
    return Signer(role, PublicKey(key.public_key().public_bytes_raw()), key.sign)


@cache
def cids() -> tuple[str, str]:
    """Two CIDs, of the digests 32 x 0x11 and 32 x 0x22."""
    return cid_from_digest(bytes([0x11]) * 32), cid_from_digest(bytes([0x22]) * 32)


def fossils_root() -> str:
    return root(sorted(cid.encode() for cid in cids())).hex()


def shard_root() -> str:
    return root(leaf(cid, "PASS") for cid in cids()).hex()


def statement() -> Statement:
    """About four files whose content is their own name, on a plan of two fossils."""
    names = ["config.json", "ema.safetensors", "model.safetensors", "state.json"]
    files = {name: sha256_hex(name.encode()) for name in names}
    digest = sha256_hex(canonical_json(files))
    plan_id = sha256_hex(b"plan")
    value: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": files[name]}} for name in names],
        "predicateType": "https://scf.dev/training/v1",
        "predicate": {
            "run": "run-000000000001",
            "checkpoint_digest": digest,
            "plan": {"plan_id": plan_id, "fossils": 2, "merkle_root": fossils_root()},
            "parent": None,
            "config_sha256": files["config.json"],
            "report": {
                "schema": "scf.report/1",
                "checkpoint_digest": digest,
                "plan_id": plan_id,
                "held_out": {"fossils": 2, "families": 2},
                "dsm_loss": {"mean": 0.25, "by_family": {"a": 0.2, "b": 0.3}},
                "baseline_dsm_loss": {"mean": 1.0, "by_family": {"a": 1.0, "b": 1.0}},
                "auroc": {},
                "physics": {},
                "finite": True,
                "seconds": 1.5,
                "files": [],
            },
            "gate": {"promote": True, "reasons": ["an example"], "trace": {}},
            "code": {"scf": "0.1.0"},
        },
    }
    return parse_statement(canonical_json(value))


@dataclass(frozen=True)
class LogVector:
    """A log of three entries."""

    entries: tuple[bytes, ...]
    files: dict[str, bytes]
    head: TreeHead
    note: bytes


@cache
def log() -> LogVector:
    """Entry 1 of 3 logs the statement above."""
    digest = sha256_hex(statement().encode())
    events = [
        Entry("2026-11-18T12:00:01Z", "run.transition", "run-000000000001", {"to": "PLANNED"}),
        Entry(
            "2026-11-18T12:00:02Z",
            "statement.attested",
            "run-000000000001",
            {
                "statement_sha256": digest,
                "checkpoint_digest": statement().checkpoint_digest,
                "plan_id": statement().plan.plan_id,
            },
            key=f"statement.attested/run-000000000001/{digest}",
        ),
        Entry("2026-11-18T12:00:03Z", "zoo.promoted", "ebdm_gen0001"),
    ]
    edge = Edge()
    files: dict[str, bytes] = {}
    for event in events:
        files = edge.append(event.encode())
    head = TreeHead(origin_of(UUID), edge.size, edge.root())
    return LogVector(tuple(e.encode() for e in events), files, head, head.sign(signer()))


def proof_record() -> dict[str, Any]:
    hashes = [leaf_hash(data) for data in log().entries]
    inclusion = Inclusion(1, log().entries[1], tuple(inclusion_proof(hashes, 1)), log().note)
    return {
        "schema": "scf.proof/1",
        "kind": "attestation",
        "envelope": signer().sign_envelope(IN_TOTO_TYPE, statement().encode()).to_json(),
        "audit": inclusion.to_json(),
    }


def release_envelope() -> bytes:
    """The envelope over the payload `{"schema":"scf.release/1"}` (not a release, but signed)."""
    payload = canonical_json({"schema": "scf.release/1"})
    kind = "application/vnd.scf.release+json"
    return canonical_json(signer().sign_envelope(kind, payload).to_json())


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
