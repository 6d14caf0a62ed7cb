"""What a stage said is recorded; what nobody can know yet is not held against a run."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from scf.core.errors import SubmissionUnknown
from scf.daemon.conductor import Conductor
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.job import ExitReason, Job, JobExit, JobPhase, JobSpec, JobStatus
from scf.runs.record import Attempt, Run
from scf.runs.state import RESTING, State
from scf.storage.partitions import Folder
from support.clocks import ManualClock
from support.conducting import Works
from support.file_door import FileDoor

MAX_ATTEMPTS = 3


class MumblingDoor(FileDoor):
    """Starts jobs, and so many times does not say whether it did; the first ones end as they are told to.

    Attributes:
        silent: Answers that are lost, of each job.
        ends: How the first training jobs end; later ones complete.
    """

    silent = 0
    ends: tuple[JobExit, ...] = ()

    def __init__(self, jobs: Folder, home: Path) -> None:
        super().__init__(jobs, home)
        self.asked: Counter[str] = Counter()

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        job = super().submit(spec, files, resume=resume)
        self.asked[spec.job_id] += 1
        if self.asked[spec.job_id] <= self.silent:
            raise SubmissionUnknown("the answer was lost")
        return job

    def poll(self, job_id: str) -> JobStatus:
        kind, _, number = job_id.rpartition("-")
        if kind.endswith("train-ebdm") and int(number) <= len(self.ends):
            return JobStatus(JobPhase.ENDED, self.ends[int(number) - 1])
        return super().poll(job_id)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path, {"settle_s": 0.0, "auto_release": False, "max_attempts": MAX_ATTEMPTS})
    works.drop("a.ndjson", range(120), age_s=9e6)
    return works


def life(works: Works, **door: object) -> tuple[Run, list[Attempt]]:
    """Tick until the run is through: how it stands, and its attempts."""
    clock = ManualClock()
    kind = type("Door", (MumblingDoor,), door)

    def open_door(jobs: Folder, home: Path) -> Dispatcher:
        return kind(jobs, home)

    with works.conductor(clock, open_door=open_door) as (conductor, _):
        _tick_until_rest(conductor, clock)
        (run,) = conductor.store.runs()
        return run, conductor.store.attempts(run.run_id)


def _tick_until_rest(conductor: Conductor, clock: ManualClock) -> None:
    for _ in range(300):
        conductor.tick()
        clock.advance(60.0)
        runs = conductor.store.runs()
        if runs and runs[0].state in RESTING:
            return
    raise AssertionError("the run did not come to an end")


def test_lost_answers_do_not_use_up_the_tries_of_a_run(works: Works) -> None:
    """Each answer is lost once and two jobs run out of memory: the third job is still waited for."""
    out_of_memory = JobExit(ExitReason.OUT_OF_MEMORY)
    run, attempts = life(works, silent=1, ends=(out_of_memory, out_of_memory))

    ends = [attempt.exit_reason for attempt in attempts if attempt.kind == "train_ebdm"]
    assert ends == ["out_of_memory", "out_of_memory", "completed"]
    assert run.state is State.PROMOTED


def test_a_door_that_never_answers_does_not_keep_a_run_for_ever(works: Works) -> None:
    run, attempts = life(works, silent=10**6)

    assert run.state is State.FAILED
    assert run.reason == "parked after 3 tries: the answer was lost"
    assert [attempt.exit_reason for attempt in attempts] == ["worker_error"]


def with_joules(works: Works, joules: float) -> None:
    with (works.home / "scf.toml").open("a") as settings:
        settings.write(f"\n[run]\njoules_max = {joules}\nlocal_power_w = 0.001\n")


def test_a_later_try_has_the_joules_that_the_earlier_ones_left(works: Works) -> None:
    """Training alone is bounded by them: what was trained is measured."""
    with_joules(works, 100.0)
    preempted = JobExit(ExitReason.PREEMPTED, usage={"energy_j": 70.0})
    run, attempts = life(works, ends=(preempted,))

    given = {attempt.attempt_id.removeprefix(run.run_id): attempt.spec.get("joules_max")
             for attempt in attempts}  # fmt: skip
    assert given == {"-train-ebdm-1": 100.0, "-train-ebdm-2": 30.0, "-measure-1": None}
    assert run.state is State.PROMOTED


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (ExitReason.OVER_BUDGET, "parked, it would fail again: over_budget"),
        (ExitReason.PREEMPTED, "parked, its joules are used up: once more after: preempted"),
    ],
)
def test_a_run_whose_joules_are_used_up_is_parked(
    works: Works, reason: ExitReason, said: str
) -> None:
    with_joules(works, 100.0)
    run, attempts = life(works, ends=(JobExit(reason, usage={"energy_j": 101.0}),))

    assert run.state is State.FAILED
    assert run.reason == said
    assert [attempt.exit_reason for attempt in attempts] == [reason]
