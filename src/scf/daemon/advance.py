"""Take one run one stage further, and record what came of it: move, wait, retry or park.

The one broad `except` of the conductor is here, around a stage: whatever a stage does, its run gets
a state with a name, and the other runs go on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from scf.core.errors import (
    BudgetExceeded,
    DoorError,
    DriveError,
    EmergencyLocked,
    SubmissionUnknown,
)
from scf.daemon.commands import CANCELS
from scf.daemon.pipeline import RECORDING, STAGES, cancel
from scf.daemon.stage import Bench, Move, Retry, Step, Wait
from scf.dispatch.job import ExitReason
from scf.runs.record import AttemptEnd, Run
from scf.runs.state import ACTIVE, MOVES, State
from scf.storage.failpoint import failpoint

BACKOFF_FIRST_S = 5.0
BACKOFF_MAX_S = 900.0


@dataclass(frozen=True)
class Progress:
    """What came of a stage.

    Attributes:
        run: As it stands now.
        moved: Whether something was recorded, or a part of it done.
        waiting: What it waits for, if it waits; `attempt_id` if that is a job.
        full: Set where a disk had no room for it.
    """

    run: Run
    moved: bool
    waiting: str | None = None
    attempt_id: str | None = None
    full: BudgetExceeded | None = None


def backoff_s(tries: int) -> float:
    """Pause before try number `tries` + 1: doubling, bounded."""
    return float(min(BACKOFF_FIRST_S * 2 ** max(0, tries - 1), BACKOFF_MAX_S))


def is_due(run: Run, now: datetime) -> bool:
    """Whether the run may be looked at. A clock that was set back cannot park a run for days."""
    if run.not_before is None or run.not_before <= now:
        return True
    return run.not_before > now + timedelta(seconds=BACKOFF_MAX_S)


def advance(run: Run, bench: Bench, *, log: Any, talk: Callable[[str], None]) -> Progress:
    """Do the run's next stage.

    Raises:
        EmergencyLocked, DriveError: Not the run's fault; it stays where it is.
    """
    cancels = bench.store.get(CANCELS, {})
    step = _try_stage(run, bench, log, is_cancelled=run.run_id in cancels)
    if isinstance(step, Wait):
        return Progress(run, moved=step.goes_on, waiting=step.reason, attempt_id=step.attempt_id)
    now = bench.rooms.clock.now()
    if isinstance(step, Retry):
        tries = run.tries + step.counts
        if step.counts and tries >= bench.max_attempts:
            step = _park(run, step, bench)
        if isinstance(step, Retry):
            pause_s = backoff_s(tries) if step.waits else 0.0
            later = now + timedelta(seconds=pause_s)
            told = f"{run.state}: {step.reason}"
            run = bench.store.postpone(
                run, step.reason, not_before=later, counts=step.counts, ends=step.ends
            )
            attempt = step.ends.attempt_id if step.ends else None
            log.warning(
                "run.postponed", run=run.run_id, attempt=attempt, reason=told, pause_s=pause_s
            )
            talk(f"{run.run_id}: {told}; again in {pause_s:g} s")
            return Progress(run, moved=True, full=step.full)
    pause_s = backoff_s(run.tries + step.counts) if step.pause_s is None else step.pause_s
    pause = timedelta(seconds=pause_s)
    moved = bench.store.move(
        run,
        step.to,
        step.reason,
        facts=step.facts,
        details=step.details,
        ends=step.ends,
        counts=step.counts,
        not_before=now + pause if step.waits else None,
    )
    log.info(
        "run.moved",
        run=run.run_id,
        attempt=step.ends.attempt_id if step.ends else step.details.get("attempt"),
        start=str(run.state),
        end=str(step.to),
        reason=step.reason,
    )
    talk(f"{run.run_id}: {step.to}: {step.reason}")
    if moved.state not in ACTIVE:
        bench.planner.forget(run.run_id)
    if run.run_id in cancels and moved.state not in ACTIVE:
        bench.store.set(CANCELS, {k: v for k, v in cancels.items() if k != run.run_id})
    return Progress(moved, moved=True)


def _try_stage(run: Run, bench: Bench, log: Any, *, is_cancelled: bool) -> Step:
    try:
        step = (cancel if is_cancelled else STAGES[run.state])(run, bench)
        bench.unanswered.pop(run.run_id, None)
        if not isinstance(step, Wait):
            failpoint("pipeline.effect_done")
        return step
    except (EmergencyLocked, DriveError):
        raise
    except BudgetExceeded as error:
        # Not the run's fault; a smaller run may still find room, so the others go on.
        return Retry(str(error), counts=False, full=error)
    except SubmissionUnknown as error:
        # The job may run, and the door finds it when it is asked again: no failure of the run's
        # own, unless the door never says.
        times = bench.unanswered[run.run_id] = bench.unanswered.get(run.run_id, 0) + 1
        return Retry(str(error), counts=times >= bench.max_attempts)
    except DoorError as error:
        # A door that does not answer says nothing about a job that it has.
        return Retry(str(error), counts=run.state not in RECORDING)
    except Exception as error:
        # A drive that was pulled shows itself in any error at all: look before blaming the run.
        bench.rooms.drive.check()
        log.exception("run.stage_failed", run=run.run_id, state=str(run.state))
        return Retry(f"{type(error).__name__}: {error}")


def _park(run: Run, step: Retry, bench: Bench) -> Move | Retry:
    """The tries are used up: end what is open, keep the reason, keep nobody else waiting.

    While a door does not say that a job of the run is told to end, the run is not parked.
    """
    ends = step.ends
    for attempt in bench.store.attempts(run.run_id):
        if attempt.is_open and (ends is None or ends.attempt_id != attempt.attempt_id):
            try:
                bench.rooms.doors.get(attempt.door).cancel(attempt.attempt_id, at_once=True)
            except DoorError as error:
                reason = f"cannot be parked, its job may run: {error}; {step.reason}"
                return Retry(reason, counts=False, ends=step.ends)
            ends = AttemptEnd(
                attempt.attempt_id, str(ExitReason.WORKER_ERROR), {"detail": step.reason}
            )
    if State.FAILED in MOVES[run.state]:
        reason = f"parked after {run.tries + 1} tries: {step.reason}"
        return Move(State.FAILED, reason, ends=ends, counts=True)
    return Move(State.LOST, step.reason, ends=ends, counts=True)
