"""What the database holds, as values: runs, attempts, transitions, origins."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.clock import parse_utc, utc_text
from scf.runs.state import State


@dataclass(frozen=True)
class Run:
    """What people talk about: making one model.

    Attributes:
        run_id: `run-` and the first 12 hex digits of the intent's SHA-256.
        intent: What is to be made, out of what.
        state: Where it stands; `reason` says why.
        tries: Failures since it last got further.
        not_before: Left alone until then.
        facts: What its stages found out: digests, paths, the gate's decision.
    """

    run_id: str
    intent: Mapping[str, Any]
    state: State
    reason: str
    tries: int
    not_before: datetime | None
    facts: Mapping[str, Any]
    created_at: str
    updated_at: str

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "state": str(self.state),
            "reason": self.reason,
            "tries": self.tries,
            "not_before": utc_text(self.not_before) if self.not_before else None,
            "intent": dict(self.intent),
            "facts": dict(self.facts),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


@dataclass(frozen=True)
class Attempt:
    """What a door did, or was asked to do: a receipt. Its id is the job's id."""

    attempt_id: str
    run_id: str
    kind: str
    number: int
    door: str
    spec: Mapping[str, Any]
    opened_at: str
    closed_at: str | None
    exit_reason: str | None
    receipt: Mapping[str, Any] | None

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    def to_json(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt_id,
            "run": self.run_id,
            "kind": self.kind,
            "number": self.number,
            "door": self.door,
            "spec": dict(self.spec),
            "opened_at": self.opened_at,
            "closed_at": self.closed_at,
            "exit_reason": self.exit_reason,
            "receipt": dict(self.receipt) if self.receipt is not None else None,
        }


@dataclass(frozen=True)
class Transition:
    """One step in the life of a run."""

    seq: int
    run_id: str
    from_state: State | None
    to_state: State
    reason: str
    details: Mapping[str, Any]
    at: str
    audit_index: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "run": self.run_id,
            "from": str(self.from_state) if self.from_state else None,
            "to": str(self.to_state),
            "reason": self.reason,
            "details": dict(self.details),
            "at": self.at,
            "audit_index": self.audit_index,
        }


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, to be recorded together with the move that follows from it."""

    attempt_id: str
    exit_reason: str
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """A file that was ingested, and what came of it."""

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    outcome: Mapping[str, Any]


def to_text(value: Mapping[str, Any]) -> str:
    """JSON as the database keeps it."""
    return canonical_json(dict(value)).decode()


def from_text(text: str) -> dict[str, Any]:
    """The object that `to_text` kept."""
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def moment_text(moment: datetime | None) -> str | None:
    """RFC 3339, or nothing."""
    return None if moment is None else utc_text(moment)


def run_of(row: sqlite3.Row) -> Run:
    """A row of `runs`."""
    return Run(
        run_id=row["run_id"],
        intent=from_text(row["intent"]),
        state=State(row["state"]),
        reason=row["reason"],
        tries=row["tries"],
        not_before=None if row["not_before"] is None else parse_utc(row["not_before"]),
        facts=from_text(row["facts"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def attempt_of(row: sqlite3.Row) -> Attempt:
    """A row of `attempts`."""
    values = dict(row)
    values["spec"] = from_text(row["spec"])
    values["receipt"] = None if row["receipt"] is None else from_text(row["receipt"])
    return Attempt(**values)


def transition_of(row: sqlite3.Row) -> Transition:
    """A row of `transitions`."""
    values = dict(row)
    values["from_state"] = None if row["from_state"] is None else State(row["from_state"])
    values["to_state"] = State(row["to_state"])
    values["details"] = from_text(row["details"])
    return Transition(**values)


def origin_of(row: sqlite3.Row) -> Origin:
    """A row of `origins`."""
    values = {key: row[key] for key in ("path", "size_bytes", "mtime_ns", "sha256")}
    return Origin(**values, outcome=from_text(row["outcome"]))
