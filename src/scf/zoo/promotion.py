"""Make a generation's folder out of a run that was measured, judged and attested.

Nothing is believed here that was not verified here: the record's signature, the checkpoint's bytes,
that record, checkpoint, report and plan are about each other, and that the gate let it pass.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.errors import VerificationFailed
from scf.core.identity import sha256_hex
from scf.proofs.statement import PlanFacts
from scf.proofs.verify_proof import VerifiedStatement, verify_record
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.verification.report import read_report
from scf.verification.verify_checkpoint import DIGESTS_NAME, CheckpointFacts, verify_checkpoint
from scf.zoo.entry import ENTRY_NAME, Generation, generation_name
from scf.zoo.model_card import model_card


class PromotionRefused(VerificationFailed):
    """What was brought for promotion does not fit together, or the gate did not let it pass."""


@dataclass(frozen=True)
class Candidate:
    """What is to become a generation.

    Attributes:
        run_id: The run.
        checkpoint: Its checkpoint folder.
        report_folder: `report.json` and the plots it names.
        plan: The plan's JSON.
        proof: The run's proof record.
    """

    run_id: str
    checkpoint: Path
    report_folder: Path
    plan: Mapping[str, Any]
    proof: Path


@dataclass(frozen=True)
class VerifiedCandidate:
    """A candidate, and what was found to be true of it."""

    candidate: Candidate
    record: VerifiedStatement
    checkpoint: CheckpointFacts


def verify_candidate(candidate: Candidate, keys: Iterable[PublicKey]) -> VerifiedCandidate:
    """Make sure that everything fits.

    Raises:
        VerificationFailed: A subclass that names what does not.
    """
    record = verify_record(candidate.proof, keys)
    statement = record.statement
    checkpoint = verify_checkpoint(candidate.checkpoint)
    report = read_report(candidate.report_folder / "report.json")
    fits = [
        ("run", statement.run_id == candidate.run_id),
        ("checkpoint", statement.files == checkpoint.files),
        ("plan", statement.plan == PlanFacts.of(candidate.plan)),
        ("report", canonical_json(statement.report.raw) == canonical_json(report.raw)),
    ]
    for name, is_so in fits:
        if not is_so:
            raise PromotionRefused(
                f"{candidate.run_id}: the {name} is not the one that the statement is about"
            )
    if statement.gate.get("promote") is not True:
        reasons = "; ".join(statement.gate.get("reasons", [])) or "no reason was recorded"
        raise PromotionRefused(f"{candidate.run_id}: the gate did not let it pass: {reasons}")
    return VerifiedCandidate(candidate, record, checkpoint)


def write_generation(
    staged: Path, number: int, verified: VerifiedCandidate, *, promoted_at: str
) -> Generation:
    """Fill the folder `staged` with everything that generation `number` is.

    Raises:
        PromotionRefused: A file changed while it was copied.
        BudgetExceeded: The disk is full; the caller drops `staged`.
    """
    name = generation_name(number)
    candidate, statement = verified.candidate, verified.record.statement
    files: dict[str, str] = {}
    with durable.os_errors(staged):
        (staged / "checkpoint").mkdir()
        (staged / "plots").mkdir()
        for file in [*verified.checkpoint.files, DIGESTS_NAME]:
            path = f"checkpoint/{file}"
            files[path] = _copy(candidate.checkpoint / file, staged / path)
        for file in statement.report.files:
            path = f"plots/{file}"
            files[path] = _copy(candidate.report_folder / file, staged / path)
        files["report.json"] = _copy(
            candidate.report_folder / "report.json", staged / "report.json"
        )
        files["statement.json"] = _copy(candidate.proof, staged / "statement.json")
    for file, expected in verified.checkpoint.files.items():
        if files[f"checkpoint/{file}"] != expected:
            raise PromotionRefused(f"{candidate.checkpoint / file} changed while it was copied")
    # Canonical and without a newline: the plan's id is the digest of this file.
    plan = canonical_json(dict(candidate.plan))
    card = model_card(name, verified.record, verified.checkpoint, promoted_at=promoted_at)
    for path, data in {"plan.json": plan, "MODEL_CARD.md": card.encode()}.items():
        durable.write_file(staged / path, data)
        files[path] = sha256_hex(data)
    generation = Generation(
        name=name,
        number=number,
        run_id=candidate.run_id,
        checkpoint_digest=verified.checkpoint.digest,
        plan_id=statement.plan.plan_id,
        fossils=statement.plan.fossils,
        merkle_root=statement.plan.merkle_root,
        parent=statement.parent.generation if statement.parent else None,
        statement_sha256=sha256_hex(verified.record.payload),
        promoted_at=promoted_at,
        num_parameters=verified.checkpoint.num_parameters,
        files=dict(sorted(files.items())),
        path=staged,
    )
    durable.write_json(staged / ENTRY_NAME, generation.to_json())
    return generation


def _copy(source: Path, target: Path) -> str:
    """Copy a file; returns the digest of the bytes that were written."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(2**20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()
