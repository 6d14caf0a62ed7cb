"""The table of stages: one bounded, repeatable function for each arrow in the life of a run.

A stage looks at a run, does its one thing, and says what follows: a move, a wait, or another try
later. It may be called again for the same run at any time (after a crash, it is), so everything it
does is under a name that the same run always has: an attempt's id, a proof record, a generation.
The conductor looks at the emergency lock before each stage and records what the stage says.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scf.core.canonical import canonical_json
from scf.core.errors import BudgetExceeded, DoorUnavailable, InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.daemon.decide import Decision
from scf.daemon.offers import JOBS_PER_DOOR, NOT_TAKEN, choose_door, was_refused
from scf.daemon.planning import NoPlan, Planner
from scf.daemon.rooms import Rooms
from scf.dispatch.dispatcher import BundleMismatch, Dispatcher
from scf.dispatch.job import (
    HOPELESS,
    INTERRUPTED,
    NOT_ITS_FAULT,
    ExitReason,
    JobExit,
    JobInput,
    JobPhase,
    JobSpec,
    JobStatus,
)
from scf.dispatch.registry import LOCAL
from scf.runs.record import Attempt, AttemptEnd, Run
from scf.runs.state import State
from scf.runs.store import RunStore

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan

TRAIN = "train_ebdm"
MEASURE = "measure"
CONTROL = "control"
# Inputs of a measuring job: `earlier-4-ebdm_gen0002` stood four weeks ago.
EARLIER = "earlier"

# Manifests that are read and verified in one go: some tenths of a second.
SHARDS_PER_LOOK = 500
# What a program says that found no room (strerror of ENOSPC and EDQUOT, and our own words).
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "the disk is full")
# A job that found none is tried again after this.
ROOM_PAUSE_S = 300.0
# A worker ends its program at the deadline; one that is still there so much later is ended for it.
DEADLINE_GRACE_S = 60.0
# A job that was asked to end for a cancelled run may save its state for so long.
CANCEL_GRACE_S = 60.0


@dataclass(frozen=True)
class Move:
    """The run goes to another state."""

    to: State
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    ends: AttemptEnd | None = None
    counts: bool = False
    waits: bool = False
    pause_s: float | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to record: a job runs, or the door is taken.

    `goes_on`: a part of the work is done, and the next part can be done at once.
    """

    reason: str
    attempt_id: str | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Retry:
    """The stage did not get through; it is tried again after a pause."""

    reason: str
    counts: bool = True
    waits: bool = True
    ends: AttemptEnd | None = None
    full: BudgetExceeded | None = None


Step = Move | Wait | Retry


@dataclass
class Bench:
    """What stages work with.

    Attributes:
        rooms: The drive's rooms.
        store: States and attempts.
        max_attempts: Tries before a run is parked.
        seen_running: When each open attempt was first seen running by this daemon (monotonic).
        told_to_end: When each attempt of a cancelled run was told to end, likewise.
        planner: Makes plans.
        checking: The plan whose shards are being checked, and how many were.
    """

    rooms: Rooms
    store: RunStore
    max_attempts: int
    seen_running: dict[str, float] = field(default_factory=dict)
    told_to_end: dict[str, float] = field(default_factory=dict)
    planner: Planner = field(init=False)
    checking: "tuple[str, BatchPlan, int] | None" = None

    def __post_init__(self) -> None:
        self.planner = Planner(self.rooms, self.rooms.clock)


Stage = Callable[[Run, Bench], Step]


