"""The local door: a job is a detached process of this machine.

The worker gets a session of its own, so that neither the end of the daemon nor a Ctrl-C in its
terminal reaches it, and a daemon that comes back finds it. What says "this job is alive" is the
lock on its small file in the home (`HeldFile`), which the job's processes inherit: there is no
moment at which a started job is not known to be started. The file lies on the internal disk, so
that a job can be found and ended when the drive has gone.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.core.errors import DoorUnavailable, InputError, UsageError
from scf.dispatch.bundle import Bundle, make_bundle
from scf.dispatch.job import (
    ExitReason,
    Job,
    JobExit,
    JobPhase,
    JobSpec,
    JobStatus,
    check_spec,
)
from scf.dispatch.process import HeldFile, ProcessMark, kill_group, start_time_text
from scf.storage import durable
from scf.storage.partitions import Folder

WORKER = (sys.executable, "-m", "scf.daemon.gpu_worker")

# Children of this process are reaped here; after a restart they are init's, and only the lock
# tells. They belong to the process, not to a door, so they outlive one.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


class LocalDoor:
    """Runs jobs on this machine. Promises: `Dispatcher`.

    Args:
        jobs: Where bundles lie, on the drive.
        home: The home; the jobs' small files go to `home/local_jobs`.
        worker: The worker's command line; the bundle's path is added to it.
    """

    name = "local"

    def __init__(self, jobs: Folder, home: Path, *, worker: Sequence[str] = WORKER) -> None:
        self.jobs = jobs
        self._home = home
        self._state = home / "local_jobs"
        self._worker = tuple(worker)
        self._state.mkdir(parents=True, exist_ok=True)

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        check_spec(spec)
        if spec.nodes > 1:
            raise UsageError(f"{spec.job_id}: {spec.nodes} nodes; this machine is one")
        self.jobs.check()
        bundle = make_bundle(self.jobs, spec, files, resume=resume)
        held = self._held(spec.job_id)
        descriptor = held.acquire()
        if descriptor is None or self._has_ended(spec.job_id):
            if descriptor is not None:
                os.close(descriptor)
            return Job(spec.job_id, self._placement(spec.job_id))
        try:
            placement = self._spawn(bundle, held, descriptor)
        finally:
            # The worker has inherited the lock; closing our copy does not release it.
            os.close(descriptor)
        return Job(spec.job_id, placement)

    def poll(self, job_id: str) -> JobStatus:
        _reap()
        placement = self._placement(job_id)
        # Alive first, then the exit record: in the other order a job could end between the looks,
        # and would be taken for lost.
        alive = self._held(job_id).is_held
        record = self._exit_record(job_id)
        if record is not None:
            if record.reason is ExitReason.PREEMPTED and self._is_cancelled(job_id):
                record = dataclasses.replace(record, reason=ExitReason.CANCELLED)
            return JobStatus(JobPhase.ENDED, record, placement)
        if alive:
            self._end_orphans(job_id, placement)
            return JobStatus(JobPhase.RUNNING, None, placement)
        if self._is_cancelled(job_id):
            ended = JobExit(ExitReason.CANCELLED, "cancelled before it left an exit record")
            return JobStatus(JobPhase.ENDED, ended, placement)
        if not self._held(job_id).path.exists():
            return JobStatus(JobPhase.ABSENT)
        ended = JobExit(ExitReason.LOST, "its processes are gone and it left no exit record")
        return JobStatus(JobPhase.ENDED, ended, placement)

    def collect(self, job_id: str) -> Path:
        bundle = Bundle(self.jobs.path / job_id)
        bundle.verify_outputs()
        return bundle.path

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        # Written before the signal: whoever polls later knows that this end was asked for.
        durable.write_file(self._state / f"{job_id}.cancelled", b"")
        held = self._held(job_id)
        if not held.is_held:
            return
        placement = held.read()
        pid = placement.get("pid")
        if not isinstance(pid, int) or pid <= 1:
            raise DoorUnavailable(
                f"{held.path}: job {job_id} is alive and has not said which process it is",
                remedy="Try again in a second.",
            )
        if not at_once and ProcessMark(pid, placement.get("process_started")).is_alive:
            # The worker tells its program, once, and kills it if it does not listen.
            os.kill(pid, signal.SIGTERM)
            return
        # The lock is held, so some process of this job lives; it is in the group that `pid` leads,
        # and a process id is not given out again while a group of that number exists.
        kill_group(pid, signal.SIGKILL)

    def _end_orphans(self, job_id: str, placement: dict[str, Any]) -> None:
        """A worker that died before it could pass a cancellation on leaves its program to us."""
        pid = placement.get("pid")
        if not isinstance(pid, int) or not self._is_cancelled(job_id):
            return
        if not ProcessMark(pid, placement.get("process_started")).is_alive:
            kill_group(pid, signal.SIGKILL)

    def _spawn(self, bundle: Bundle, held: HeldFile, descriptor: int) -> dict[str, Any]:
        command = [
            *self._worker,
            str(bundle.path),
            "--held-fd",
            str(descriptor),
            "--held-file",
            str(held.path),
            "--home",
            str(self._home),
        ]
        try:
            with (bundle.path / "worker.log").open("ab") as log:
                child = subprocess.Popen(
                    command,
                    cwd=bundle.path,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(descriptor,),
                )
        except OSError as error:
            raise DoorUnavailable(f"the worker could not be started: {error}") from error
        _children[child.pid] = child
        placement = placement_of(child.pid, bundle.path)
        HeldFile.write(descriptor, placement)
        return placement

    def _held(self, job_id: str) -> HeldFile:
        return HeldFile(self._state / f"{job_id}.lock")

    def _placement(self, job_id: str) -> dict[str, Any]:
        return self._held(job_id).read()

    def _has_ended(self, job_id: str) -> bool:
        return self._exit_record(job_id) is not None or self._is_cancelled(job_id)

    def _is_cancelled(self, job_id: str) -> bool:
        return (self._state / f"{job_id}.cancelled").exists()

    def _exit_record(self, job_id: str) -> JobExit | None:
        try:
            return Bundle(self.jobs.path / job_id).exit()
        except InputError as error:
            return JobExit(ExitReason.WORKER_ERROR, f"the exit record cannot be used: {error}")


def placement_of(pid: int, bundle: Path) -> dict[str, Any]:
    """What the small file says of a job: enough to find its process group again."""
    return {
        "door": "local",
        "host": socket.gethostname(),
        "pid": pid,
        "process_started": start_time_text(pid),
        "bundle": str(bundle),
    }


def _reap() -> None:
    for pid, child in list(_children.items()):
        with contextlib.suppress(ChildProcessError):
            if child.poll() is not None:
                del _children[pid]
