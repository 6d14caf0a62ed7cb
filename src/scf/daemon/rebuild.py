"""Make `runs.db` again out of what is signed and what lies on the drive.

The audit log has every transition with its details; the zoo and the job bundles have plans and
settings. Out of these a run is put back where it stood. What cannot be put back is said: a run
under way whose plan is nowhere is left out, and planned again: the same situation is the same run.
The old file is set aside, never deleted.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.audit.entry import Entry
from scf.audit.log import AuditLog
from scf.config import FoundryConfig
from scf.control.control_file import ControlFile
from scf.core.canonical import canonical_json
from scf.core.clock import Clock, utc_text
from scf.core.errors import InputError, OperatorError
from scf.core.identity import sha256_hex
from scf.daemon.commands import GEAR, IS_PAUSED
from scf.daemon.heartbeat import LOCK_NAME, STATE_NAME
from scf.daemon.orient import train_config
from scf.daemon.pulse import PLANNED
from scf.daemon.rooms import own_drive
from scf.dispatch.bundle import Bundle
from scf.dispatch.job import JobSpec
from scf.runs.rebuilding import RebuiltAttempt, RebuiltRun, RebuiltTransition, write_database
from scf.runs.state import ACTIVE, State
from scf.runs.store import DATABASE_NAME, run_id_of
from scf.storage import durable
from scf.storage.instance_lock import instance_lock
from scf.storage.partitions import Drive
from scf.vault.journal_file import read_journal
from scf.vault.watcher import JournalPrefix, prefix_until

_ATTEMPT = re.compile(r"(run-[0-9a-f]{12})-(train-ebdm|measure)-([0-9]+)")


@dataclass(frozen=True)
class Rebuilt:
    """What was put back.

    Attributes:
        runs: By state.
        transitions: Entries of the audit log that were taken over.
        attempts: Job bundles that were found.
        without_plan: Ended runs whose plan could not be found.
        left_out: Runs under way whose plan could not be found: to be planned again.
        set_aside: Where the old database lies now; None where there was none.
    """

    runs: Mapping[str, int]
    transitions: int
    attempts: int
    without_plan: tuple[str, ...]
    left_out: tuple[str, ...]
    set_aside: Path | None

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": dict(self.runs),
            "transitions": self.transitions,
            "attempts": self.attempts,
            "without_plan": list(self.without_plan),
            "left_out": list(self.left_out),
            "set_aside": str(self.set_aside) if self.set_aside else None,
        }


@dataclass
class _Known:
    """What was found of one run."""

    transitions: list[RebuiltTransition] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    intent: dict[str, Any] | None = None


def rebuild_state(config: FoundryConfig, clock: Clock) -> Rebuilt:
    """Make the database of the home again, while no daemon runs.

    Raises:
        AlreadyRunning: A daemon runs.
        DriveMissing: The drive with the audit log is not there.
        VerificationFailed: The audit log does not hold; nothing was changed.
    """
    with instance_lock(config.home / LOCK_NAME, holder="scf daemon rebuild-state"):
        drive = own_drive(config)
        audit = AuditLog.open(drive.folder("zk_proofs", "audit"), config.home)
        known = _from_audit(audit)
        _add_plans(known, drive, config)
        all_runs = [_run(run_id, found) for run_id, found in known.items()]
        runs = [run for run in all_runs if run.state not in ACTIVE or _is_whole(run)]
        attempts = list(_attempts(drive, {run.run_id: run for run in runs}))
        fresh = config.home / f".{DATABASE_NAME}.rebuilt"
        _remove_database(fresh)
        write_database(
            fresh,
            runs=runs,
            attempts=attempts,
            acks=[ack.to_json() for ack in ControlFile(config.home).acks().values()],
            settings=_settings(config.home, drive, runs),
        )
        aside = _replace(config.home / DATABASE_NAME, fresh, clock)
    counts: dict[str, int] = {}
    for run in runs:
        counts[str(run.state)] = counts.get(str(run.state), 0) + 1
    return Rebuilt(
        counts,
        sum(len(run.transitions) for run in runs),
        len(attempts),
        tuple(run.run_id for run in runs if not run.plan),
        tuple(run.run_id for run in all_runs if run not in runs),
        aside,
    )


def _from_audit(audit: AuditLog) -> dict[str, _Known]:
    known: dict[str, _Known] = {}
    for logged in audit.entries():
        entry = logged.entry
        if not entry.event.startswith("run.") or entry.key is None:
            continue
        found = known.setdefault(entry.subject, _Known())
        transition = _transition(entry, logged.index)
        found.transitions.append(transition)
        found.facts.update({k: v for k, v in transition.details.items() if k != "intent"})
        told = transition.details.get("intent")
        if isinstance(told, dict) and run_id_of(told) == entry.subject:
            found.intent = told
    return known


def _transition(entry: Entry, index: int) -> RebuiltTransition:
    details = entry.details
    start = details["from"]
    return RebuiltTransition(
        from_state=State(start) if start else None,
        to_state=State(details["to"]),
        reason=str(details["reason"]),
        details=dict(details["details"]),
        at=str(details["at"]),
        audit_index=index,
    )


def _add_plans(known: dict[str, _Known], drive: Drive, config: FoundryConfig) -> None:
    """Plans from the zoo and the bundles. An intent counts only if its hash is the run's name."""
    for path in sorted((drive.root / "model_zoo").glob("ebdm_gen*/entry.json")):
        entry, plan = _json(path), _json(path.with_name("plan.json"))
        if entry.get("run") in known and plan:
            known[entry["run"]].plan = plan
    for path in sorted((drive.root / "system_cache" / "jobs").glob("run-*/inputs/plan.json")):
        match = _ATTEMPT.fullmatch(path.parents[1].name)
        if match is None or match[1] not in known:
            continue
        found = known[match[1]]
        plan = _json(path)
        if sha256_hex(canonical_json(plan)) != found.facts.get("plan_id"):
            continue
        found.plan = plan
        settings = _json(path.with_name("train_config.json"))
        if settings and found.intent is None:
            found.intent = _matching(match[1], found, settings)
    for run_id, found in known.items():
        if found.intent is None and "plan_id" in found.facts:
            found.intent = _matching(run_id, found, train_config(config.training))