def validate(run: Run, bench: Bench) -> Step:
    """DISCOVERED: make the plan; is every shard of it in the vault, as the vault's key has signed?

    A part at a time: a large plan is made beside us, and so many shards are looked at in one go.
    """
    from scf.fertilization.batch_plan import BatchPlan
    from scf.vault.manifest import manifest_path, read_manifest

    if not bench.store.plan(run.run_id):
        try:
            made = bench.planner.plan(run)
        except NoPlan as error:
            bench.planner.forget(run.run_id)
            return Move(State.QUARANTINED, str(error))
        if made is None:
            return Wait("its plan is being made")
        run = bench.store.keep_plan(run, made.to_json(), facts=_plan_facts(made))
        bench.planner.forget(run.run_id)
    keys = [bench.rooms.signer("vault").public_key]
    if bench.checking is None or bench.checking[0] != run.run_id:
        bench.checking = run.run_id, BatchPlan.from_json(bench.store.plan(run.run_id)), 0
    _, plan, start = bench.checking
    for shard in plan.shards[start : start + SHARDS_PER_LOOK]:
        path = bench.rooms.vault_folder / shard.path
        try:
            summary = read_manifest(manifest_path(path), keys)
            size_bytes = path.stat().st_size
        except (InputError, VerificationFailed, FileNotFoundError) as error:
            return Move(State.QUARANTINED, f"shard {shard.path}: {error}")
        told = (summary.sha256, summary.size_bytes, summary.merkle_root)
        if told != (shard.sha256, size_bytes, shard.merkle_root):
            return Move(State.QUARANTINED, f"shard {shard.path} is not what the plan names")
    done = start + SHARDS_PER_LOOK
    if done < len(plan.shards):
        bench.checking = run.run_id, plan, done
        return Wait(f"{done} of {len(plan.shards)} shards are as their manifests say", goes_on=True)
    bench.checking = None
    reason = f"{plan.fossils} fossils; shards as their manifests say: {len(plan.shards)}"
    return Move(State.VALIDATED, reason, facts=_plan_facts(plan))


def _plan_facts(plan: "BatchPlan") -> dict[str, Any]:
    return {"plan_id": plan.plan_id, "fossils": plan.fossils, "merkle_root": plan.merkle_root}


def decide(run: Run, bench: Bench) -> Step:
    """VALIDATED: which door? Each is weighed, and the reasons for and against it are kept."""
    decision = _choose_door(run, bench)
    if decision.door is None:
        return Retry(decision.reason, counts=False)
    details = {"decision": decision.to_json()}
    return Move(
        State.PLANNED, f"door {decision.reason}", facts={"door": decision.door}, details=details
    )


def _choose_door(run: Run, bench: Bench) -> Decision:
    return choose_door(
        run,
        bench.store.plan(run.run_id),
        config=bench.rooms.config,
        doors=bench.rooms.doors,
        clock=bench.rooms.clock,
        attempts=bench.store.attempts(run.run_id),
        open_attempts=bench.store.open_attempts(),
    )


def submit(run: Run, bench: Bench) -> Step:
    """PLANNED: start the training job, or find the one that was started."""
    under_way = _open_one(run, TRAIN, bench)
    # Weighed anew for each try: a door may have come back, or have refused the last one.
    if under_way is not None:
        name = under_way.door
    else:
        choice = _choose_door(run, bench)
        if choice.door is None:
            return Retry(choice.reason, counts=False)
        name = choice.door
    busy = _busy_with(run, TRAIN, bench, name)
    if busy is not None:
        return Wait(f"the door {name} is taken by {busy}")
    files = _training_files(run, bench)
    folders = {}
    if run.facts.get("parent"):
        parent = bench.rooms.zoo().generation(run.facts["parent"]["generation"])
        folders["parent"] = parent.checkpoint
    attempt = _open_attempt(run, TRAIN, files, folders, bench, door=name)
    resume = _bundle_to_resume(run, bench)
    spec = JobSpec.from_json(dict(attempt.spec))
    try:
        _door_of(attempt, bench).submit(spec, files, resume=resume)
    except DoorUnavailable as error:
        return _not_taken(attempt, error, bench)
    return Move(
        State.SUBMITTED,
        f"attempt {attempt.number} at door {attempt.door}",
        facts={"door": attempt.door},
        details={"attempt": attempt.attempt_id},
    )


