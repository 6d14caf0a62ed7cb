"""`runs.db`: runs, their attempts, every transition, and what the conductor must not forget.

Each method that changes something is one transaction, and is on the medium when it returns. What is
to be done is written before it is done (`open_attempt`), so that after a crash the conductor sees
what it may have done and does it again under the same name.

A transition is also an entry of the audit log. The log lies on the drive, this database on the
internal disk, so the two cannot be one transaction: a transition waits here (`unaudited`) until the
log has it (`mark_audited`), in order.
"""

import contextlib
import copy
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.clock import Clock, parse_utc, utc_text
from scf.core.errors import OperatorError, UsageError
from scf.core.identity import sha256_hex
from scf.runs.record import (
    Attempt,
    AttemptEnd,
    Origin,
    Run,
    Transition,
    attempt_of,
    from_text,
    moment_text,
    origin_of,
    run_of,
    to_text,
    transition_of,
)
from scf.runs.schema import MIGRATIONS
from scf.runs.state import FORWARD, MoveRefused, State, check_move
from scf.storage.database import is_busy, open_database, transaction
from scf.storage.failpoint import failpoint

DATABASE_NAME = "runs.db"
RUNS_REMEMBERED_MAX = 64


class StateDamaged(OperatorError):
    """`runs.db` is not as it must be. What it held can be put back from the drive."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}: the state database is damaged: {what}; nothing is done with it",
            remedy="Run `scf daemon rebuild-state`: it sets the file aside and makes it again from "
            "the audit log, the zoo and the job bundles. A backup does as well: `scf restore`.",
        )


def run_id_of(intent: Mapping[str, Any]) -> str:
    """The name of the run that an intent is: the same intent is the same run."""
    return f"run-{sha256_hex(canonical_json(dict(intent)))[:12]}"


class RunStore:
    """The database of one home. The daemon's lock sees to it that one process writes."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self._db = connection
        self._clock = clock
        # An idle pulse asks the same things again and again. This process alone writes, so what
        # was read stays true until its next write.
        self._settings: dict[str, Any] | None = None
        self._resting: dict[tuple[State, ...], list[Run]] = {}
        self._last_run_at: datetime | None = None

    @classmethod
    def open(cls, home: Path, clock: Clock) -> "RunStore":
        """Open the database of `home`, or make it.

        Raises:
            StateDamaged: It cannot be used.
            OperatorError: It was written by a newer scf.
        """
        path = home / DATABASE_NAME
        try:
            return cls(open_database(path, MIGRATIONS), clock)
        except OperatorError as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.DatabaseError) and not is_busy(cause):
                raise StateDamaged(path, str(error.__cause__)) from error
            raise

    def check(self) -> None:
        """Raise StateDamaged unless every page of the database is as it must be."""
        try:
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise StateDamaged(Path(DATABASE_NAME), str(found))

    @classmethod
    def in_memory(cls, clock: Clock) -> "RunStore":
        """An empty one that is kept nowhere: for looking ahead where there is none yet."""
        return cls(open_database(Path(":memory:"), MIGRATIONS), clock)

    def close(self) -> None:
        self._db.close()

    # --- runs ---

    def add_run(
        self,
        intent: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
        *,
        facts: Mapping[str, Any],
        reason: str = "fresh fossils",
        sets: Mapping[str, Any] | None = None,
    ) -> tuple[Run, bool]:
        """Note an intent. The same intent is the same run: returns (run, whether it is new).

        Args:
            intent: What is to be made; entered in the audit log with its transition.
            plan: Its batch plan, if it is known already.
            facts: What is known of it.
            reason: Why now.
            sets: Settings that become true together with it, whether or not it is new.
        """
        digest = sha256_hex(canonical_json(intent))
        run_id = run_id_of(intent)
        known = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if known is not None:
            assert known["intent_hash"] == digest, f"two intents share the name {run_id}"
        now = self._now()
        with self._commit():
            for key, value in (sets or {}).items():
                self._set(key, value)
            if known is None:
                self._db.execute(
                    "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, 0, NULL, ?, ?, ?)",
                    (run_id, digest, to_text(intent), to_text(plan or {}), State.DISCOVERED,
                     reason, to_text(facts), now, now),
                )  # fmt: skip
                told = {**facts, "intent": dict(intent)}
                self._note(run_id, None, State.DISCOVERED, reason, told, now)
                self._last_run_at = None
        return self.run(run_id), known is None

    def keep_plan(self, run: Run, plan: Mapping[str, Any], *, facts: Mapping[str, Any]) -> Run:
        """Keep the batch plan that was made for a run, which stays in its state."""
        with self._commit():
            self._db.execute(
                "UPDATE runs SET plan = ?, facts = ?, updated_at = ? WHERE run_id = ?",
                (to_text(plan), to_text({**run.facts, **facts}), self._now(), run.run_id),
            )
        return self.run(run.run_id)

    def run(self, run_id: str) -> Run:
        """Raises UsageError when there is no such run."""
        row = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise UsageError(f"no run {run_id!r}", remedy="`scf runs` lists them.")
        return run_of(row)

    def runs(self, states: Collection[State] | None = None, *, limit: int = -1) -> list[Run]:
        """Runs, oldest first; those in `states` only, if given; the newest `limit`, if given."""
        key = tuple(sorted(states)) if states is not None and limit < 0 else None
        if key is not None and key in self._resting:
            return list(self._resting[key])
        where = "" if states is None else f"WHERE state IN ({', '.join('?' * len(states))})"
        rows = self._db.execute(
            f"SELECT * FROM runs {where} ORDER BY created_at DESC, rowid DESC LIMIT ?",  # noqa: S608
            (*(states or ()), limit),
        ).fetchall()
        found = [run_of(row) for row in reversed(rows)]
        if key is not None and len(found) <= RUNS_REMEMBERED_MAX:
            self._resting[key] = found
        return list(found)

    def last_run_at(self) -> datetime | None:
        """When the newest run was noted; None before the first."""
        if self._last_run_at is None:
            (newest,) = self._db.execute("SELECT max(created_at) FROM runs").fetchone()
            self._last_run_at = None if newest is None else parse_utc(newest)
        return self._last_run_at

    def counts(self) -> dict[str, int]:
        """How many runs stand in each state that has any."""
        rows = self._db.execute("SELECT state, count(*) AS n FROM runs GROUP BY state").fetchall()
        return {row["state"]: row["n"] for row in rows}

    def plan(self, run_id: str) -> dict[str, Any]:
        """The run's batch plan; empty until it is made."""
        row = self._db.execute("SELECT plan FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise UsageError(f"no run {run_id!r}", remedy="`scf runs` lists them.")
        return from_text(row["plan"])

    def move(
        self,
        run: Run,
        to: State,
        reason: str,
        *,
        facts: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        ends: AttemptEnd | None = None,
        counts: bool = False,
        not_before: datetime | None = None,
    ) -> Run:
        """Take `run` to another state: one transaction, one transition.

        Args:
            run: The run as it was read; if it stands elsewhere by now the move is refused.
            to: The new state.
            reason: Why, for people.
            facts: Added to the run's facts.
            details: Kept with the transition and entered in the audit log, beside `facts`.
            ends: The attempt that ended with this move.
            counts: Whether this was a failure of the run's own.
            not_before: Leave the run alone until then.

        Raises:
            MoveRefused: Not in the table, or the run has moved since it was read.
        """
        check_move(run.run_id, run.state, to)
        now = self._now()
        known = {**run.facts, **(facts or {})}
        tries = (0 if to in FORWARD else run.tries) + counts
        with self._commit():
            changed = self._db.execute(
                "UPDATE runs SET state = ?, reason = ?, tries = ?, not_before = ?, facts = ?, "
                "updated_at = ? WHERE run_id = ? AND state = ?",
                (
                    to,
                    reason,
                    tries,
                    moment_text(not_before),
                    to_text(known),
                    now,
                    run.run_id,
                    run.state,
                ),
            ).rowcount
            if changed != 1:
                raise MoveRefused(f"{run.run_id} no longer stands at {run.state}")
            if ends is not None:
                self._close(ends, now)
            told = {**(details or {}), **(facts or {})}
            self._note(run.run_id, run.state, to, reason, told, now)
        return self.run(run.run_id)

    def postpone(
        self,
        run: Run,
        reason: str,
        *,
        not_before: datetime,
        counts: bool,
        ends: AttemptEnd | None = None,
    ) -> Run:
        """Leave the run in its state until `not_before`; `counts` marks a failure of its own."""
        with self._commit():
            changed = self._db.execute(
                "UPDATE runs SET reason = ?, tries = tries + ?, not_before = ?, updated_at = ? "
                "WHERE run_id = ? AND state = ?",
                (reason, counts, moment_text(not_before), self._now(), run.run_id, run.state),
            ).rowcount
            if changed != 1:
                raise MoveRefused(f"{run.run_id} no longer stands at {run.state}")
            if ends is not None:
                self._close(ends, self._now())
        return self.run(run.run_id)

    # --- attempts ---

    def open_attempt(
        self, run_id: str, kind: str, door: str, spec_of: Callable[[str], Mapping[str, Any]]
    ) -> Attempt:
        """The run's open attempt of this kind, or a new one with the spec that `spec_of` gives.

        On the medium before the door is asked, so that a crash between the two finds it again.
        """
        row = self._db.execute(
            "SELECT * FROM attempts WHERE run_id = ? AND kind = ? AND closed_at IS NULL",
            (run_id, kind),
        ).fetchone()
        if row is not None:
            return attempt_of(row)
        with self._commit():
            (number,) = self._db.execute(
                "SELECT count(*) + 1 FROM attempts WHERE run_id = ? AND kind = ?", (run_id, kind)
            ).fetchone()
            attempt_id = f"{run_id}-{kind.replace('_', '-')}-{number}"
            self._db.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)",
                (attempt_id, run_id, kind, number, door, to_text(spec_of(attempt_id)), self._now()),
            )
        return self.attempt(attempt_id)

    def attempt(self, attempt_id: str) -> Attempt:
        row = self._db.execute(
            "SELECT * FROM attempts WHERE attempt_id = ?", (attempt_id,)
        ).fetchone()
        if row is None:
            raise UsageError(f"no attempt {attempt_id!r}")
        return attempt_of(row)

    def attempts(self, run_id: str, kind: str | None = None) -> list[Attempt]:
        """The run's attempts, oldest first."""
        rows = self._db.execute(
            "SELECT * FROM attempts WHERE run_id = ? ORDER BY rowid", (run_id,)
        ).fetchall()
        return [attempt_of(row) for row in rows if kind is None or row["kind"] == kind]

    def open_attempts(self) -> list[Attempt]:
        """Everything that a door may be doing now."""
        rows = self._db.execute(
            "SELECT * FROM attempts WHERE closed_at IS NULL ORDER BY rowid"
        ).fetchall()
        return [attempt_of(row) for row in rows]

    def cost_usd_since(self, moment: str) -> float:
        """What receipts of attempts that ended since `moment` (RFC 3339) say they cost."""
        (total,) = self._db.execute(
            "SELECT coalesce(sum(json_extract(receipt, '$.cost_usd')), 0.0) FROM attempts "
            "WHERE closed_at >= ?",
            (moment,),
        ).fetchone()
        return float(total)

    # --- transitions and the audit log ---

    def transitions(self, run_id: str | None = None) -> list[Transition]:
        """Transitions in order; those of one run only, if given."""
        rows = self._db.execute(
            "SELECT * FROM transitions WHERE ?1 IS NULL OR run_id = ?1 ORDER BY seq", (run_id,)
        ).fetchall()
        return [transition_of(row) for row in rows]

    def unaudited(self, *, limit: int) -> list[Transition]:
        """The oldest transitions that the audit log may not have."""
        rows = self._db.execute(
            "SELECT * FROM transitions WHERE audit_index IS NULL ORDER BY seq LIMIT ?", (limit,)
        ).fetchall()
        return [transition_of(row) for row in rows]

    def mark_audited(self, seq: int, audit_index: int) -> None:
        """Note where in the audit log a transition is."""
        with self._commit():
            self._db.execute(
                "UPDATE transitions SET audit_index = ? WHERE seq = ?", (audit_index, seq)
            )

    # --- commands ---

    def has_ack(self, command_id: str) -> bool:
        row = self._db.execute("SELECT 1 FROM acks WHERE id = ?", (command_id,)).fetchone()
        return row is not None

    def acknowledge(
        self, command_id: str, status: str, message: str, *, sets: Mapping[str, Any] | None = None
    ) -> bool:
        """Answer a command and keep the settings it changes, together and once.

        Returns:
            False when it was answered before; then nothing changes.
        """
        if self.has_ack(command_id):
            return False
        with self._commit():
            self._db.execute(
                "INSERT INTO acks "
                "VALUES (?, (SELECT coalesce(max(seq), 0) + 1 FROM acks), ?, ?, ?)",
                (command_id, status, message, self._now()),
            )
            for key, value in (sets or {}).items():
                self._set(key, value)
        return True

    def acks(self, *, limit: int) -> list[dict[str, str]]:
        """The newest answers, oldest first: `{id, status, message, at}`."""
        rows = self._db.execute(
            "SELECT id, status, message, at FROM acks ORDER BY seq DESC LIMIT ?", (limit,)
        ).fetchall()
        return [dict(row) for row in reversed(rows)]

    # --- origins ---

    def origin(self, path: str) -> Origin | None:
        """What is known of an ingested file."""
        row = self._db.execute("SELECT * FROM origins WHERE path = ?", (path,)).fetchone()
        return None if row is None else origin_of(row)

    def origin_with_digest(self, sha256: str) -> Origin | None:
        """An ingested file with these bytes, wherever it lay."""
        row = self._db.execute(
            "SELECT * FROM origins WHERE sha256 = ? LIMIT 1", (sha256,)
        ).fetchone()
        return None if row is None else origin_of(row)

    def remember_origin(self, origin: Origin) -> None:
        """Note that a file was ingested, so that it is not ingested again."""
        with self._commit():
            self._db.execute(
                "INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?, ?, ?)",
                (origin.path, origin.size_bytes, origin.mtime_ns, origin.sha256,
                 to_text(origin.outcome), self._now()),
            )  # fmt: skip

    # --- small things ---

    def get(self, key: str, default: Any = None) -> Any:
        """A remembered value, JSON."""
        if self._settings is None:
            rows = self._db.execute("SELECT key, value FROM settings").fetchall()
            self._settings = {row["key"]: json.loads(row["value"]) for row in rows}
        return copy.deepcopy(self._settings.get(key, default))

    def set(self, key: str, value: Any) -> None:
        """Remember a value, JSON."""
        with self._commit():
            self._set(key, value)

    def _set(self, key: str, value: Any) -> None:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, text))

    def _close(self, end: AttemptEnd, now: str) -> None:
        changed = self._db.execute(
            "UPDATE attempts SET closed_at = ?, exit_reason = ?, receipt = ? "
            "WHERE attempt_id = ? AND closed_at IS NULL",
            (now, end.exit_reason, to_text(end.receipt), end.attempt_id),
        ).rowcount
        if changed != 1:
            raise MoveRefused(f"attempt {end.attempt_id} is not open")

    def _note(
        self,
        run_id: str,
        start: State | None,
        end: State,
        reason: str,
        details: Mapping[str, Any],
        now: str,
    ) -> None:
        self._db.execute(
            "INSERT INTO transitions (run_id, from_state, to_state, reason, details, at) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (run_id, start, end, reason, to_text(details), now),
        )

    @contextlib.contextmanager
    def _commit(self) -> Iterator[None]:
        self._settings = None
        self._resting.clear()
        try:
            with transaction(self._db):
                yield
                failpoint("runs.before_commit")
        finally:
            self._settings = None
            self._resting.clear()
        failpoint("runs.after_commit")

    def _now(self) -> str:
        return utc_text(self._clock.now())
