"""Hold what pods were estimated to cost against what the provider billed for them."""

from datetime import datetime, timedelta

from scf.core.clock import parse_utc
from scf.core.errors import DoorError
from scf.dispatch.pod_record import PodBook, PodRecord
from scf.dispatch.purse import Purse
from scf.dispatch.runpod_client import RunpodClient

# Bills are kept by the hour: a pod's last hour is complete a while after it has gone.
SETTLED_AFTER = timedelta(hours=2)
GIVEN_UP_AFTER = timedelta(days=14)


def reconcile(
    client: RunpodClient, book: PodBook, purse: Purse, now: datetime, *, records_max: int = 20
) -> list[str]:
    """Ask for the bills of pods that have gone, and tell the purse; jobs whose bill is complete.

    A pod that the provider has no record of is asked for again later: nothing is made up.
    """
    done = []
    rows = book.all()
    for record in rows:
        if _is_settled(record, now):
            book.put_away(record.job_id)
    for record in [row for row in rows if _is_due(row, now)][:records_max]:
        changed = record
        for pod in record.rented:
            if pod.billed_usd is not None or pod.until is None:
                continue
            start = parse_utc(pod.since) - timedelta(hours=1)
            end = parse_utc(pod.until) + timedelta(hours=1)
            try:
                if record.is_cluster:
                    lines = client.cluster_billing(start, end, cluster_id=pod.pod_id)
                else:
                    lines = client.billing(start, end, pod_id=pod.pod_id)
            except DoorError:
                continue
            mine = [line.total_usd for line in lines if line.pod_id == pod.pod_id]
            if mine:
                changed = changed.with_pod(pod.pod_id, billed_usd=round(sum(mine), 6))
        if changed == record:
            continue
        book.write(changed)
        billed = [pod.billed_usd for pod in changed.rented]
        if None not in billed:
            purse.bill(record.job_id, sum(usd for usd in billed if usd is not None))
            done.append(record.job_id)
            book.put_away(record.job_id)
    return done


def _is_settled(record: PodRecord, now: datetime) -> bool:
    """Gone for so long that no bill comes any more, or there never was anything to bill."""
    if record.released_at is None:
        return False
    is_old = now > parse_utc(record.released_at) + GIVEN_UP_AFTER
    return is_old or not record.rented


def _is_due(record: PodRecord, now: datetime) -> bool:
    if record.released_at is None or now < parse_utc(record.released_at) + SETTLED_AFTER:
        return False
    return any(pod.billed_usd is None for pod in record.rented)
