"""End what nobody needs: what the daemon does between jobs, and the reaper when it is dead.

It knows two lists: what is in the book, with leases, and what the provider shows. Pods and clusters
with names of other overseers, and of other people, are left alone.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scf.core.clock import parse_utc
from scf.core.errors import DoorError, OperatorError
from scf.dispatch.lots import Lot, end_lot, lots_of
from scf.dispatch.pod_record import PodRecord, PodState
from scf.dispatch.remote import sender_of
from scf.dispatch.runpod_client import RunpodClient


@dataclass(frozen=True)
class Stray:
    """A pod or a cluster that is to end, and why.

    Attributes:
        lot: As the provider shows it.
        why: For people.
    """

    lot: Lot
    why: str


def name_prefix(home: Path) -> str:
    """How the names of this home's pods begin: others may use the same account."""
    return f"scf-{sender_of(home).removeprefix('home-')[:8]}-"


def shown(client: RunpodClient, *, has_clusters: bool) -> list[Lot]:
    """What the provider shows: one call, and one more where there are clusters, or may be.

    Raises:
        DoorError, KeyRefused: It does not say.
    """
    pods = client.list_pods()
    if has_clusters:
        return lots_of(pods, client.list_clusters())
    if any(pod.member is not None for pod in pods):
        # Somebody's in this account, perhaps ours of a book that was lost. A key that may not ask
        # keeps no pod from being ended.
        with contextlib.suppress(DoorError, OperatorError):
            return lots_of(pods, client.list_clusters())
    return lots_of(pods, [])


def strays(
    lots: Sequence[Lot],
    records: Sequence[PodRecord],
    *,
    prefix: str,
    now: datetime,
    is_locked: bool = False,
) -> list[Stray]:
    """Which of `lots` are to end. Pure.

    Args:
        lots: What the provider shows. Looked at before the book was read, so that what is shown
            was in the book before it was ordered.
        records: The book.
        prefix: Of our names.
        now: Time.
        is_locked: The emergency lock is set: none of ours may live.
    """
    by_name = {record.name: record for record in records}
    by_id = {record.pod_id: record for record in records if record.pod_id is not None}
    ending = {lot_id for record in records for lot_id in record.ending}
    found = []
    firsts: dict[str, str] = {}
    for lot in sorted(lots, key=lambda lot: lot.lot_id):
        record = by_id.get(lot.lot_id) or by_name.get(lot.name)
        if record is None and lot.lot_id not in ending and not lot.name.startswith(prefix):
            continue
        first = firsts.setdefault(lot.name, lot.lot_id)
        if is_locked:
            found.append(Stray(lot, "the emergency lock is set"))
        elif record is None or record.state is PodState.NONE:
            found.append(Stray(lot, "no job needs it"))
        elif lot.lot_id != (record.pod_id or first):
            found.append(Stray(lot, f"another {lot.kind} has its name"))
        elif now >= parse_utc(record.lease_until):
            found.append(Stray(lot, f"its lease ended at {record.lease_until}"))
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
            end_lot(client, stray.lot)
        except DoorError as error:
            failed = error
            continue
        told.append(stray)
    if failed is not None and not told:
        raise failed
    return told