def _matching(run_id: str, found: _Known, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An intent of schema 1, which the audit log does not hold."""
    plan_id = str(found.facts.get("plan_id"))
    parent = _parent(found)
    intent = {
        "schema": "scf.intent/1",
        "kind": "train_ebdm",
        "plan_id": plan_id,
        "config": settings,
        "parent": parent["checkpoint_digest"] if parent else None,
    }
    return intent if run_id_of(intent) == run_id else None


def _parent(found: _Known) -> dict[str, str] | None:
    parent = found.facts.get("parent")
    return parent if isinstance(parent, dict) else None


def _run(run_id: str, found: _Known) -> RebuiltRun:
    last = found.transitions[-1]
    return RebuiltRun(
        run_id=run_id,
        intent=found.intent or {"schema": "scf.intent/1", "lost": run_id},
        plan=found.plan or {},
        state=last.to_state,
        reason=last.reason,
        facts=found.facts,
        transitions=found.transitions,
    )


def _is_whole(run: RebuiltRun) -> bool:
    # Before it is validated, a run has no plan that could be lost: it is made again.
    is_planned = bool(run.plan) or run.state is State.DISCOVERED
    return is_planned and "lost" not in run.intent


def _attempts(drive: Drive, runs: Mapping[str, RebuiltRun]) -> Iterator[RebuiltAttempt]:
    """Job bundles, as attempts. The last one of a run that waits for it is open."""
    jobs = drive.root / "system_cache" / "jobs"
    found: dict[tuple[str, str], list[tuple[int, Path, JobSpec]]] = {}
    for path in jobs.glob("run-*"):
        match = _ATTEMPT.fullmatch(path.name)
        if match is None or match[1] not in runs:
            continue
        try:
            spec = Bundle(path).spec()
        except InputError:
            continue
        found.setdefault((match[1], spec.kind), []).append((int(match[3]), path, spec))
    waits_for = {State.PLANNED: "train_ebdm", State.SUBMITTED: "train_ebdm",
                 State.RETURNED: "measure"}  # fmt: skip
    for (run_id, kind), tries in sorted(found.items()):
        tries.sort(key=lambda row: row[0])
        run = runs[run_id]
        ended = [t.details.get("attempt") for t in run.transitions if t.to_state is State.LOST]
        for number, path, spec in tries:
            is_last = number == tries[-1][0]
            is_open = is_last and waits_for.get(run.state) == kind and path.name not in ended
            yield RebuiltAttempt(
                attempt_id=path.name,
                run_id=run_id,
                kind=kind,
                number=number,
                door=str(run.facts.get("door", "local")),
                spec=spec.to_json(),
                opened_at=run.transitions[0].at,
                closed_at=None if is_open else run.transitions[-1].at,
                exit_reason=None if is_open else _exit_reason(path),
            )


def _exit_reason(bundle: Path) -> str:
    try:
        record = Bundle(bundle).exit()
    except InputError:
        record = None
    return str(record.reason) if record else "lost"


def _settings(home: Path, drive: Drive, runs: list[RebuiltRun]) -> dict[str, Any]:
    """Gear and pause as the daemon last showed them; the journal as far as it was planned on."""
    shown = _json(home / STATE_NAME)
    settings: dict[str, Any] = {PLANNED: _planned(drive, runs).to_json()}
    if shown.get("is_paused") is True:
        settings[IS_PAUSED] = True
    if isinstance(shown.get("gear"), str):
        settings[GEAR] = "AUTO" if shown.get("gear_is_auto") else shown["gear"]
    return settings


def _planned(drive: Drive, runs: list[RebuiltRun]) -> JournalPrefix:
    """Up to where every shard is in a run that was noted (and was not lost)."""
    planned = {shard["path"] for run in runs if run.plan for shard in run.plan["shards"]}
    first = max((run.intent.get("vault", {}).get("shards", 0) for run in runs), default=0)
    offset = 0
    for number, (entry, end) in enumerate(read_journal(drive.root / "fossil_vault")):
        if entry.path not in planned and number >= first:
            break
        offset = end
    return prefix_until(drive.root / "fossil_vault", offset)


def _replace(path: Path, fresh: Path, clock: Clock) -> Path | None:
    """Put the new database in the old one's place; the old one is set aside with its log."""
    aside = None
    if path.exists():
        stamp = utc_text(clock.now())[:19].replace(":", "")
        aside = path.with_name(f"{DATABASE_NAME}.damaged-{stamp}")
        shutil.copy2(path, aside)
    for suffix in ("-wal", "-shm"):
        # A log of the old database beside the new one would be taken for its own.
        old = path.with_name(path.name + suffix)
        if old.exists():
            target = (aside or path).with_name(f"{(aside or path).name}{suffix}")
            old.replace(target) if aside else old.unlink()
    fresh.replace(path)
    durable.flush_folder(path.parent)
    return aside


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = durable.read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def require_history(drive: Drive, *, has_runs: bool) -> None:
    """Refuse to begin from nothing on a drive that has a history.

    Raises:
        OperatorError: The zoo has generations, and the database knows of no run.
    """
    zoo = drive.root / "model_zoo"
    if not has_runs and (zoo / "champion.json").exists():
        raise OperatorError(
            f"{zoo} has a champion, but {DATABASE_NAME} in the home knows of no run: it was lost",
            remedy="Run `scf daemon rebuild-state`; nothing was changed.",
        )
