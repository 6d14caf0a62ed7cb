"""Write a run database out of what was found elsewhere: for `scf daemon rebuild-state`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.runs.record import to_text
from scf.runs.schema import MIGRATIONS
from scf.runs.state import State
from scf.storage import durable
from scf.storage.database import open_database, transaction


@dataclass(frozen=True)
class RebuiltTransition:
    """A transition as the audit log has it."""

    from_state: State | None
    to_state: State
    reason: str
    details: Mapping[str, Any]
    at: str
    audit_index: int


@dataclass(frozen=True)
class RebuiltRun:
    """A run as it was found to stand. An empty plan is one that was not found."""

    run_id: str
    intent: Mapping[str, Any]
    plan: Mapping[str, Any]
    state: State
    reason: str
    facts: Mapping[str, Any]
    transitions: Sequence[RebuiltTransition]


@dataclass(frozen=True)
class RebuiltAttempt:
    """An attempt as its bundle shows it."""

    attempt_id: str
    run_id: str
    kind: str
    number: int
    door: str
    spec: Mapping[str, Any]
    opened_at: str
    closed_at: str | None
    exit_reason: str | None


def write_database(
    path: Path,
    *,
    runs: Iterable[RebuiltRun],
    attempts: Iterable[RebuiltAttempt],
    acks: Iterable[Mapping[str, str]],
    settings: Mapping[str, Any],
) -> None:
    """Make the database `path`, which does not exist; it is on the medium when this returns."""
    connection = open_database(path, MIGRATIONS)
    try:
        with transaction(connection):
            for run in runs:
                connection.execute(
                    "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, 0, NULL, ?, ?, ?)",
                    (run.run_id, sha256_hex(canonical_json(dict(run.intent))), to_text(run.intent),
                     to_text(run.plan), run.state, run.reason, to_text(run.facts),
                     run.transitions[0].at, run.transitions[-1].at),
                )  # fmt: skip
            ordered = sorted(
                ((t, run.run_id) for run in runs for t in run.transitions),
                key=lambda row: row[0].audit_index,
            )
            for move, run_id in ordered:
                connection.execute(
                    "INSERT INTO transitions (run_id, from_state, to_state, reason, details, at, "
                    "audit_index) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (run_id, move.from_state, move.to_state, move.reason, to_text(move.details),
                     move.at, move.audit_index),
                )  # fmt: skip
            for attempt in attempts:
                receipt = None if attempt.closed_at is None else to_text({"rebuilt": True})
                connection.execute(
                    "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (attempt.attempt_id, attempt.run_id, attempt.kind, attempt.number, attempt.door,
                     to_text(attempt.spec), attempt.opened_at, attempt.closed_at,
                     attempt.exit_reason, receipt),
                )  # fmt: skip
            for number, ack in enumerate(acks, start=1):
                connection.execute(
                    "INSERT INTO acks VALUES (?, ?, ?, ?, ?)",
                    (ack["id"], number, ack["status"], ack["message"], ack["at"]),
                )
            for key, value in settings.items():
                connection.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    durable.flush_folder(path.parent)
