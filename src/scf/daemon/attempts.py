"""Attempts, as stages see them: opening one, asking its door how it fares, and its receipt.

An attempt is what a door did for a run. It is opened before the door hears of it and always has
the same id for the same try, so each function here may be called again after a crash.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.daemon.offers import JOBS_PER_DOOR, joules_used, nodes_of, was_refused
from scf.daemon.stage import Bench
from scf.dispatch.dispatcher import BundleMismatch, Dispatcher
from scf.dispatch.job import (
    INTERRUPTED,
    NOT_ITS_FAULT,
    ExitReason,
    JobExit,
    JobInput,
    JobPhase,
    JobSpec,
    JobStatus,
)
from scf.runs.record import Attempt, AttemptEnd, Run

TRAIN = "train_ebdm"
MEASURE = "measure"
CONTROL = "control"

# What a program says that found no room (strerror of ENOSPC and EDQUOT, and our own words).
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "the disk is full")
# A worker ends its program at the deadline; one that is still there so much later is ended for it.
DEADLINE_GRACE_S = 60.0


def open_attempt(
    run: Run,
    kind: str,
    files: Mapping[str, bytes],
    folders: Mapping[str, Path],
    bench: Bench,
    config: Mapping[str, Any] | None = None,
    *,
    door: str,
) -> Attempt:
    """The run's open attempt of this kind; what is to be done is on the medium before it is.

    Training may take what is left of the run's joules; a measurement is not ended for them.
    """
    inputs = (
        *(JobInput(name, f"inputs/{name}", sha256_hex(data)) for name, data in files.items()),
        *(JobInput(name, str(path)) for name, path in folders.items()),
    )

    def spec_of(attempt_id: str) -> dict[str, Any]:
        budget = run.intent.get("budget", {})
        return JobSpec(
            job_id=attempt_id,
            kind=kind,
            deadline_s=float(budget.get("seconds") or bench.rooms.config.daemon.job_deadline_s),
            config=dict(config or {}),
            inputs=inputs,
            vault=str(bench.rooms.vault_folder),
            joules_max=None if kind == MEASURE else joules_left(run, bench),
            nodes=nodes_of(bench.rooms.config, door) if kind in (TRAIN, CONTROL) else 1,
        ).to_json()

    return bench.store.open_attempt(run.run_id, kind, door, spec_of)


def joules_left(run: Run, bench: Bench) -> float | None:
    """What the run's budget leaves it, as far as its attempts were metered; None is no limit."""
    limit_j = float(run.intent.get("budget", {}).get("joules") or 0.0)
    return limit_j - joules_used(bench.store.attempts(run.run_id)) if limit_j else None


def is_out_of_joules(run: Run, bench: Bench) -> bool:
    """Whether nothing is left for the run to train with."""
    left_j = joules_left(run, bench)
    return left_j is not None and left_j <= 0


def door_of(attempt: Attempt, bench: Bench) -> Dispatcher:
    """The door that an attempt went through. Raises DoorUnavailable when it cannot be opened."""
    return bench.rooms.doors.get(attempt.door)


def open_one(run: Run, kind: str, bench: Bench) -> Attempt | None:
    """The run's last attempt of this kind, while it is open."""
    attempts = bench.store.attempts(run.run_id, kind)
    return attempts[-1] if attempts and attempts[-1].is_open else None


def busy_with(run: Run, kind: str, bench: Bench, door: str) -> str | None:
    """Who keeps the door busy; None when this run may have it."""
    others = [
        a.attempt_id
        for a in bench.store.open_attempts()
        if a.door == door and (a.run_id, a.kind) != (run.run_id, kind)
    ]
    return others[0] if len(others) >= JOBS_PER_DOOR else None


def collected(attempt: Attempt, ended: JobExit, bench: Bench) -> JobExit:
    """Take a completed job's outputs in; how it ended once they were looked at."""
    if ended.reason is ExitReason.COMPLETED:
        try:
            door_of(attempt, bench).collect(attempt.attempt_id)
        except BundleMismatch as error:
            detail = f"not collected: {error}"
            return dataclasses.replace(ended, reason=ExitReason.WORKER_ERROR, detail=detail)
    return ended


def how_it_ended(attempt: Attempt, status: JobStatus, bench: Bench) -> JobExit | None:
    """How the job ended; None while it runs. One that outstays its deadline is ended here."""
    if status.phase is JobPhase.ENDED:
        bench.seen_running.pop(attempt.attempt_id, None)
        return status.exit
    if status.phase is JobPhase.ABSENT:
        return JobExit(ExitReason.LOST, "the door does not know it")
    now = bench.rooms.clock.monotonic()
    since = bench.seen_running.setdefault(attempt.attempt_id, now)
    if now - since > float(attempt.spec["deadline_s"]) + DEADLINE_GRACE_S:
        door_of(attempt, bench).cancel(attempt.attempt_id, at_once=True)
    return None


def is_its_fault(ended: JobExit) -> bool:
    """Whether an end counts as one of the run's tries."""
    return ended.reason not in NOT_ITS_FAULT and not found_no_room(ended)


def found_no_room(ended: JobExit) -> bool:
    """A job that found a disk full says nothing about itself: it waits until there is room."""
    is_error = ended.reason is ExitReason.WORKER_ERROR
    return is_error and any(words in ended.detail for words in _NO_ROOM)


def receipt_of(attempt: Attempt, ended: JobExit, status: JobStatus, bench: Bench) -> AttemptEnd:
    """What is kept of an attempt that ended: how, where, what it cost in USD and joules."""
    receipt = {
        **ended.to_json(),
        **bench.rooms.placement(),
        "placement": dict(status.placement),
        "cost_usd": float(status.placement.get("cost_usd", 0.0)),
        "energy_j": ended.usage.get("energy_j"),
        "inputs": list(attempt.spec["inputs"]),
    }
    return AttemptEnd(attempt.attempt_id, str(ended.reason), receipt)


def training_files(run: Run, bench: Bench) -> dict[str, bytes]:
    """What a training job is given beside fossils and weights."""
    return {
        "plan.json": canonical_json(bench.store.plan(run.run_id)),
        "train_config.json": canonical_json(run.intent["config"]),
    }


def bundle_to_resume(run: Run, bench: Bench) -> Path | None:
    """The bundle of the last try, if a new one can go on from what it left."""
    attempts = bench.store.attempts(run.run_id, TRAIN)
    closed = [a for a in attempts if not a.is_open and not was_refused(a)]
    if not closed or closed[-1].exit_reason not in INTERRUPTED:
        return None
    bundle = bench.rooms.jobs.path / closed[-1].attempt_id
    return bundle if bundle.is_dir() else None


def checkpoint_of(run: Run, bench: Bench) -> Path:
    """The checkpoint that the run's completed training job left."""
    return bench.rooms.jobs.path / str(run.facts["train_attempt"]) / "outputs" / "checkpoint"


def report_of(run: Run, bench: Bench) -> Path:
    """The folder of the run's measured report."""
    return bench.rooms.jobs.path / str(run.facts["measure_attempt"]) / "outputs" / "report"
