"""Attest a run: sign its statement, log it, and keep both as one record that a stranger can check.

The record `zk_proofs/proof-<run>.json` holds the signed statement and the proof that it stands in
the audit log. It needs nothing beside it: a copy verifies wherever it lies.
Format: docs/formats/proof-record.md.
"""

from pathlib import Path
from typing import Any

from scf.audit.log import AuditLog
from scf.core.canonical import canonical_json
from scf.core.errors import OperatorError
from scf.core.identity import sha256_hex
from scf.proofs.statement import Statement
from scf.proofs.verify_proof import KIND, SCHEMA, verify_record
from scf.signing.envelope import IN_TOTO_TYPE
from scf.signing.signer import Signer
from scf.storage.partitions import Folder

EVENT = "statement.attested"


class AttestationConflict(OperatorError):
    """The run has a record already, and it states something else."""


def record_name(run_id: str) -> str:
    """The file of a run's record."""
    return f"proof-{run_id}.json"


def attest(statement: Statement, *, folder: Folder, audit: AuditLog, signer: Signer) -> Path:
    """Sign and log `statement`; returns the path of its record. Doing it twice is doing it once.

    Args:
        statement: From `build_statement`.
        folder: `zk_proofs` on the drive.
        audit: The foundry's log.
        signer: The foundry's key.

    Raises:
        AttestationConflict: The run was attested before, about other files or another result.
        VerificationFailed: A record is there, but does not verify.
    """
    name = record_name(statement.run_id)
    path = folder.path / name
    if path.exists():
        known = verify_record(path, [signer.public_key]).statement
        if known.files != statement.files or known.report != statement.report:
            raise AttestationConflict(
                f"{path}: {statement.run_id} was attested about checkpoint "
                f"{known.checkpoint_digest[:16]}, not {statement.checkpoint_digest[:16]}",
                remedy="A run makes one checkpoint: give the other one a run of its own.",
            )
        return path
    payload = statement.encode()
    envelope = signer.sign_envelope(IN_TOTO_TYPE, payload)
    digest = sha256_hex(payload)
    index = audit.append(
        EVENT,
        statement.run_id,
        {
            "statement_sha256": digest,
            "checkpoint_digest": statement.checkpoint_digest,
            "plan_id": statement.plan.plan_id,
        },
        key=f"{EVENT}/{statement.run_id}/{digest}",
    )
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "envelope": envelope.to_json(),
        "audit": audit.inclusion_proof(index).to_json(),
    }
    return folder.write_once(name, canonical_json(record) + b"\n")
