"""What a stage said is recorded; what nobody can know yet is not held against a run."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from scf.core.errors import SubmissionUnknown
from scf.daemon.conductor import Conductor
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.job import ExitReason, Job, JobExit, JobPhase, JobSpec, JobStatus
from scf.runs.state import RESTING, State
from scf.storage.partitions import Folder
from support.clocks import ManualClock
from support.conducting import Works
from support.file_door import FileDoor

MAX_ATTEMPTS = 3


class MumblingDoor(FileDoor):
    """Starts jobs, and so many times does not say whether it did; the first jobs run out of memory.

    Attributes:
        silent: Answers that are lost, of each job.
        short_of_memory: So many training jobs end for want of memory.
    """

    silent = 1
    short_of_memory = 0

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
        if kind.endswith("train-ebdm") and int(number) <= self.short_of_memory:
            return JobStatus(JobPhase.ENDED, JobExit(ExitReason.OUT_OF_MEMORY))
        return super().poll(job_id)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path, {"settle_s": 0.0, "auto_release": False, "max_attempts": MAX_ATTEMPTS})
    works.drop("a.ndjson", range(120), age_s=9e6)
    return works


def life(works: Works, **door: int) -> tuple[State, str, list[str | None]]:
    """Tick until the run is through: its state, its reason, and how its training attempts ended."""
    clock = ManualClock()
    kind = type("Door", (MumblingDoor,), door)

    def open_door(jobs: Folder, home: Path) -> Dispatcher:
        return kind(jobs, home)

    with works.conductor(clock, open_door=open_door) as (conductor, _):
        _tick_until_rest(conductor, clock)
        (run,) = conductor.store.runs()
        ends = [a.exit_reason for a in conductor.store.attempts(run.run_id, "train_ebdm")]
    return run.state, run.reason, ends


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
    state, _, ends = life(works, silent=1, short_of_memory=2)

    assert ends == ["out_of_memory", "out_of_memory", "completed"]
    assert state is State.PROMOTED


def test_a_door_that_never_answers_does_not_keep_a_run_for_ever(works: Works) -> None:
    state, reason, ends = life(works, silent=10**6)

    assert state is State.FAILED
    assert reason == "parked after 3 tries: the answer was lost"
    assert ends == ["worker_error"]
