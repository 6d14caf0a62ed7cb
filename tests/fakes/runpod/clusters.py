"""Clusters of the double: what an order of several pods brings, and how that goes wrong.

Kept to the provider's documents: a member is listed among pods when it is asked for, carries its
cluster's id, rank and address, and can be ended with its cluster alone (409). What a member is
called is not said there, so it is called something of no use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# The variables that the provider puts into each member (its page "Configuration reference").
MASTER_PORT = 29500


@dataclass(frozen=True)
class ClusterScript:
    """How a cluster behaves. Its members have a `PodScript` each.

    Attributes:
        unseen: Looks at the clusters during which it is not shown.
        late: Looks at the pods after which a member of this rank is placed; None: never.
        unranked: Looks at the pods during which no member knows its rank.
        deaf: Looks at the clusters during which it lives on after it was told to end.
    """

    unseen: int = 0
    late: Mapping[int, int | None] = field(default_factory=dict)
    unranked: int = 0
    deaf: int = 0


@dataclass
class FakeCluster:
    """A cluster of the double; `order` is what each member is made from."""

    cluster_id: str
    name: str
    num_pods: int
    order: Mapping[str, Any]
    created_at: datetime
    script: ClusterScript
    members: dict[int, Any] = field(default_factory=dict)
    pod_looks: int = 0
    looks: int = 0
    deaf_left: int = 0
    is_ending: bool = False
    is_gone: bool = False

    def due(self) -> list[int]:
        """Ranks that are to be placed now."""
        late = {rank: self.script.late.get(rank, 0) for rank in range(self.num_pods)}
        return [
            rank
            for rank, looks in late.items()
            if rank not in self.members and looks is not None and self.pod_looks >= looks
        ]

    def membership(self, pod: Any) -> dict[str, Any]:
        """`PodCluster` of the OpenAPI document."""
        is_ranked = self.pod_looks > self.script.unranked
        value: dict[str, Any] = {"id": self.cluster_id, "rank": pod.rank if is_ranked else None}
        return value | ({"ip": pod.overlay} if is_ranked and pod.overlay else {})

    def described(self) -> dict[str, Any]:
        """`Cluster` of the OpenAPI document."""
        alive = [pod for pod in self.members.values() if pod.status != "TERMINATED"]
        by_status: dict[str, int] = {}
        for pod in alive:
            by_status[pod.status] = by_status.get(pod.status, 0) + 1
        value = {
            "id": self.cluster_id,
            "name": self.name,
            "type": "TRAINING",
            "compute": {
                "gpuTypeId": self.order["gpu"],
                "gpuCountPerPod": self.order["num_gpus"],
                "podCount": self.num_pods,
            },
            "pods": {"total": len(alive), "byStatus": by_status},
            "createdAt": self.created_at.isoformat().replace("+00:00", "Z"),
        }
        if (first := self.members.get(0)) in alive:
            value["primary"] = {"podId": first.pod_id, "status": first.status}
            value["dataCenterId"] = first.data_center
        return value


def variables(pod: Any) -> dict[str, str]:
    """What the provider puts into the container of a member."""
    cluster = pod.cluster
    first = cluster.members[0].overlay if 0 in cluster.members else None
    address = first or pod.overlay or "127.0.0.1"
    return {
        "RUNPOD_POD_ID": pod.pod_id,
        "PRIMARY_ADDR": address,
        "MASTER_ADDR": address,
        "PRIMARY_PORT": str(MASTER_PORT),
        "MASTER_PORT": str(MASTER_PORT),
        "HOST_NODE_ADDR": f"{address}:{MASTER_PORT}",
        "NODE_ADDR": pod.overlay or "127.0.0.1",
        "NODE_RANK": str(pod.rank),
        "NUM_NODES": str(cluster.num_pods),
        "NUM_TRAINERS": str(pod.num_gpus),
        "WORLD_SIZE": str(cluster.num_pods * pod.num_gpus),
    }
