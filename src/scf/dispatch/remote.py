"""What doors to other machines share: four verbs here, one follower thread for each open job.

The verbs only read and write small files, and ask the machine at most one short question, so they
keep the conductor's pace. What takes long - finding a machine, sending gigabytes, fetching
checkpoints while the job runs - is done by the job's follower (`follower.py`), one bounded step at
a time, each of which can be done again. A daemon that comes back starts the followers of the jobs
that are asked for; a lock makes sure that a job has one, whoever's it is.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, SystemClock, parse_utc, utc_text
from scf.core.errors import DoorUnavailable, InputError
from scf.core.identity import sha256_hex
from scf.dispatch.bundle import Bundle, make_bundle
from scf.dispatch.follower import Follower, FollowSettings, Machine, MachineGone
from scf.dispatch.job import ExitReason, Job, JobExit, JobPhase, JobSpec, JobStatus, check_spec
from scf.dispatch.remote_state import CancelMark, RemoteJob, RemoteJobs, Stage
from scf.dispatch.transfer import BoxFault, check_tools
from scf.storage.partitions import Folder

# How long `cancel` at once waits for the provider's answer; the follower asks again anyway.
END_WAIT_S = 1.0
END_AGAIN_S = 5.0


class RemoteDoor:
    """A door whose jobs run elsewhere. Promises: `Dispatcher`.

    Args:
        name: Of the door, for receipts.
        machine: Finds, reaches and gives back the machine of a job.
        jobs: Where bundles lie, on the drive.
        home: The home; small files go to `home/NAME_jobs`.
        settings: Intervals, limits, and what is sent.
        clock: Time.
        check: Makes sure that the programs are here which lead there.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        *,
        jobs: Folder,
        home: Path,
        settings: FollowSettings,
        clock: Clock | None = None,
        check: Callable[[], None] = check_tools,
    ) -> None:
        check()
        self.name = name
        self.jobs = jobs
        self._machine = machine
        self._home = home
        self._settings = settings
        self._clock = clock or SystemClock()
        self._records = RemoteJobs(home / f"{name}_jobs")
        self._closing = threading.Event()
        self._followers: dict[str, tuple[threading.Thread, threading.Event]] = {}
        self._followers_lock = threading.Lock()
        self._asked_to_end: dict[str, float] = {}

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        check_spec(spec)
        self.jobs.check()
        bundle = make_bundle(self.jobs, spec, files, resume=resume)
        job_id = spec.job_id
        record = self._records.read(job_id)
        if record is None:
            if self._records.mark(job_id) is not None:
                return Job(job_id, {"door": self.name})
            placement = {"door": self.name, "bundle": str(bundle.path)}
            placement |= self._machine.expect(spec)
            record = RemoteJob(Stage.PLACING, utc_text(self._clock.now()), placement)
            self._records.write(job_id, record)
        self._follow(job_id)
        return Job(job_id, record.placement)

    def poll(self, job_id: str) -> JobStatus:
        record = self._records.read(job_id)
        mark = self._records.mark(job_id)
        if record is None:
            if mark is None:
                return JobStatus(JobPhase.ABSENT)
            return JobStatus(JobPhase.ENDED, JobExit(ExitReason.CANCELLED, mark.why))
        placement = {**record.placement, "stage": str(record.stage)}
        if (cost_usd := self._machine.cost_usd(job_id)) is not None:
            placement["cost_usd"] = round(cost_usd, 4)
        if record.stage is not Stage.RELEASED:
            self._follow(job_id)
        if record.has_ended:
            return JobStatus(JobPhase.ENDED, self._how_it_ended(job_id, record, mark), placement)
        if record.trouble is not None:
            placement["trouble"] = record.trouble.text
            since = parse_utc(record.trouble.since)
            if self._clock.now() - since > timedelta(seconds=self._settings.patience_s):
                raise DoorUnavailable(
                    f"{job_id}: nothing learnt since {record.trouble.since}: {record.trouble.text}"
                )
        return JobStatus(JobPhase.RUNNING, None, placement)

    def collect(self, job_id: str) -> Path:
        record = self._records.read(job_id)
        if record is not None and not record.has_ended:
            raise DoorUnavailable(f"{job_id}: its outputs are not here yet")
        bundle = Bundle(self.jobs.path / job_id)
        bundle.verify_outputs()
        return bundle.path

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        # Written first: from here on the follower sees to it, and a job not yet started never is.
        self._records.set_mark(job_id, CancelMark(at_once, "cancelled"))
        record = self._records.read(job_id)
        if record is None or record.has_ended:
            return
        self._follow(job_id, wake=True)
        if at_once and self._machine.is_rented and not self._was_asked_lately(job_id):
            # Its processes end with the machine. The follower sees that it goes; this is for speed,
            # and does not keep the conductor waiting for a provider that does not answer.
            ending = threading.Thread(target=self._machine.end_at_once, args=(job_id,), daemon=True)
            ending.start()
            ending.join(END_WAIT_S)
        if at_once and self._machine.is_rented:
            return
        try:
            link = self._machine.link(job_id, record.facts)
        except MachineGone:
            return
        if link is None:
            return
        try:
            link.call("cancel", {"job_id": job_id, "at_once": at_once}, limit_s=30.0)
        except BoxFault as error:
            raise DoorUnavailable(str(error), remedy="Try again in a second.") from error

    def _was_asked_lately(self, job_id: str) -> bool:
        """Whether its end was asked for just now: a stopped conductor asks many times a second."""
        now = self._clock.monotonic()
        before = self._asked_to_end.get(job_id)
        if before is not None and now - before < END_AGAIN_S:
            return True
        self._asked_to_end[job_id] = now
        return False

    def resume(self) -> None:
        """Go on with every job of which something may be left over there: when a daemon starts."""
        for job_id in self._records.open_jobs():
            self._follow(job_id)

    @property
    def is_giving_back(self) -> bool:
        """Whether a rented machine may still be there, as far as this door looks after it."""
        if not self._machine.is_rented:
            return False
        with self._followers_lock:
            return any(thread.is_alive() for thread, _ in self._followers.values())

    def close(self, *, limit_s: float = 10.0) -> None:
        """End the followers, not the jobs; another door, or another daemon, goes on with them."""
        self._closing.set()
        with self._followers_lock:
            followers = list(self._followers.values())
        for _, wake in followers:
            wake.set()
        for thread, _ in followers:
            thread.join(limit_s)

    def _how_it_ended(self, job_id: str, record: RemoteJob, mark: CancelMark | None) -> JobExit:
        try:
            # The bundle's own record, where the drive is here: it may have been tampered with.
            ended = Bundle(self.jobs.path / job_id).exit() or record.exit
        except InputError as error:
            return JobExit(ExitReason.WORKER_ERROR, f"the exit record cannot be used: {error}")
        assert ended is not None, "a job of stage `ended` has an exit"
        if mark is not None and ended.reason is ExitReason.PREEMPTED:
            return dataclasses.replace(ended, reason=ExitReason.CANCELLED, detail=mark.why)
        return ended

    def _follow(self, job_id: str, *, wake: bool = False) -> None:
        with self._followers_lock:
            for name, (old, _) in list(self._followers.items()):
                if name != job_id and not old.is_alive():
                    del self._followers[name]
            thread, bell = self._followers.get(job_id, (None, threading.Event()))
            if thread is None or not thread.is_alive():
                if self._closing.is_set():
                    return
                bell.clear()
                follower = Follower(
                    job_id,
                    machine=self._machine,
                    records=self._records,
                    jobs=self.jobs,
                    lock=EmergencyLock(self._home),
                    settings=self._settings,
                    clock=self._clock,
                )
                thread = threading.Thread(
                    target=follower.run,
                    args=(bell, self._closing),
                    name=f"{self.name}-{job_id}",
                    daemon=True,
                )
                self._followers[job_id] = (thread, bell)
                thread.start()
        if wake:
            bell.set()


def sender_of(home: Path) -> str:
    """Who we are among those who send to one box: the same after a restart, secret to nobody."""
    return f"home-{sha256_hex(str(home.resolve()).encode())[:16]}"
