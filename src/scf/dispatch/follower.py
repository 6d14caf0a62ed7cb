"""One job on another machine, followed from its start to its return, a bounded step at a time.

    placing   the machine is found
    sending   what is missing there is sent; the worker is started, at most once
    running   its state and its outputs are looked at; what changed is fetched
    ended     what it made is here, or it is known why not; what is left there is taken away

Each step can be done again: the record in the home says where to go on, requests to the machine can
be repeated, transfers resume. A step that fails leaves a `trouble` in the record and is tried again
after a pause that grows. The emergency lock is looked at before a job is started and at each look.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, parse_utc, utc_text
from scf.core.errors import DoorError, DoorUnavailable, InputError, ScfError
from scf.dispatch import returned, sending
from scf.dispatch.bundle import Bundle
from scf.dispatch.job import ExitReason, JobExit, JobSpec
from scf.dispatch.remote_state import CancelMark, RemoteJob, RemoteJobs, Stage, Trouble
from scf.dispatch.returned import OutputsRefused, ReturnLimits
from scf.dispatch.transfer import BoxFault, Link
from scf.storage.partitions import Folder

_log = logging.getLogger(__name__)

WORKER = ("{python}", "-m", "scf.daemon.gpu_worker")


@dataclass(frozen=True, kw_only=True)
class FollowSettings:
    """How jobs on other machines are followed.

    Attributes:
        worker: The worker's command line; `{python}` is the box's Python.
        code: Folder for the wheel of this scf, which is sent; None uses the scf installed there.
        environment: Variables for the worker, no secrets.
        look_s: Pause between looks at a running job; its checkpoints are at most this much older.
        retry_s: First pause after a failed step; doubles up to `retry_max_s`.
        retry_max_s: See `retry_s`.
        patience_s: `poll` says that nothing can be learnt after this long without an answer.
        faults_max: Answers that are not as they must be, one after the other, until we give up.
        give_up_s: An unreachable job counts as lost this long after its own deadline.
        limits: How much may come back.
    """

    worker: tuple[str, ...] = WORKER
    code: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    look_s: float = 15.0
    retry_s: float = 2.0
    retry_max_s: float = 60.0
    patience_s: float = 90.0
    faults_max: int = 5
    give_up_s: float = 3600.0
    limits: ReturnLimits = field(default_factory=ReturnLimits)


class MachineGone(DoorError):
    """The machine of a job does not exist any more, and what ran there has ended with it."""


class Machine(Protocol):
    """Where jobs of a door run: found, reached, given back.

    Attributes:
        is_rented: The machine is there for one job, and what runs on it ends with it.
    """

    @property
    def is_rented(self) -> bool: ...

    def expect(self, spec: JobSpec) -> Mapping[str, Any]:
        """Look whether a job may be taken now; what to say of its place.

        Raises:
            DoorUnavailable: Not now. Nothing was started.
        """

    def place(self, job_id: str, facts: dict[str, Any], spec: JobSpec) -> dict[str, Any] | None:
        """Go one step towards a machine for this job; its facts once it is ready, else None."""

    def link(
        self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...] = ()
    ) -> Link | None:
        """The way to the job's machine; None while there is none.

        Raises:
            MachineGone: There was one, and it is gone.
        """

    def release(self, job_id: str, facts: Mapping[str, Any], link: Link | None) -> bool:
        """Take away what is left of an ended job over there; whether nothing is left."""

    def end_at_once(self, job_id: str) -> None:
        """Ask for the end of a rented machine, without waiting for it."""

    def cost_usd(self, job_id: str) -> float | None:
        """What the job's machine has cost until now; None where it costs nothing."""