def _not_taken(attempt: Attempt, error: DoorUnavailable, bench: Bench) -> Step:
    """Nothing was started there. Once the door has promised that nothing will be, others may."""
    _door_of(attempt, bench).cancel(attempt.attempt_id)
    ended = JobExit(ExitReason.CANCELLED, f"{NOT_TAKEN}: {error}")
    end = _receipt(attempt, ended, JobStatus(JobPhase.ABSENT), bench)
    return Retry(f"{attempt.door} did not take it: {error}", ends=end)


def watch(run: Run, bench: Bench) -> Step:
    """SUBMITTED: wait for the job; take the checkpoint in, or note why there is none."""
    attempt = _open_one(run, TRAIN, bench)
    if attempt is None:
        return Move(State.LOST, "no attempt is open")
    status = _door_of(attempt, bench).poll(attempt.attempt_id)
    ended = _ended(attempt, status, bench)
    if ended is None:
        return Wait("training", attempt.attempt_id)
    ended = _collected(attempt, ended, bench)
    if ended.reason is ExitReason.COMPLETED:
        return Move(
            State.RETURNED,
            "the checkpoint is here",
            facts={"train_attempt": attempt.attempt_id},
            ends=_receipt(attempt, ended, status, bench),
        )
    return Move(
        State.LOST,
        f"{ended.reason}: {ended.detail}" if ended.detail else str(ended.reason),
        details={"attempt": attempt.attempt_id, "exit_reason": str(ended.reason)},
        ends=_receipt(attempt, ended, status, bench),
        counts=_is_its_fault(ended),
        waits=ended.reason not in NOT_ITS_FAULT | HOPELESS,
        pause_s=ROOM_PAUSE_S if _found_no_room(ended) else None,
    )


def retry(run: Run, bench: Bench) -> Step:
    """LOST: try again, or park the run with its reason."""
    attempts = bench.store.attempts(run.run_id, TRAIN)
    if attempts and attempts[-1].exit_reason in HOPELESS:
        return Move(State.FAILED, f"parked, it would fail again: {run.reason}")
    if run.tries >= bench.max_attempts:
        return Move(State.FAILED, f"parked after {run.tries} tries: {run.reason}")
    return Move(State.PLANNED, f"once more after: {run.reason}")


def verify(run: Run, bench: Bench) -> Step:
    """RETURNED: measure the checkpoint in a process of its own, and ask the gate."""
    attempt = _open_one(run, MEASURE, bench)
    if attempt is None:
        control = _train_control(run, bench)
        if control is not None:
            return control
        busy = _busy_with(run, MEASURE, bench, LOCAL)
        if busy is not None:
            return Wait(f"the door {LOCAL} is taken by {busy}")
        try:
            digest = bench.rooms.verify_checkpoint(_checkpoint(run, bench)).digest
        except VerificationFailed as error:
            return Move(State.REJECTED, f"not a checkpoint: {error}")
        return _start_measuring(run, digest, bench)
    status = _door_of(attempt, bench).poll(attempt.attempt_id)
    if status.phase is JobPhase.ABSENT:
        return _start_measuring(run, attempt.spec["config"]["checkpoint_digest"], bench)
    ended = _ended(attempt, status, bench)
    if ended is None:
        return Wait("measuring", attempt.attempt_id)
    end = _receipt(attempt, ended, status, bench)
    if ended.reason is not ExitReason.COMPLETED:
        reason = f"measuring: {ended.reason}: {ended.detail}"
        is_its_fault = _is_its_fault(ended)
        waits = is_its_fault or _found_no_room(ended)
        return Retry(reason, counts=is_its_fault, waits=waits, ends=end)
    return _judge(run, attempt, end, bench)


