"""What a door to other machines writes down about a job, in the home, on the internal disk.

One small file a job (`scf.remote-job/1`), written whole at each change of stage; a mark beside it
when the job is to end; and a lock file that says that somebody follows the job. A daemon that comes
back reads them and goes on at that stage; every stage can be done again.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from scf.core.errors import InputError
from scf.dispatch.job import JobExit
from scf.dispatch.process import HeldFile
from scf.storage import durable

SCHEMA = "scf.remote-job/1"


class Stage(StrEnum):
    """How far a job is, as its door sees it."""

    PLACING = "placing"  # a machine is being found
    SENDING = "sending"  # what it needs is on its way, or it is being started
    RUNNING = "running"  # it was started
    ENDED = "ended"  # how it ended is known, and what it made is here
    RELEASED = "released"  # and nothing of it is left there


@dataclass(frozen=True)
class Trouble:
    """Why nothing can be learnt or done at present."""

    since: str
    text: str


@dataclass(frozen=True)
class RemoteJob:
    """A job as its door knows it.

    Attributes:
        stage: How far it is.
        stage_since: RFC 3339.
        placement: For receipts and for people.
        exit: How it ended, from `ended` on.
        trouble: Set while the machine cannot be reached or does not behave.
        facts: What this kind of door needs to find its machine again.
    """

    stage: Stage
    stage_since: str
    placement: dict[str, Any] = field(default_factory=dict)
    exit: JobExit | None = None
    trouble: Trouble | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.stage in {Stage.ENDED, Stage.RELEASED}

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "stage": str(self.stage),
            "stage_since": self.stage_since,
            "placement": self.placement,
            "exit": self.exit.to_json() if self.exit else None,
            "trouble": dataclasses.asdict(self.trouble) if self.trouble else None,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, value: Any) -> "RemoteJob":
        """Read it. Raises InputError for anything else than what `to_json` writes."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise InputError(f"not a job record of schema {SCHEMA}")
        try:
            return cls(
                stage=Stage(value["stage"]),
                stage_since=str(value["stage_since"]),
                placement=dict(value["placement"]),
                exit=JobExit.from_json(value["exit"]) if value["exit"] else None,
                trouble=Trouble(**value["trouble"]) if value["trouble"] else None,
                facts=dict(value["facts"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"job record: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class CancelMark:
    """Somebody asked for the end of a job.

    Attributes:
        at_once: End it with all its processes.
        why: For people.
    """

    at_once: bool
    why: str


class RemoteJobs:
    """The small files of one door, by job id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, job_id: str) -> RemoteJob | None:
        """The job's record; None when this door never had it."""
        path = self._path(job_id)
        return RemoteJob.from_json(durable.read_json(path)) if path.exists() else None

    def write(self, job_id: str, job: RemoteJob) -> None:
        durable.write_json(self._path(job_id), job.to_json(), mode=0o600)

    def mark(self, job_id: str) -> CancelMark | None:
        """The wish that it end; None when there is none. An unreadable mark is one."""
        path = self.folder / f"{job_id}.cancelled"
        if not path.exists():
            return None
        try:
            value = durable.read_json(path, size_max_bytes=65_536)
            return CancelMark(bool(value["at_once"]), str(value["why"]))
        except (InputError, KeyError, TypeError):
            return CancelMark(at_once=False, why="cancelled")

    def set_mark(self, job_id: str, mark: CancelMark) -> None:
        """Keep the wish; `at_once` is never taken back."""
        before = self.mark(job_id)
        if before is not None and (before.at_once or not mark.at_once):
            return
        durable.write_json(self.folder / f"{job_id}.cancelled", dataclasses.asdict(mark))

    def follower(self, job_id: str) -> HeldFile:
        """The lock of whoever follows this job; ssh and rsync that it started hold it, too."""
        return HeldFile(self.folder / f"{job_id}.follower")

    def staging(self, job_id: str) -> Path:
        """Where links to what is being sent are put."""
        return self.folder / f"{job_id}.sending"

    def open_jobs(self) -> list[str]:
        """Jobs of which something may be left over there."""
        names = sorted(path.stem for path in self.folder.glob("*.json"))
        return [
            name for name in names if (job := self.read(name)) and job.stage is not Stage.RELEASED
        ]

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.json"