class Follower:
    """Follows one job. `run` is the thread; `step` does one bounded part of it."""

    def __init__(
        self,
        job_id: str,
        *,
        machine: Machine,
        records: RemoteJobs,
        jobs: Folder,
        lock: EmergencyLock,
        settings: FollowSettings,
        clock: Clock,
    ) -> None:
        self.job_id = job_id
        self._machine = machine
        self._records = records
        self._jobs = jobs
        self._lock = lock
        self._settings = settings
        self._clock = clock
        self._bundle = Bundle(jobs.path / job_id)
        self._held: tuple[int, ...] = ()
        self._fetched: dict[str, returned.Row] = {}
        self._asked: dict[str, int] = {}
        self._failures = 0
        self._faults = 0

    def run(self, bell: threading.Event, closing: threading.Event) -> None:
        """Follow the job to its end, or until `closing`; `bell` shortens a pause."""
        lock_file = self._records.follower(self.job_id)
        while not closing.is_set():
            descriptor = lock_file.acquire()
            if descriptor is None:
                # Somebody else follows it (or an ssh that a dead daemon started still runs).
                bell.wait(self._settings.retry_s)
                bell.clear()
                record = self._records.read(self.job_id)
                if record is None or record.stage is Stage.RELEASED:
                    return
                continue
            try:
                self._held = (descriptor,)
                while not closing.is_set():
                    pause_s = self.step()
                    if pause_s is None:
                        return
                    bell.wait(pause_s)
                    bell.clear()
            finally:
                os.close(descriptor)

    def step(self) -> float | None:
        """Do one bounded part; returns the pause until the next in seconds, None at the end."""
        record = self._records.read(self.job_id)
        if record is None or record.stage is Stage.RELEASED:
            return None
        try:
            pause_s = self._advance(record)
        except (ScfError, OSError) as error:
            return self._troubled(error)
        except Exception as error:  # noqa: BLE001 - the end of this thread would be seen by nobody
            _log.exception("%s: a step of its follower failed", self.job_id)
            return self._troubled(BoxFault(f"{type(error).__name__}: {error}"))
        self._failures = self._faults = 0
        if (after := self._records.read(self.job_id)) is not None and after.trouble is not None:
            self._records.write(self.job_id, dataclasses.replace(after, trouble=None))
        return pause_s

    def _advance(self, record: RemoteJob) -> float | None:
        self._note_emergency(record)
        mark = self._records.mark(self.job_id)
        if mark is not None and mark.at_once and self._machine.is_rented and not record.has_ended:
            # The machine goes first, with all that runs there: not even the drive is needed.
            return self._end(record, JobExit(ExitReason.CANCELLED, mark.why))
        if record.stage is Stage.PLACING:
            return self._place(record)
        if record.stage is Stage.SENDING:
            return self._send(record)
        if record.stage is Stage.RUNNING:
            return self._look(record)
        return self._release(record)

    def _place(self, record: RemoteJob) -> float:
        if (mark := self._records.mark(self.job_id)) is not None:
            return self._end(record, JobExit(ExitReason.CANCELLED, mark.why))
        facts = self._machine.place(self.job_id, record.facts, self._bundle.spec())
        if facts is None:
            return self._settings.retry_s
        self._move(record, Stage.SENDING, facts=facts, placement={**record.placement, **facts})
        return 0.0

    def _send(self, record: RemoteJob) -> float:
        link = self._reach(record)
        mark = self._records.mark(self.job_id)
        if mark is not None:
            # Its start may have been asked for, and the answer lost: the mark over there stops a
            # start that comes late, and the look says whether there was one.
            link.call("cancel", {"job_id": self.job_id, "at_once": mark.at_once})
            self._move(record, Stage.RUNNING)
            return 0.0
        self._jobs.check()
        try:
            about = sending.send(
                link,
                self._bundle,
                staging=self._records.staging(self.job_id),
                code=self._settings.code,
                is_stopped=self._is_stopped,
            )
            if about is None:
                return 0.0
            started = sending.start(
                link,
                about,
                worker=self._settings.worker,
                environment=self._settings.environment,
            )
        except InputError as error:
            return self._end(record, JobExit(ExitReason.BAD_DATA, str(error)))
        self._move(record, Stage.RUNNING, placement={**record.placement, **started})
        return min(self._settings.look_s, 1.0)

    def _look(self, record: RemoteJob) -> float:
        link = self._reach(record)
        mark = self._records.mark(self.job_id)
        if mark is not None:
            with contextlib.suppress(BoxFault):  # it has not said yet which process it is
                link.call("cancel", {"job_id": self.job_id, "at_once": mark.at_once})
        limits = self._settings.limits
        answer = link.call("look", {"job_id": self.job_id, "files_max": limits.files_max})
        phase = answer.get("phase")
        try:
            if phase == "running":
                self._bring(link, answer)
                return self._settings.look_s
            if phase == "ended":
                return self._return(record, link, answer)
            if phase == "lost":
                self._bring(link, answer)
                self._bring(link, answer)  # it stands still now: the second time, all is settled
        except OutputsRefused as error:
            with contextlib.suppress(BoxFault):
                link.call("cancel", {"job_id": self.job_id, "at_once": True})
            return self._end(record, JobExit(ExitReason.WORKER_ERROR, f"refused: {error}"))
        if mark is not None:
            return self._end(record, JobExit(ExitReason.CANCELLED, mark.why))
        if phase == "lost":
            detail = "its processes are gone and it left no exit record"
            return self._end(record, JobExit(ExitReason.LOST, detail))
        if phase in {"absent", "cancelled"}:
            return self._end(record, JobExit(ExitReason.LOST, "its bundle is gone from the box"))
        raise BoxFault(f"look: phase {str(phase)[:50]!r} is none")

    def _bring(self, link: Link, answer: Mapping[str, Any]) -> None:
        """Fetch what has changed; put in place what stood still since it was fetched."""
        self._jobs.check()
        path = self._bundle.path
        rows = returned.checked_rows(answer.get("outputs"), self._settings.limits)
        moving = {row.group for name, row in rows.items() if self._fetched.get(name) != row}
        returned.install(path, [name for name in rows if rows[name].group not in moving])
        returned.prune(path, rows, groups_kept=moving)
        small = self._small_rows(answer)
        wanted = rows | small
        changed = {name: row for name, row in wanted.items() if self._fetched.get(name) != row}
        if changed:
            self._fetch(link, {name: row.size_bytes for name, row in changed.items()})
            returned.install(path, small)
        self._fetched = wanted

    def _return(self, record: RemoteJob, link: Link, answer: Mapping[str, Any]) -> float:
        """The job has ended: fetch all that its exit record promises; the record itself last."""
        self._jobs.check()
        path = self._bundle.path
        limits = self._settings.limits
        ended = sending.exit_of(answer.get("exit"))
        if ended.reason is ExitReason.COMPLETED and answer.get("odd"):
            raise OutputsRefused(f"{str(answer['odd'])[:200]}: neither a file nor a folder")
        expected = [returned.Row(row["path"], row["size_bytes"]) for row in ended.outputs]
        for row in expected:
            returned.check_name(row.name)
        returned.check_sizes(expected, limits)
        if (path / "exit.json").exists():
            return self._end(record, ended)  # a crash came between the exit record and ours
        small = self._small_rows(answer)
        digests = {row["path"]: row["sha256"] for row in ended.outputs}
        sizes = {row.name: row.size_bytes for row in expected}
        self._fetch(link, sizes | {name: row.size_bytes for name, row in small.items()})
        if wrong := returned.differing(path, digests):
            # Perhaps a change that left size and time as they were: fetched once more, anew.
            returned.drop(path, wrong)
            self._fetch(link, {name: sizes[name] for name in wrong})
        returned.install(path, [*digests, *small])
        returned.prune(path, digests)
        for name in returned.SMALL_NAMES:
            if name not in small and (tail := returned.tail_of(answer.get("tails", {}).get(name))):
                self._folder().write_file(name, tail)
        shutil.rmtree(path / returned.RETURNING_NAME, ignore_errors=True)
        self._folder().write_json("exit.json", ended.to_json())
        return self._end(record, ended)

    def _release(self, record: RemoteJob) -> float | None:
        try:
            link = self._machine.link(self.job_id, record.facts, self._held)
        except (DoorUnavailable, MachineGone):
            link = None
        if not self._machine.release(self.job_id, record.facts, link):
            return self._settings.retry_s
        self._move(record, Stage.RELEASED)
        return None

    def _fetch(self, link: Link, sizes: Mapping[str, int]) -> None:
        into = self._bundle.path / returned.RETURNING_NAME
        self._asked.update(sizes)
        returned.tidy(into, self._asked)
        link.pull(self.job_id, sizes, into, size_bytes=sum(sizes.values()))
        returned.check_arrived(into, self._asked)

    def _small_rows(self, answer: Mapping[str, Any]) -> dict[str, returned.Row]:
        """The log and the notes, as far as they are short; of longer ones there is the end."""
        rows = {}
        for item in answer.get("small") or []:
            match item:
                case [str(name), int(size_bytes), int(modified_ns)] if (
                    name in returned.SMALL_NAMES
                    and 0 <= size_bytes <= self._settings.limits.small_max_bytes
                ):
                    rows[name] = returned.Row(name, size_bytes, modified_ns)
                case _:
                    continue
        return rows

    def _reach(self, record: RemoteJob) -> Link:
        link = self._machine.link(self.job_id, record.facts, self._held)
        if link is None:
            raise DoorUnavailable(f"{self.job_id}: its machine cannot be reached at present")
        return link

    def _is_stopped(self) -> bool:
        return self._records.mark(self.job_id) is not None or self._lock.is_set

    def _note_emergency(self, record: RemoteJob) -> None:
        if not record.has_ended and (fault := self._lock.fault()) is not None:
            mark = CancelMark(at_once=True, why=f"emergency lock: {fault}")
            self._records.set_mark(self.job_id, mark)

    def _troubled(self, error: Exception) -> float | None:
        """Note why a step failed; give up on a machine that misbehaves, or is gone for good."""
        record = self._records.read(self.job_id)
        if record is None:
            return None
        self._failures += 1
        now = self._clock.now()
        if isinstance(error, BoxFault):
            self._faults += 1
            if self._faults >= self._settings.faults_max and not record.has_ended:
                ended = JobExit(ExitReason.WORKER_ERROR, f"given up: {error}"[:1000])
                return self._end(record, ended)
        if isinstance(error, MachineGone) and not record.has_ended:
            mark = self._records.mark(self.job_id)
            if mark is not None:
                return self._end(record, JobExit(ExitReason.CANCELLED, mark.why))
            return self._end(record, JobExit(ExitReason.LOST, str(error)))
        since = record.trouble.since if record.trouble else utc_text(now)
        if not record.has_ended and self._is_hopeless(record):
            detail = f"out of reach since {since}, long after its deadline: {error}"
            return self._end(record, JobExit(ExitReason.LOST, detail))
        trouble = Trouble(since, str(error)[:1000])
        if record.trouble != trouble:
            with contextlib.suppress(ScfError, OSError):
                self._records.write(self.job_id, dataclasses.replace(record, trouble=trouble))
        settings = self._settings
        return min(settings.retry_max_s, settings.retry_s * 2.0 ** min(self._failures - 1, 10))

    def _is_hopeless(self, record: RemoteJob) -> bool:
        if record.stage is not Stage.RUNNING:
            return False
        try:
            deadline_s = self._bundle.spec().deadline_s
        except (InputError, OSError):
            return False
        limit = timedelta(seconds=deadline_s + self._settings.give_up_s)
        return self._clock.now() - parse_utc(record.stage_since) > limit

    def _end(self, record: RemoteJob, ended: JobExit) -> float:
        shutil.rmtree(self._records.staging(self.job_id), ignore_errors=True)
        self._move(record, Stage.ENDED, exit=ended, trouble=None)
        return 0.0

    def _move(self, record: RemoteJob, stage: Stage, **changes: Any) -> None:
        now = utc_text(self._clock.now())
        moved = dataclasses.replace(record, stage=stage, stage_since=now, **changes)
        self._records.write(self.job_id, moved)

    def _folder(self) -> Folder:
        return self._jobs.folder(self.job_id)