def prove(run: Run, bench: Bench) -> Step:
    """VERIFIED: sign the statement and log it. One run at a time between proof and promotion."""
    from scf.verification.gate import Looks

    others = [other.run_id for other in bench.store.runs({State.PROVEN}) if other != run]
    if others:
        return Wait(f"{others[0]} is being promoted")
    champion = bench.rooms.champion()
    now = champion.name if champion is not None else None
    if now != run.facts["measured_against"]:
        return Move(
            State.RETURNED, f"measured against {run.facts['measured_against']}, {now} stands now"
        )
    record = bench.rooms.attest(
        run.run_id,
        checkpoint=_checkpoint(run, bench),
        plan=bench.store.plan(run.run_id),
        parent=run.facts.get("parent"),
        report_path=_report(run, bench) / "report.json",
        has_champion=now is not None,
        looks=Looks.of_trace(run.facts["gate"]["trace"]),
    )
    return Move(State.PROVEN, f"stated in {record.name}", facts={"proof": record.name})


def promote(run: Run, bench: Bench) -> Step:
    """PROVEN: make it a generation of the zoo, and the champion."""
    generation = bench.rooms.promote(
        run.run_id,
        checkpoint=_checkpoint(run, bench),
        plan=bench.store.plan(run.run_id),
        report_folder=_report(run, bench),
        proof=run.facts["proof"],
    )
    bench.rooms.anchor()  # frozen at the first promotion
    return Move(State.PROMOTED, f"it is {generation.name}", facts={"generation": generation.name})


def cancel(run: Run, bench: Bench) -> Step:
    """Any active state: the operator wants its end. First its job ends, then the run does."""
    now = bench.rooms.clock.monotonic()
    ends: list[AttemptEnd] = []
    for attempt in (a for a in bench.store.attempts(run.run_id) if a.is_open):
        door = _door_of(attempt, bench)
        since = bench.told_to_end.get(attempt.attempt_id)
        if since is None or now - since > CANCEL_GRACE_S:
            # Also where the door does not know it: then it never starts.
            door.cancel(attempt.attempt_id, at_once=since is not None)
            bench.told_to_end[attempt.attempt_id] = now
        status = door.poll(attempt.attempt_id)
        if status.phase is JobPhase.RUNNING:
            return Wait("its job is ending", attempt.attempt_id)
        ended = status.exit or JobExit(ExitReason.CANCELLED, "it never started")
        ends.append(_receipt(attempt, ended, status, bench))
    if len(ends) > 1:
        return Retry("cancelled; its attempts are being closed", counts=False, waits=False,
                     ends=ends[0])  # fmt: skip
    return Move(State.CANCELLED, "the operator asked for it", ends=ends[0] if ends else None)


# What is done with a run that stands in a state. PROMOTED is left by the weekly release.
STAGES: Mapping[State, Stage] = MappingProxyType(
    {
        State.DISCOVERED: validate,
        State.VALIDATED: decide,
        State.PLANNED: submit,
        State.SUBMITTED: watch,
        State.LOST: retry,
        State.RETURNED: verify,
        State.VERIFIED: prove,
        State.PROVEN: promote,
    }
)

# Stages that only record what has happened anyway; a paused conductor goes on with these.
RECORDING = frozenset({State.SUBMITTED})


def _train_control(run: Run, bench: Bench) -> Step | None:
    """Where it is wanted: the same plan and budget from nothing. None once there is no more to do.

    A control that fails keeps no run waiting: the report is then without it.
    """
    if not run.facts.get("parent") or not bench.rooms.config.daemon.scratch_control:
        return None
    attempts = bench.store.attempts(run.run_id, CONTROL)
    if attempts and not attempts[-1].is_open:
        return None
    files = _training_files(run, bench)
    name = str(run.facts.get("door", LOCAL))
    busy = _busy_with(run, CONTROL, bench, name)
    if busy is not None:
        return Wait(f"the door {name} is taken by {busy}")
    attempt = attempts[-1] if attempts else _open_attempt(run, CONTROL, files, {}, bench, door=name)
    door = _door_of(attempt, bench)
    status = door.poll(attempt.attempt_id)
    if status.phase is JobPhase.ABSENT:
        door.submit(JobSpec.from_json(dict(attempt.spec)), files)
        return Wait("training the control", attempt.attempt_id)
    ended = _ended(attempt, status, bench)
    if ended is None:
        return Wait("training the control", attempt.attempt_id)
    ended = _collected(attempt, ended, bench)
    end = _receipt(attempt, ended, status, bench)
    return Retry(f"the control has ended: {ended.reason}", counts=False, waits=False, ends=end)


