"""The statement about a training run: what was trained, on which plan, with which measured result.

An in-toto Statement v1 whose subjects are the checkpoint's files. It carries no time and no place,
so that the same run gives the same bytes; when it was made stands in the audit log.
Format: docs/formats/statement.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import is_sha256_hex, sha256_hex
from scf.verification.gate import GateDecision
from scf.verification.report import Report, ReportInvalid, parse_report
from scf.verification.verify_checkpoint import CheckpointFacts, checkpoint_digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://scf.dev/training/v1"


class StatementInvalid(VerificationFailed):
    """A statement does not have the form of scf's training predicate, or contradicts itself."""


@dataclass(frozen=True)
class PlanFacts:
    """The plan as a statement names it: by digest, size and Merkle root."""

    plan_id: str
    fossils: int
    merkle_root: str

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> "PlanFacts":
        """From a plan's JSON (schema scf.plan/1); its id is the digest of that JSON.

        Raises:
            StatementInvalid: Not such a plan.
        """
        fossils, root = plan.get("fossils"), plan.get("merkle_root")
        if plan.get("schema") != "scf.plan/1" or type(fossils) is not int:
            raise StatementInvalid("not a batch plan of schema scf.plan/1")
        if not is_sha256_hex(root):
            raise StatementInvalid(f"the plan's merkle_root is {root!r}, expected a digest")
        return cls(sha256_hex(canonical_json(dict(plan))), fossils, str(root))


@dataclass(frozen=True)
class Parent:
    """The generation whose weights a run began with."""

    generation: str
    checkpoint_digest: str


@dataclass(frozen=True)
class Statement:
    """A claim, complete and of the right form. Whether it is true, signatures and digests say.

    Attributes:
        run_id: The run it is about.
        files: SHA-256 of each checkpoint file.
        parent: None for a run that began from nothing.
        config_sha256: Of the checkpoint's config.json.
        report: What was measured.
        gate: The decision with its trace, as JSON.
        code: Which code: `{"scf": version}`.
    """

    run_id: str
    files: Mapping[str, str]
    plan: PlanFacts
    parent: Parent | None
    config_sha256: str
    report: Report
    gate: Mapping[str, Any]
    code: Mapping[str, str]

    @property
    def checkpoint_digest(self) -> str:
        """The name of the checkpoint."""
        return checkpoint_digest(self.files)

    def to_json(self) -> dict[str, Any]:
        """The in-toto statement."""
        parent = self.parent and {
            "generation": self.parent.generation,
            "checkpoint_digest": self.parent.checkpoint_digest,
        }
        return {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest}}
                for name, digest in sorted(self.files.items())
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "run": self.run_id,
                "checkpoint_digest": self.checkpoint_digest,
                "plan": {
                    "plan_id": self.plan.plan_id,
                    "fossils": self.plan.fossils,
                    "merkle_root": self.plan.merkle_root,
                },
                "parent": parent,
                "config_sha256": self.config_sha256,
                "report": dict(self.report.raw),
                "gate": dict(self.gate),
                "code": dict(self.code),
            },
        }

    def encode(self) -> bytes:
        """Canonical JSON: the payload that is signed."""
        return canonical_json(self.to_json())


def build_statement(
    *,
    run_id: str,
    checkpoint: CheckpointFacts,
    plan: Mapping[str, Any],
    parent: Parent | None,
    report: Report,
    decision: GateDecision,
    code_version: str,
) -> Statement:
    """State what a run made.

    Args:
        run_id: The run.
        checkpoint: From `verify_checkpoint`.
        plan: The JSON of the plan that the run was given.
        parent: The generation it began with, if any.
        report: What `measure` found about this checkpoint.
        decision: What the gate decided on it.
        code_version: `scf.__version__`.

    Raises:
        StatementInvalid: The report is about another checkpoint or plan: nothing to be stated.
    """
    statement = Statement(
        run_id=run_id,
        files=dict(checkpoint.files),
        plan=PlanFacts.of(plan),
        parent=parent,
        config_sha256=checkpoint.files["config.json"],
        report=report,
        gate=decision.to_json(),
        code={"scf": code_version},
    )
    _require_consistent(statement)
    return statement


def parse_statement(payload: bytes) -> Statement:
    """Read a signed payload back.

    Raises:
        StatementInvalid: Another type, a key missing, or parts that contradict each other.
    """
    try:
        value = parse_json(payload)
        if value["_type"] != STATEMENT_TYPE or value["predicateType"] != PREDICATE_TYPE:
            raise StatementInvalid(f"not a statement of type {PREDICATE_TYPE}")
        predicate, plan, parent = (
            value["predicate"], value["predicate"]["plan"], value["predicate"]["parent"]
        )  # fmt: skip
        statement = Statement(
            run_id=str(predicate["run"]),
            files={subject["name"]: subject["digest"]["sha256"] for subject in value["subject"]},
            plan=PlanFacts(plan["plan_id"], plan["fossils"], plan["merkle_root"]),
            parent=parent and Parent(parent["generation"], parent["checkpoint_digest"]),
            config_sha256=predicate["config_sha256"],
            report=parse_report(predicate["report"]),
            gate=predicate["gate"],
            code=predicate["code"],
        )
        # The payload is canonical: what was parsed must give the same bytes, no key more or less.
        if statement.encode() != payload:
            raise StatementInvalid("the statement is not in its one written form")
    except (KeyError, TypeError, AttributeError, ReportInvalid, InputError) as error:
        raise StatementInvalid(f"not a training statement: {error!r}") from error
    _require_consistent(statement)
    return statement


def _require_consistent(statement: Statement) -> None:
    report = statement.report
    pairs = [
        ("checkpoint", report.checkpoint_digest, statement.checkpoint_digest),
        ("plan", report.plan_id, statement.plan.plan_id),
        ("config", statement.config_sha256, statement.files.get("config.json")),
    ]
    for name, said, stated in pairs:
        if said != stated:
            raise StatementInvalid(
                f"statement of {statement.run_id}: {name} {said[:16]} and {str(stated)[:16]} differ"
            )
