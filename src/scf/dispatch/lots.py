"""A lot: what one order brings, a pod or a cluster with its pods. It is leased and ended as one.

A member of a cluster ends with its cluster alone, so nobody who ends things looks at single pods.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from scf.dispatch.runpod_client import RunpodClient
from scf.dispatch.runpod_errors import RequestRefused
from scf.dispatch.runpod_model import Cluster, Pod, PodStatus

_ENDED = frozenset({PodStatus.EXITED, PodStatus.ERROR, PodStatus.TERMINATED})


@dataclass(frozen=True)
class Lot:
    """What the provider shows of one order.

    Attributes:
        lot_id: The provider's id of the pod, or of the cluster.
        name: Ours. Of a cluster that is not shown itself, its members' variables say it; empty
            where they do not.
        num_pods: Pods that were ordered; 0 where only members are shown.
        pods: Those that are there, by rank.
        is_cluster: Whether it is one.
        created_at: When it was made.
    """

    lot_id: str
    name: str
    num_pods: int
    pods: tuple[Pod, ...]
    is_cluster: bool
    created_at: datetime

    @property
    def kind(self) -> str:
        """`pod` or `cluster`."""
        return "cluster" if self.is_cluster else "pod"

    @property
    def cost_usd_per_h(self) -> float:
        """What all its pods cost now."""
        return sum(pod.cost_usd_per_h for pod in self.pods)

    @property
    def is_complete(self) -> bool:
        """Whether all pods are there and, in a cluster, know their rank and node 0's address."""
        if not self.is_cluster:
            return len(self.pods) == 1
        ranks = [pod.member.rank for pod in self.pods if pod.member is not None]
        return ranks == list(range(self.num_pods)) and self.address is not None

    @property
    def address(self) -> str | None:
        """Of node 0 on the cluster's own network."""
        first = self.pods[0].member if self.pods else None
        return first.address if first is not None and first.rank == 0 else None

    @property
    def ended_pod(self) -> Pod | None:
        """A pod whose container has ended, if there is one."""
        return next((pod for pod in self.pods if pod.status in _ENDED), None)

    @property
    def status(self) -> str:
        """Of its pods together, for people."""
        if not self.is_cluster:
            return str(self.pods[0].status)
        running = sum(pod.status is PodStatus.RUNNING for pod in self.pods)
        return f"{running} of {self.num_pods or len(self.pods)} run"


def lots_of(pods: Sequence[Pod], clusters: Sequence[Cluster]) -> list[Lot]:
    """The lots of an account, by id; a cluster is one as long as it or a member is shown. Pure."""
    members: dict[str, list[Pod]] = {cluster.cluster_id: [] for cluster in clusters}
    found = []
    for pod in pods:
        if pod.member is None:
            found.append(Lot(pod.pod_id, pod.name, 1, (pod,), False, pod.created_at))
        else:
            members.setdefault(pod.member.cluster_id, []).append(pod)
    known = {cluster.cluster_id: cluster for cluster in clusters}
    for cluster_id, rows in members.items():
        cluster = known.get(cluster_id)
        name = cluster.name if cluster else next((p.order for p in rows if p.order), "")
        num_pods = cluster.num_pods if cluster else 0
        created_at = cluster.created_at if cluster else min(pod.created_at for pod in rows)
        by_rank = tuple(sorted(rows, key=_rank))
        found.append(Lot(cluster_id, name, num_pods, by_rank, True, created_at))
    return sorted(found, key=lambda lot: lot.lot_id)


def end_lot(client: RunpodClient, lot: Lot) -> None:
    """Ask for its end; what is not there counts as done.

    A cluster takes its members with it. One that the provider does not know any more, while it
    shows members, leaves these to be ended as pods.

    Raises:
        DoorError: It was not asked, or refused.
    """
    if not lot.is_cluster:
        client.terminate(lot.lot_id)
        return
    if client.terminate_cluster(lot.lot_id):
        return
    for pod in lot.pods:
        with contextlib.suppress(RequestRefused):
            client.terminate(pod.pod_id)


def _rank(pod: Pod) -> tuple[int, str]:
    rank = pod.member.rank if pod.member is not None else None
    return (2**31 if rank is None else rank, pod.pod_id)