def _training_files(run: Run, bench: Bench) -> dict[str, bytes]:
    """What a training job is given beside fossils and weights."""
    return {
        "plan.json": canonical_json(bench.store.plan(run.run_id)),
        "train_config.json": canonical_json(run.intent["config"]),
    }


def _collected(attempt: Attempt, ended: JobExit, bench: Bench) -> JobExit:
    """Take a completed job's outputs in; how it ended once they were looked at."""
    if ended.reason is ExitReason.COMPLETED:
        try:
            _door_of(attempt, bench).collect(attempt.attempt_id)
        except BundleMismatch as error:
            detail = f"not collected: {error}"
            return dataclasses.replace(ended, reason=ExitReason.WORKER_ERROR, detail=detail)
    return ended


def _control(run: Run, bench: Bench) -> Path | None:
    """The control's checkpoint, if there is one."""
    attempts = bench.store.attempts(run.run_id, CONTROL)
    if not attempts or attempts[-1].exit_reason != ExitReason.COMPLETED:
        return None
    return bench.rooms.jobs.path / attempts[-1].attempt_id / "outputs" / "checkpoint"


def _start_measuring(run: Run, digest: str, bench: Bench) -> Step:
    champion = bench.rooms.champion()
    files = {"plan.json": canonical_json(bench.store.plan(run.run_id))}
    folders = {"checkpoint": _checkpoint(run, bench)}
    if champion is not None:
        folders["champion"] = champion.checkpoint
        for weeks, earlier in bench.rooms.earlier_champions():
            folders[f"{EARLIER}-{weeks}-{earlier.name}"] = earlier.checkpoint
        control = _control(run, bench)
        if control is not None:
            folders["scratch"] = control
        anchor = bench.rooms.anchor()
        if anchor is not None:
            files["anchor.json"] = anchor.read_bytes()
    config = {
        "checkpoint_digest": digest,
        "measured_against": champion.name if champion is not None else None,
        "cache_share": bench.rooms.config.training.cache_share,
    }
    # What came back from elsewhere is believed when it was measured here.
    attempt = _open_attempt(run, MEASURE, files, folders, bench, config, door=LOCAL)
    _door_of(attempt, bench).submit(JobSpec.from_json(dict(attempt.spec)), files)
    return Wait("measuring", attempt.attempt_id)


def _judge(run: Run, attempt: Attempt, end: AttemptEnd, bench: Bench) -> Step:
    config = attempt.spec["config"]
    try:
        bundle = _door_of(attempt, bench).collect(attempt.attempt_id)
        report, decision = bench.rooms.judge(
            bundle / "outputs" / "report" / "report.json",
            checkpoint_digest=config["checkpoint_digest"],
            plan_id=run.facts["plan_id"],
            has_champion=config["measured_against"] is not None,
            looks=bench.rooms.looks(run.run_id) if config["measured_against"] else None,
        )
    except (InputError, BundleMismatch) as error:
        return Retry(f"the report cannot be used: {error}", ends=end)
    facts = {
        "checkpoint_digest": config["checkpoint_digest"],
        "measured_against": config["measured_against"],
        "measure_attempt": attempt.attempt_id,
        "gate": decision.to_json(),
        "dsm_loss": report.dsm_loss.mean if report.dsm_loss is not None else None,
        "baseline_dsm_loss": report.baseline.mean,
    }
    to = State.VERIFIED if decision.promote else State.REJECTED
    return Move(to, "; ".join(decision.reasons), facts=facts, ends=end)


