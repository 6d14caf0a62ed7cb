"""Verify a proof record, wherever it lies, with public keys alone.

What holds afterwards: a trusted key signed the statement; the audit log of that key contains the
entry that logged this very statement, under a tree head that it signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.audit.entry import Entry
from scf.audit.tree_head import TreeHead, verify_note
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.core.merkle import leaf_hash, verify_inclusion
from scf.proofs.statement import Statement, parse_statement
from scf.signing.envelope import IN_TOTO_TYPE, Envelope
from scf.signing.verify import PublicKey, SignatureInvalid, verify_envelope
from scf.storage import durable

SCHEMA = "scf.proof/1"
KIND = "attestation"


class ProofInvalid(VerificationFailed):
    """A proof record does not prove what it claims to."""


@dataclass(frozen=True)
class VerifiedStatement:
    """What a record proves.

    Attributes:
        statement: The claim.
        payload: The bytes that were signed.
        key: Who signed.
        index: Where the audit log holds it.
        logged_at: When it was logged, by the signer's clock.
        head: The tree head that the inclusion leads to.
    """

    statement: Statement
    payload: bytes
    key: PublicKey
    index: int
    logged_at: str
    head: TreeHead

    def to_json(self) -> dict[str, Any]:
        """For `scf proof verify --json`."""
        return {
            "ok": True,
            "run": self.statement.run_id,
            "checkpoint_digest": self.statement.checkpoint_digest,
            "plan_id": self.statement.plan.plan_id,
            "fossils": self.statement.plan.fossils,
            "merkle_root": self.statement.plan.merkle_root,
            "statement_sha256": sha256_hex(self.payload),
            "key_id": self.key.key_id,
            "audit": {
                "origin": self.head.origin,
                "index": self.index,
                "size": self.head.size,
                "root": self.head.root.hex(),
                "logged_at": self.logged_at,
            },
        }


def verify_record(path: Path, keys: Iterable[PublicKey]) -> VerifiedStatement:
    """Verify the record in a file.

    Args:
        path: The file, anywhere.
        keys: Whose statements to believe.

    Raises:
        ProofInvalid: The record is not one, or its parts do not fit together.
        SignatureInvalid: Not signed by any of `keys`.
    """
    try:
        return verify_record_json(durable.read_json(path), keys)
    except ProofInvalid as error:
        raise ProofInvalid(f"{path}: {error}") from error
    except SignatureInvalid as error:
        raise SignatureInvalid(f"{path}: {error}") from error
    except InputError as error:
        raise ProofInvalid(str(error)) from error


def verify_record_json(record: Any, keys: Iterable[PublicKey]) -> VerifiedStatement:
    """`verify_record` for a record that was read already."""
    keys = list(keys)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ProofInvalid(f"not a proof record of schema {SCHEMA}")
    if record.get("kind") != KIND or set(record) != {"schema", "kind", "envelope", "audit"}:
        raise ProofInvalid(f"a record of kind {record.get('kind')!r}, expected {KIND!r}")
    try:
        envelope = Envelope.from_json(record["envelope"])
        _require_one_form(envelope, record["envelope"])
        payload = verify_envelope(envelope, keys, payload_type=IN_TOTO_TYPE)
        signed_by = envelope.signatures[0].key_id
        trusted, key = next((k, o) for k in keys for o in k.lineage if o.key_id == signed_by)
        statement = parse_statement(payload)
        audit = record["audit"]
        if (
            set(audit) != {"index", "entry", "proof", "checkpoint"}
            or type(audit["index"]) is not int
        ):
            raise ProofInvalid("its audit part is not {index, entry, proof, checkpoint}")
        data = audit["entry"].encode()
        head = verify_note(audit["checkpoint"].encode(), trusted)
        proof = [bytes.fromhex(digest) for digest in audit["proof"]]
        if [digest.hex() for digest in proof] != audit["proof"]:
            raise ProofInvalid("its proof is not written in lower-case hexadecimal")
    except (KeyError, TypeError, AttributeError, ValueError, InputError) as error:
        raise ProofInvalid(f"malformed: {error!r}") from error
    if not verify_inclusion(leaf_hash(data), audit["index"], head.size, proof, head.root):
        raise ProofInvalid(
            f"the audit log of {head.size} entries does not hold this entry at {audit['index']}"
        )
    entry = Entry.decode(data)
    logged = entry.details.get("statement_sha256")
    if entry.subject != statement.run_id or logged != sha256_hex(payload):
        raise ProofInvalid("the audit entry is about another statement")
    return VerifiedStatement(statement, payload, key, audit["index"], entry.at, head)


def _require_one_form(envelope: Envelope, written: Any) -> None:
    """One signature, base64 without spare bits: records that differ never prove the same."""
    if written != envelope.to_json() or len(envelope.signatures) != 1:
        raise ProofInvalid("the envelope is not in its one written form, with one signature")
