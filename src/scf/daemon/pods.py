"""What `scf pods` shows: each pod of this home, what it is for, what it costs, when it ends.

Two lists side by side, the provider's and the book's, so that a pod in only one of them is seen. A
cluster is one lease, with its pods under it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from scf.config import FoundryConfig
from scf.core.clock import Clock, parse_utc
from scf.core.units import format_duration
from scf.daemon.allowance import CAPS, Allowance
from scf.daemon.doors import account_of
from scf.dispatch.lots import Lot
from scf.dispatch.pod_record import PodFiles, PodRecord, PodState
from scf.dispatch.registry import open_client
from scf.dispatch.sweeping import name_prefix, shown, strays


@dataclass(frozen=True, kw_only=True)
class PodRow:
    """One pod, or one cluster.

    Attributes:
        pod_id: The provider's id, of the pod or the cluster; None while it is only asked for.
        name: Ours.
        job_id: What it is for; None for a pod in no book.
        status: As the provider says it; `asked for` and `ending` are our words.
        usd_per_h: What it costs now.
        cost_usd: What it has cost, by price and time.
        age_s: Since it was made.
        lease_until: When it ends; None for a pod in no book.
        lease_left_s: Until then.
        fault: Why it should not be there; None when all is well.
        members: Of a cluster: each pod's `pod_id`, `rank`, `status`, `usd_per_h` and `ssh`.
    """

    pod_id: str | None
    name: str
    job_id: str | None
    status: str
    usd_per_h: float
    cost_usd: float
    age_s: float
    lease_until: str | None
    lease_left_s: float | None
    fault: str | None
    members: list[dict[str, Any]] = field(default_factory=list)


def pods(config: FoundryConfig, clock: Clock) -> dict[str, Any]:
    """What `scf pods --json` prints.

    Raises:
        DoorError: The provider does not say.
        OperatorError: There is no usable key.
    """
    client = open_client(account_of(config))
    try:
        book = PodFiles(config.home / "runpod")
        has_clusters = config.runpod.nodes > 1 or any(row.is_cluster for row in book.all())
        lots = shown(client, has_clusters=has_clusters)
        account = client.account()
    finally:
        client.close()
    records = book.all()
    prefix = name_prefix(config.home)
    rows = list(_rows(lots, records, prefix, clock.now()))
    purse = Allowance(config.home, clock)
    caps = purse.limits()
    return {
        "schema_version": 1,
        "pods": [asdict(row) for row in rows],
        "others": len(lots) - sum(row.pod_id is not None for row in rows),
        "balance_usd": account.balance_usd,
        "spend_usd_per_h": account.spend_usd_per_h,
        "caps": {
            cap: {"limit": caps[cap], "spent": purse.spent_usd(cap)}
            for cap in CAPS
            if cap != "usd_run"
        },
        "money": [asdict(promise) for promise in purse.all()[-20:]],
    }


def pods_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for row in found["pods"]:
        left = row["lease_left_s"]
        lease = f"ends in {format_duration(left)}" if left is not None else "no lease"
        lines.append(
            f"{row['pod_id'] or '-':16} {row['status']:12} {row['usd_per_h']:6.2f} USD/h "
            f"{row['cost_usd']:8.2f} USD  age {format_duration(row['age_s'])}, {lease}  "
            f"{row['job_id'] or row['name']}"
        )
        for node in row["members"]:
            rank = "?" if node["rank"] is None else node["rank"]
            lines.append(
                f"  node {rank} {node['pod_id']:16} {node['status']:12} "
                f"{node['usd_per_h']:6.2f} USD/h  {node['ssh'] or 'no ssh yet'}"
            )
        if row["fault"]:
            lines.append(f"{'':16} ! {row['fault']}; `scf reaper run --once` ends it")
    lines = lines or ["no pods"]
    if found["others"]:
        lines.append(f"{found['others']} pods of others in this account are left alone")
    if found["balance_usd"] is not None:
        lines.append(f"balance {found['balance_usd']:.2f} USD")
    for cap, row in found["caps"].items():
        lines.append(f"{cap:10} {row['spent']:.2f} of {row['limit']:.2f} USD spent or promised")
    for row in found["money"]:
        if row["billed_usd"] is not None:
            lines.append(
                f"{row['job_id']}: estimated {row['estimated_usd'] or 0:.4f}, "
                f"billed {row['billed_usd']:.4f} USD"
            )
    return "\n".join(lines)


def _rows(
    lots: list[Lot], records: list[PodRecord], prefix: str, now: datetime
) -> Iterator[PodRow]:
    faults = {s.lot.lot_id: s.why for s in strays(lots, records, prefix=prefix, now=now)}
    by_name = {record.name: record for record in records}
    by_id = {record.pod_id: record for record in records if record.pod_id is not None}
    ending = {lot_id: record for record in records for lot_id in record.ending}
    for lot in lots:
        record = ending.get(lot.lot_id) or by_id.get(lot.lot_id) or by_name.get(lot.name)
        if record is None and not lot.name.startswith(prefix):
            continue
        is_ending = lot.lot_id in ending
        age_s = (now - lot.created_at).total_seconds()
        until = record.lease_until if record else None
        yield PodRow(
            pod_id=lot.lot_id,
            name=lot.name,
            job_id=record.job_id if record else None,
            status="ending" if is_ending else lot.status,
            usd_per_h=lot.cost_usd_per_h,
            cost_usd=round(max(0.0, age_s) / 3600 * lot.cost_usd_per_h, 4),
            age_s=round(age_s, 1),
            lease_until=until,
            lease_left_s=round((parse_utc(until) - now).total_seconds(), 1) if until else None,
            fault=None if is_ending else faults.get(lot.lot_id),
            members=_members(lot),
        )
    names = {lot.name for lot in lots}
    for record in records:
        if record.state is PodState.INTENDED and record.name not in names:
            age_s = (now - parse_utc(record.intended_at)).total_seconds()
            yield PodRow(
                pod_id=None,
                name=record.name,
                job_id=record.job_id,
                status="asked for",
                usd_per_h=0.0,
                cost_usd=0.0,
                age_s=round(age_s, 1),
                lease_until=record.lease_until,
                lease_left_s=round((parse_utc(record.lease_until) - now).total_seconds(), 1),
                fault=None,
            )


def _members(lot: Lot) -> list[dict[str, Any]]:
    if not lot.is_cluster:
        return []
    return [
        {
            "pod_id": pod.pod_id,
            "rank": pod.member.rank if pod.member else None,
            "status": str(pod.status),
            "usd_per_h": pod.cost_usd_per_h,
            "ssh": f"{pod.ssh.user}@{pod.ssh.host}:{pod.ssh.port}" if pod.ssh else None,
        }
        for pod in lot.pods
    ]