def _open_attempt(
    run: Run,
    kind: str,
    files: Mapping[str, bytes],
    folders: Mapping[str, Path],
    bench: Bench,
    config: Mapping[str, Any] | None = None,
    *,
    door: str,
) -> Attempt:
    """The run's open attempt of this kind; what is to be done is on the medium before it is."""
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
        ).to_json()

    return bench.store.open_attempt(run.run_id, kind, door, spec_of)


def _door_of(attempt: Attempt, bench: Bench) -> Dispatcher:
    """The door that an attempt went through. Raises DoorUnavailable when it cannot be opened."""
    return bench.rooms.doors.get(attempt.door)


def _open_one(run: Run, kind: str, bench: Bench) -> Attempt | None:
    attempts = bench.store.attempts(run.run_id, kind)
    return attempts[-1] if attempts and attempts[-1].is_open else None


def _busy_with(run: Run, kind: str, bench: Bench, door: str) -> str | None:
    """Who keeps the door busy; None when this run may have it."""
    others = [
        a.attempt_id
        for a in bench.store.open_attempts()
        if a.door == door and (a.run_id, a.kind) != (run.run_id, kind)
    ]
    return others[0] if len(others) >= JOBS_PER_DOOR else None


def _ended(attempt: Attempt, status: JobStatus, bench: Bench) -> JobExit | None:
    """How the job ended; None while it runs. One that outstays its deadline is ended here."""
    if status.phase is JobPhase.ENDED:
        bench.seen_running.pop(attempt.attempt_id, None)
        return status.exit
    if status.phase is JobPhase.ABSENT:
        return JobExit(ExitReason.LOST, "the door does not know it")
    now = bench.rooms.clock.monotonic()
    since = bench.seen_running.setdefault(attempt.attempt_id, now)
    if now - since > float(attempt.spec["deadline_s"]) + DEADLINE_GRACE_S:
        _door_of(attempt, bench).cancel(attempt.attempt_id, at_once=True)
    return None


def _is_its_fault(ended: JobExit) -> bool:
    """Whether an end counts as one of the run's tries."""
    return ended.reason not in NOT_ITS_FAULT and not _found_no_room(ended)


def _found_no_room(ended: JobExit) -> bool:
    """A job that found a disk full says nothing about itself: it waits until there is room."""
    is_error = ended.reason is ExitReason.WORKER_ERROR
    return is_error and any(words in ended.detail for words in _NO_ROOM)


def _receipt(attempt: Attempt, ended: JobExit, status: JobStatus, bench: Bench) -> AttemptEnd:
    receipt = {
        **ended.to_json(),
        **bench.rooms.placement(),
        "placement": dict(status.placement),
        "cost_usd": float(status.placement.get("cost_usd", 0.0)),
        "energy_j": ended.usage.get("energy_j"),
        "inputs": list(attempt.spec["inputs"]),
    }
    return AttemptEnd(attempt.attempt_id, str(ended.reason), receipt)


def _bundle_to_resume(run: Run, bench: Bench) -> Path | None:
    """The bundle of the last try, if a new one can go on from what it left."""
    attempts = bench.store.attempts(run.run_id, TRAIN)
    closed = [a for a in attempts if not a.is_open and not was_refused(a)]
    if not closed or closed[-1].exit_reason not in INTERRUPTED:
        return None
    bundle = bench.rooms.jobs.path / closed[-1].attempt_id
    return bundle if bundle.is_dir() else None


def _checkpoint(run: Run, bench: Bench) -> Path:
    return bench.rooms.jobs.path / str(run.facts["train_attempt"]) / "outputs" / "checkpoint"


def _report(run: Run, bench: Bench) -> Path:
    return bench.rooms.jobs.path / str(run.facts["measure_attempt"]) / "outputs" / "report"
