"""What the RunPod door writes down about the pod or cluster of a job, before and after it asks.

Creating a pod has no idempotency key, so the name is the key: it is unique, and it is in the book
before the request leaves. Whoever finds an `intended` pod in the book looks for its name before
anything else. The book is a small `PodBook`: files in the home here, a database where one is given.
"""

import logging
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from scf.core.clock import parse_utc
from scf.core.errors import InputError
from scf.storage import durable

_log = logging.getLogger(__name__)

SCHEMA = "scf.pod/1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


class PodState(StrEnum):
    """Where the pod of a job is."""

    INTENDED = "intended"  # the request may have been sent; whether there is a pod is unknown
    CREATED = "created"  # the provider gave it an id
    READY = "ready"  # its ssh server has answered with the host key that we gave it
    NONE = "none"  # there is no pod now; the next candidate may be tried


@dataclass(frozen=True, kw_only=True)
class Rented:
    """A pod or cluster that a job had, or has: what it cost by price and time.

    Attributes:
        pod_id: The provider's id.
        usd_per_h: Its price.
        since: When it was asked for, RFC 3339: a little before it cost anything.
        until: When it was first known to be gone; None while it may live.
        billed_usd: What the provider says; None while it does not.
    """

    pod_id: str
    usd_per_h: float
    since: str
    until: str | None = None
    billed_usd: float | None = None

    def cost_usd(self, now: datetime) -> float:
        """Its cost until now, or until its end."""
        until = parse_utc(self.until) if self.until else now
        hours = max(0.0, (until - parse_utc(self.since)).total_seconds()) / 3600
        return hours * self.usd_per_h


@dataclass(frozen=True, kw_only=True)
class PodRecord:
    """The pod of a job, or its cluster: then `pod_id` and all other ids here are clusters'.

    Attributes:
        job_id: The job.
        name: The pod's name; new for every request.
        state: See `PodState`.
        candidate: Place in the list of candidates.
        intended_at: RFC 3339.
        lease_until: RFC 3339; the pod is ended then, by whoever looks.
        max_usd: What it can cost at most, until its lease ends.
        pod_id: The provider's id, once it is known.
        was_seen: Whether the provider has listed it.
        orders: Pods of this job that were rented and given up.
        ending: Ids that were told to end and are not yet known to be gone.
        detail: Why the last candidate was given up.
        rented: Every pod that the job had, with its cost.
        released_at: When the last of them was known to be gone, RFC 3339; None before.
        may_be_two: Whether the order may have been carried out twice, for all that is known.
        nodes: Pods that are rented together; more than one is a cluster.
        usd_per_h: Its price when it was asked for, all pods together.
    """

    job_id: str
    name: str
    state: PodState
    candidate: int
    intended_at: str
    lease_until: str
    max_usd: float
    pod_id: str | None = None
    was_seen: bool = False
    orders: int = 0
    ending: tuple[str, ...] = ()
    detail: str = ""
    rented: tuple[Rented, ...] = ()
    released_at: str | None = None
    may_be_two: bool = False
    nodes: int = 1
    usd_per_h: float = 0.0

    @property
    def is_cluster(self) -> bool:
        return self.nodes > 1

    def cost_usd(self, now: datetime) -> float:
        """What all pods of the job have cost, by price and time."""
        return sum(pod.cost_usd(now) for pod in self.rented)

    def with_pod(self, pod_id: str, **changes: Any) -> "PodRecord":
        """The same with one rented pod changed."""
        rented = (replace(r, **changes) if r.pod_id == pod_id else r for r in self.rented)
        return replace(self, rented=tuple(rented))

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value |= {"rented": [asdict(pod) for pod in self.rented], "ending": list(self.ending)}
        return {"schema": SCHEMA, **value, "state": str(self.state)}

    @classmethod
    def from_json(cls, value: Any) -> "PodRecord":
        """Read it. Raises InputError for anything else than what `to_json` writes."""
        try:
            fields = {key: item for key, item in value.items() if key != "schema"}
            fields |= {"state": PodState(value["state"]), "ending": tuple(value["ending"])}
            fields["rented"] = tuple(Rented(**row) for row in value.get("rented", ()))
            if value["schema"] != SCHEMA or not _NAME.fullmatch(value["name"]):
                raise ValueError(f"schema {value['schema']!r}, name {value['name']!r}")
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"pod record: {type(error).__name__}: {error}") from error


class PodBook(Protocol):
    """Where pods are written down. `write` returns once the record is on the medium."""

    def read(self, job_id: str) -> PodRecord | None:
        """The job's record; None when there is none."""

    def write(self, record: PodRecord) -> None:
        """Keep it, in place of the one before."""

    def all(self) -> list[PodRecord]:
        """Every record that is not put away."""

    def put_away(self, job_id: str) -> None:
        """Nothing is to be done for it any more: kept, and not looked at again."""


class PodFiles:
    """A book of small files, one a job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, job_id: str) -> PodRecord | None:
        path = self._folder / f"{job_id}.pod.json"
        return PodRecord.from_json(durable.read_json(path)) if path.exists() else None

    def write(self, record: PodRecord) -> None:
        path = self._folder / f"{record.job_id}.pod.json"
        durable.write_json(path, record.to_json(), mode=0o600)

    def all(self) -> list[PodRecord]:
        found = []
        for path in sorted(self._folder.glob("*.pod.json")):
            try:
                found.append(PodRecord.from_json(durable.read_json(path)))
            except InputError as error:
                # One damaged file keeps no other pod from being ended; its own is in no book then.
                _log.warning("%s: cannot be read: %s", path, error)
        return found

    def put_away(self, job_id: str) -> None:
        path = self._folder / f"{job_id}.pod.json"
        if path.exists():
            (self._folder / "past").mkdir(exist_ok=True, mode=0o700)
            path.replace(self._folder / "past" / path.name)
