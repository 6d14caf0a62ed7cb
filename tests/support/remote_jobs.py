"""Small jobs through a door to another machine, and waiting for their end."""

from scf.core.errors import DoorUnavailable
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.job import JobExit, JobSpec
from support.waiting import wait_for


def tiny(job_id: str = "job-1", **todo: object) -> JobSpec:
    """A job of `tiny_worker.py`: what its program does is in `todo`."""
    return JobSpec(job_id=job_id, kind="tiny", deadline_s=600.0, config=todo)


def ended(door: Dispatcher, job_id: str = "job-1", *, limit_s: float = 120.0) -> JobExit:
    """How it ended; a door that does not answer for a while is asked again."""

    def look() -> JobExit | None:
        try:
            return door.poll(job_id).exit
        except DoorUnavailable:
            return None

    return wait_for(look, what=f"{job_id} to end", limit_s=limit_s)
