"""The table of stages: one bounded, repeatable function for each arrow in the life of a run.

A stage looks at a run, does its one thing, and says what follows: a move, a wait, or another try
later. It may be called again for the same run at any time (after a crash, it is), so everything it
does is under a name that the same run always has: an attempt's id, a proof record, a generation.
The conductor looks at the emergency lock before each stage and records what the stage says.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scf.core.canonical import canonical_json
from scf.core.errors import DoorUnavailable, InputError, VerificationFailed
from scf.daemon.attempts import (
    CONTROL,
    MEASURE,
    TRAIN,
    bundle_to_resume,
    busy_with,
    checkpoint_of,
    collected,
    door_of,
    found_no_room,
    how_it_ended,
    is_its_fault,
    is_out_of_joules,
    open_attempt,
    open_one,
    receipt_of,
    report_of,
    training_files,
)
from scf.daemon.decide import Decision
from scf.daemon.offers import NOT_TAKEN, choose_door
from scf.daemon.planning import NoPlan
from scf.daemon.stage import Bench, Move, Retry, Stage, Step, Wait
from scf.dispatch.dispatcher import BundleMismatch
from scf.dispatch.job import (
    HOPELESS,
    NOT_ITS_FAULT,
    ExitReason,
    JobExit,
    JobPhase,
    JobSpec,
    JobStatus,
)
from scf.dispatch.registry import LOCAL
from scf.runs.record import Attempt, AttemptEnd, Run
from scf.runs.state import State

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan

# Inputs of a measuring job: `earlier-4-ebdm_gen0002` stood four weeks ago.
EARLIER = "earlier"

# Manifests that are read and verified in one go: some tenths of a second.
SHARDS_PER_LOOK = 500
# A job that found no room on a disk is tried again after this.
ROOM_PAUSE_S = 300.0
# A job that was asked to end for a cancelled run may save its state for so long.
CANCEL_GRACE_S = 60.0


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
    under_way = open_one(run, TRAIN, bench)
    # Weighed anew for each try: a door may have come back, or have refused the last one.
    if under_way is not None:
        name = under_way.door
    else:
        if is_out_of_joules(run, bench):
            return Move(State.FAILED, f"parked, its joules are used up: {run.reason}")
        choice = _choose_door(run, bench)
        if choice.door is None:
            return Retry(choice.reason, counts=False)
        name = choice.door
    busy = busy_with(run, TRAIN, bench, name)
    if busy is not None:
        return Wait(f"the door {name} is taken by {busy}")
    files = training_files(run, bench)
    folders = {}
    if run.facts.get("parent"):
        parent = bench.rooms.zoo().generation(run.facts["parent"]["generation"])
        folders["parent"] = parent.checkpoint
    attempt = open_attempt(run, TRAIN, files, folders, bench, door=name)
    resume = bundle_to_resume(run, bench)
    spec = JobSpec.from_json(dict(attempt.spec))
    try:
        door_of(attempt, bench).submit(spec, files, resume=resume)
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
    door_of(attempt, bench).cancel(attempt.attempt_id)
    ended = JobExit(ExitReason.CANCELLED, f"{NOT_TAKEN}: {error}")
    end = receipt_of(attempt, ended, JobStatus(JobPhase.ABSENT), bench)
    return Retry(f"{attempt.door} did not take it: {error}", ends=end)


def watch(run: Run, bench: Bench) -> Step:
    """SUBMITTED: wait for the job; take the checkpoint in, or note why there is none."""
    attempt = open_one(run, TRAIN, bench)
    if attempt is None:
        return Move(State.LOST, "no attempt is open")
    status = door_of(attempt, bench).poll(attempt.attempt_id)
    ended = how_it_ended(attempt, status, bench)
    if ended is None:
        return Wait("training", attempt.attempt_id)
    ended = collected(attempt, ended, bench)
    if ended.reason is ExitReason.COMPLETED:
        return Move(
            State.RETURNED,
            "the checkpoint is here",
            facts={"train_attempt": attempt.attempt_id},
            ends=receipt_of(attempt, ended, status, bench),
        )
    return Move(
        State.LOST,
        f"{ended.reason}: {ended.detail}" if ended.detail else str(ended.reason),
        details={"attempt": attempt.attempt_id, "exit_reason": str(ended.reason)},
        ends=receipt_of(attempt, ended, status, bench),
        counts=is_its_fault(ended),
        waits=ended.reason not in NOT_ITS_FAULT | HOPELESS,
        pause_s=ROOM_PAUSE_S if found_no_room(ended) else None,
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
    attempt = open_one(run, MEASURE, bench)
    if attempt is None:
        control = _train_control(run, bench)
        if control is not None:
            return control
        busy = busy_with(run, MEASURE, bench, LOCAL)
        if busy is not None:
            return Wait(f"the door {LOCAL} is taken by {busy}")
        try:
            digest = bench.rooms.verify_checkpoint(checkpoint_of(run, bench)).digest
        except VerificationFailed as error:
            return Move(State.REJECTED, f"not a checkpoint: {error}")
        return _start_measuring(run, digest, bench)
    status = door_of(attempt, bench).poll(attempt.attempt_id)
    if status.phase is JobPhase.ABSENT:
        return _start_measuring(run, attempt.spec["config"]["checkpoint_digest"], bench)
    ended = how_it_ended(attempt, status, bench)
    if ended is None:
        return Wait("measuring", attempt.attempt_id)
    end = receipt_of(attempt, ended, status, bench)
    if ended.reason is not ExitReason.COMPLETED:
        reason = f"measuring: {ended.reason}: {ended.detail}"
        counts = is_its_fault(ended)
        return Retry(reason, counts=counts, waits=counts or found_no_room(ended), ends=end)
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
        checkpoint=checkpoint_of(run, bench),
        plan=bench.store.plan(run.run_id),
        parent=run.facts.get("parent"),
        report_path=report_of(run, bench) / "report.json",
        has_champion=now is not None,
        looks=Looks.of_trace(run.facts["gate"]["trace"]),
    )
    return Move(State.PROVEN, f"stated in {record.name}", facts={"proof": record.name})


def promote(run: Run, bench: Bench) -> Step:
    """PROVEN: make it a generation of the zoo, and the champion."""
    generation = bench.rooms.promote(
        run.run_id,
        checkpoint=checkpoint_of(run, bench),
        plan=bench.store.plan(run.run_id),
        report_folder=report_of(run, bench),
        proof=run.facts["proof"],
    )
    bench.rooms.anchor()  # frozen at the first promotion
    return Move(State.PROMOTED, f"it is {generation.name}", facts={"generation": generation.name})


def cancel(run: Run, bench: Bench) -> Step:
    """Any active state: the operator wants its end. First its job ends, then the run does."""
    now = bench.rooms.clock.monotonic()
    ends: list[AttemptEnd] = []
    for attempt in (a for a in bench.store.attempts(run.run_id) if a.is_open):
        door = door_of(attempt, bench)
        since = bench.told_to_end.get(attempt.attempt_id)
        if since is None or now - since > CANCEL_GRACE_S:
            # Also where the door does not know it: then it never starts.
            door.cancel(attempt.attempt_id, at_once=since is not None)
            bench.told_to_end[attempt.attempt_id] = now
        status = door.poll(attempt.attempt_id)
        if status.phase is JobPhase.RUNNING:
            return Wait("its job is ending", attempt.attempt_id)
        ended = status.exit or JobExit(ExitReason.CANCELLED, "it never started")
        ends.append(receipt_of(attempt, ended, status, bench))
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
    if not attempts[-1].is_open if attempts else is_out_of_joules(run, bench):
        return None
    files = training_files(run, bench)
    name = str(run.facts.get("door", LOCAL))
    busy = busy_with(run, CONTROL, bench, name)
    if busy is not None:
        return Wait(f"the door {name} is taken by {busy}")
    attempt = attempts[-1] if attempts else open_attempt(run, CONTROL, files, {}, bench, door=name)
    door = door_of(attempt, bench)
    status = door.poll(attempt.attempt_id)
    if status.phase is JobPhase.ABSENT:
        door.submit(JobSpec.from_json(dict(attempt.spec)), files)
        return Wait("training the control", attempt.attempt_id)
    ended = how_it_ended(attempt, status, bench)
    if ended is None:
        return Wait("training the control", attempt.attempt_id)
    ended = collected(attempt, ended, bench)
    end = receipt_of(attempt, ended, status, bench)
    return Retry(f"the control has ended: {ended.reason}", counts=False, waits=False, ends=end)


def _control(run: Run, bench: Bench) -> Path | None:
    """The control's checkpoint, if there is one."""
    attempts = bench.store.attempts(run.run_id, CONTROL)
    if not attempts or attempts[-1].exit_reason != ExitReason.COMPLETED:
        return None
    return bench.rooms.jobs.path / attempts[-1].attempt_id / "outputs" / "checkpoint"


def _start_measuring(run: Run, digest: str, bench: Bench) -> Step:
    champion = bench.rooms.champion()
    files = {"plan.json": canonical_json(bench.store.plan(run.run_id))}
    folders = {"checkpoint": checkpoint_of(run, bench)}
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
    attempt = open_attempt(run, MEASURE, files, folders, bench, config, door=LOCAL)
    door_of(attempt, bench).submit(JobSpec.from_json(dict(attempt.spec)), files)
    return Wait("measuring", attempt.attempt_id)


def _judge(run: Run, attempt: Attempt, end: AttemptEnd, bench: Bench) -> Step:
    config = attempt.spec["config"]
    try:
        bundle = door_of(attempt, bench).collect(attempt.attempt_id)
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
