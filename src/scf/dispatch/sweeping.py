"""End pods that nobody needs: what the daemon does between jobs, and the reaper when it is dead.

It knows two lists: what is in the book, with leases, and what the provider shows. Pods with names
of other overseers, and of other people, are left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scf.core.clock import parse_utc
from scf.core.errors import DoorError
from scf.dispatch.pod_record import PodRecord, PodState
from scf.dispatch.remote import sender_of
from scf.dispatch.runpod_client import RunpodClient
from scf.dispatch.runpod_model import Pod


@dataclass(frozen=True)
class Stray:
    """A pod that is to end, and why.

    Attributes:
        pod: As the provider shows it.
        why: For people.
    """

    pod: Pod
    why: str


def name_prefix(home: Path) -> str:
    """How the names of this home's pods begin: others may use the same account."""
    return f"scf-{sender_of(home).removeprefix('home-')[:8]}-"


def strays(
    pods: Sequence[Pod],
    records: Sequence[PodRecord],
    *,
    prefix: str,
    now: datetime,
    is_locked: bool = False,
) -> list[Stray]:
    """Which of `pods` are to end. Pure.

    Args:
        pods: What the provider shows. Looked at before the book was read, so that a pod which is
            shown was in the book before it was ordered.
        records: The book.
        prefix: Of our names.
        now: Time.
        is_locked: The emergency lock is set: none of ours may live.
    """
    known = {record.name: record for record in records}
    found = []
    firsts: dict[str, str] = {}
    for pod in sorted(pods, key=lambda pod: pod.pod_id):
        if not pod.name.startswith(prefix):
            continue
        first = firsts.setdefault(pod.name, pod.pod_id)
        record = known.get(pod.name)
        if is_locked:
            found.append(Stray(pod, "the emergency lock is set"))
        elif record is None or record.state is PodState.NONE:
            found.append(Stray(pod, "no job needs it"))
        elif pod.pod_id != (record.pod_id or first):
            found.append(Stray(pod, "another pod has its name"))
        elif now >= parse_utc(record.lease_until):
            found.append(Stray(pod, f"its lease ended at {record.lease_until}"))
    return found


def lease_left_s(records: Sequence[PodRecord], now: datetime) -> float | None:
    """Until the next lease of the book ends; None where none is open, or all are over."""
    left = [
        (parse_utc(record.lease_until) - now).total_seconds()
        for record in records
        if record.state is not PodState.NONE
    ]
    return min((seconds for seconds in left if seconds > 0), default=None)


def sweep(client: RunpodClient, found: Sequence[Stray]) -> list[Stray]:
    """Tell them to end; those that were told. One that fails keeps no other from being told."""
    told = []
    failed: DoorError | None = None
    for stray in found:
        try:
            client.terminate(stray.pod.pod_id)
        except DoorError as error:
            failed = error
            continue
        told.append(stray)
    if failed is not None and not told:
        raise failed
    return told
