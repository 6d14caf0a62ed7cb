"""What goes through a door, and what is known of it afterwards.

Words: a *run* is what people talk about; an *attempt* is one try at one part of it, and has the id
of the *job* that a door starts for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from scf.core.errors import InputError
from scf.core.identity import is_sha256_hex

SPEC_SCHEMA = "scf.job/1"
EXIT_SCHEMA = "scf.job-exit/1"

NODES_MAX = 250

_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class ExitReason(StrEnum):
    """Why a job ended. Never just "failed"."""

    COMPLETED = "completed"
    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_DATA = "bad_data"
    DIVERGED = "diverged"
    LOST = "lost"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OVER_BUDGET = "over_budget"
    WORKER_ERROR = "worker_error"


# Reasons that the same job would meet again: trying once more would only cost.
HOPELESS = frozenset({ExitReason.BAD_DATA, ExitReason.DIVERGED, ExitReason.OVER_BUDGET})
# Reasons that say nothing about the job: they do not count as one of its tries.
NOT_ITS_FAULT = frozenset({ExitReason.CANCELLED, ExitReason.PREEMPTED})

# The job was cut off, and what it had saved by then is as it wrote it: a new try goes on from it.
INTERRUPTED = NOT_ITS_FAULT | {ExitReason.TIMED_OUT, ExitReason.LOST, ExitReason.OUT_OF_MEMORY}


@dataclass(frozen=True)
class JobInput:
    """Something a job reads.

    Attributes:
        name: What the job calls it.
        path: Inside the bundle (`inputs/plan.json`), or an absolute path to something that is not
            carried, such as a checkpoint folder on the drive.
        sha256: Digest of a file; None for a folder, whose own digest list speaks for it.
    """

    name: str
    path: str
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        row = {"name": self.name, "path": self.path}
        return row if self.sha256 is None else {**row, "sha256": self.sha256}


@dataclass(frozen=True)
class JobSpec:
    """A job, as a value: the same spec always means the same job.

    Attributes:
        job_id: The attempt's id; a door starts at most one job under it.
        kind: `train_ebdm`, `measure`; a worker knows which program that is.
        config: Settings of the job, JSON.
        inputs: What it reads.
        vault: The vault's folder; None for a job that reads no fossils.
        deadline_s: The worker ends the job after this long.
        joules_max: The worker ends the job once its machine's meters say more; None is no limit.
        nodes: Machines that do it together; 1 leaves it to the door. Another number than a door has
            is refused.
    """

    job_id: str
    kind: str
    deadline_s: float
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[JobInput, ...] = ()
    vault: str | None = None
    joules_max: float | None = None
    nodes: int = 1

    def input(self, name: str) -> JobInput | None:
        """The input called `name`, if there is one."""
        return next((given for given in self.inputs if given.name == name), None)

    def to_json(self) -> dict[str, Any]:
        value = {
            "schema": SPEC_SCHEMA,
            "job_id": self.job_id,
            "kind": self.kind,
            "config": dict(self.config),
            "inputs": [given.to_json() for given in self.inputs],
            "vault": self.vault,
            "deadline_s": self.deadline_s,
            # Absent where there is none, so that a spec without it stays what it was.
            **({} if self.joules_max is None else {"joules_max": self.joules_max}),
        }
        # Left out where it is one, as in every spec before there were several.
        return value if self.nodes == 1 else {**value, "nodes": self.nodes}

    @classmethod
    def from_json(cls, value: Any) -> "JobSpec":
        """Read a spec, trusting nothing.

        Raises:
            InputError: Unknown schema, missing or ill-formed key, a path that leaves the bundle.
        """
        if not isinstance(value, dict) or value.get("schema") != SPEC_SCHEMA:
            raise InputError(f"not a job spec of schema {SPEC_SCHEMA}")
        joules = value.get("joules_max")
        try:
            spec = cls(
                job_id=str(value["job_id"]),
                kind=str(value["kind"]),
                deadline_s=float(value["deadline_s"]),
                config=dict(value["config"]),
                inputs=tuple(JobInput(**row) for row in value["inputs"]),
                vault=value["vault"],
                joules_max=None if joules is None else float(joules),
                nodes=int(value.get("nodes", 1)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"job spec: {type(error).__name__}: {error}") from error
        check_spec(spec)
        return spec


@dataclass(frozen=True)
class Job:
    """A job that a door has started, or found.

    Attributes:
        job_id: As in the spec.
        placement: Where it is, in the door's own words: door, host, pid, pod id.
    """

    job_id: str
    placement: Mapping[str, Any]


@dataclass(frozen=True)
class JobExit:
    """How a job ended.

    Attributes:
        reason: One of `ExitReason`.
        detail: For people.
        returncode: Of the program; None when nobody saw it.
        started_at: RFC 3339, or None.
        ended_at: RFC 3339, or None.
        outputs: `{path, sha256, size_bytes}` of each file under `outputs/`.
        usage: What it took, as far as the worker could measure: `cpu_s`, `rss_max_bytes`,
            `energy_j` and its parts. What was not measured is absent, never zero.
        not_metered: What drew power and has no meter.
    """

    reason: ExitReason
    detail: str = ""
    returncode: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    usage: Mapping[str, float] = field(default_factory=dict)
    not_metered: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": EXIT_SCHEMA,
            "reason": str(self.reason),
            "detail": self.detail,
            "returncode": self.returncode,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "outputs": [dict(row) for row in self.outputs],
            "usage": dict(self.usage),
            "not_metered": list(self.not_metered),
        }

    @classmethod
    def from_json(cls, value: Any) -> "JobExit":
        """Read an exit record, trusting nothing.

        Raises:
            InputError: Unknown schema, reason, or an output's path that leaves `outputs/`.
        """
        if not isinstance(value, dict) or value.get("schema") != EXIT_SCHEMA:
            raise InputError(f"not an exit record of schema {EXIT_SCHEMA}")
        try:
            outputs = tuple(_checked_output(row) for row in value["outputs"])
            return cls(
                reason=ExitReason(value["reason"]),
                detail=str(value["detail"]),
                returncode=value["returncode"],
                started_at=value["started_at"],
                ended_at=value["ended_at"],
                outputs=outputs,
                usage={str(key): float(number) for key, number in value["usage"].items()},
                not_metered=tuple(str(name)[:200] for name in value.get("not_metered", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"exit record: {type(error).__name__}: {error}") from error


class JobPhase(StrEnum):
    """Where a job is, as its door sees it."""

    ABSENT = "absent"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class JobStatus:
    """What a door knows of a job now.

    Attributes:
        phase: `absent` (this door never had it), `running`, `ended`.
        exit: How it ended; None unless `ended`. A job that vanished has ended with reason `lost`.
        placement: Where it runs or ran, as far as the door knows.
    """

    phase: JobPhase
    exit: JobExit | None = None
    placement: Mapping[str, Any] = field(default_factory=dict)


def check_spec(spec: JobSpec) -> None:
    """Raise InputError unless every name and path of `spec` has the form it must have."""
    if not _JOB_ID.fullmatch(spec.job_id):
        raise InputError(f"job id {spec.job_id!r}: lower-case letters, digits and - only, up to 80")
    if not _NAME.fullmatch(spec.kind):
        raise InputError(f"job kind {spec.kind!r} is not a name")
    if not 0 < spec.deadline_s < float("inf"):
        raise InputError(f"deadline_s {spec.deadline_s!r} must be a positive number of seconds")
    if spec.joules_max is not None and not 0 < spec.joules_max < float("inf"):
        raise InputError(f"joules_max {spec.joules_max!r} must be a positive number of joules")
    if not 1 <= spec.nodes <= NODES_MAX:
        raise InputError(f"nodes {spec.nodes!r} must be from 1 to {NODES_MAX}")
    for given in spec.inputs:
        if not _NAME.fullmatch(given.name):
            raise InputError(f"input {given.name!r} is not a name")
        path = PurePosixPath(given.path)
        if not path.is_absolute() and (path.parts[:1] != ("inputs",) or not is_plain_path(path)):
            raise InputError(f"input {given.name}: path {given.path!r} is not inside inputs/")
        if given.sha256 is not None and not is_sha256_hex(given.sha256):
            raise InputError(f"input {given.name}: {given.sha256!r} is not a SHA-256")


def is_plain_path(path: PurePosixPath) -> bool:
    """Whether a relative path stays below where it starts."""
    return not path.is_absolute() and bool(path.parts) and ".." not in path.parts


def _checked_output(row: Mapping[str, Any]) -> dict[str, Any]:
    path, digest, size_bytes = row["path"], row["sha256"], row["size_bytes"]
    pure = PurePosixPath(path)
    if pure.parts[:1] != ("outputs",) or not is_plain_path(pure) or "\\" in path:
        raise ValueError(f"path {path!r} is not inside outputs/")
    if not is_sha256_hex(digest) or not isinstance(size_bytes, int) or size_bytes < 0:
        raise ValueError(f"{path}: digest or size is ill-formed")
    return {"path": path, "sha256": digest, "size_bytes": size_bytes}
