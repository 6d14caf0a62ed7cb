"""What RunPod is asked for and what it says, as values. Nothing here calls out.

REST v2 as in its OpenAPI document (tests hold every request to it); the GraphQL input as in
runpodctl 2026-07 (`internal/api/graphql.go`), because it alone takes `terminateAfter`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from scf.core.clock import parse_utc, utc_text
from scf.core.errors import UsageError

# Sent with variables, never built from text: a value cannot become part of the query.
CREATE_MUTATION = (
    "mutation Create($input: PodFindAndDeployOnDemandInput!) "
    "{ podFindAndDeployOnDemand(input: $input) { id name costPerHr desiredStatus } }"
)
CLUSTER_PODS_MAX = 250
# The variable by which a member of a cluster is known to be ours.
ORDER_VARIABLE = "SCF_ORDER"
ACCOUNT_QUERY = "query Account { myself { clientBalance currentSpendPerHr } }"


class PodStatus(StrEnum):
    """As REST v2 says it."""

    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    EXITED = "EXITED"
    ERROR = "ERROR"
    TERMINATED = "TERMINATED"


@dataclass(frozen=True, kw_only=True)
class PodOrder:
    """A pod that is to be rented, or a cluster of such pods.

    Attributes:
        name: Unique to one attempt; the only thing by which a pod is found when a reply is lost.
        image: Container image, best by digest.
        gpu: GPU type as the catalogue names it.
        terminate_after: The provider ends the pod then, whatever becomes of us; GraphQL only.
        num_gpus: GPUs in the pod.
        cloud: `SECURE` or `COMMUNITY`.
        data_center: Where; None leaves it to the provider.
        disk_gb: Container disk.
        env: Variables of the container.
        ports: `22/tcp` for ssh.
        min_cuda: Oldest CUDA version of the host's driver; None for any.
        num_pods: More than one is a cluster. It has no `terminate_after`, `cloud` or `min_cuda`:
            its create call takes none of them.
    """

    name: str
    image: str
    gpu: str
    terminate_after: datetime
    num_gpus: int = 1
    cloud: str = "SECURE"
    data_center: str | None = None
    disk_gb: int = 80
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ("22/tcp",)
    min_cuda: str | None = "12.8"
    num_pods: int = 1

    def __post_init__(self) -> None:
        if self.terminate_after.tzinfo is None:
            raise UsageError(f"pod {self.name}: terminate_after needs a time zone")
        if not self.name or not self.image or not self.gpu:
            raise UsageError("a pod needs a name, an image and a GPU type")
        if self.num_gpus < 1 or self.disk_gb < 1:
            raise UsageError(f"pod {self.name}: num_gpus and disk_gb must be at least 1")
        if not 1 <= self.num_pods <= CLUSTER_PODS_MAX:
            raise UsageError(f"cluster {self.name}: 2 to {CLUSTER_PODS_MAX} pods")

    def __repr__(self) -> str:
        # The variables of a pod may hold its host key; they are never printed.
        return f"PodOrder(name={self.name!r}, gpu={self.gpu!r}, data_center={self.data_center!r})"


def rest_body(order: PodOrder) -> dict[str, Any]:
    """`CreatePodRequest`. It has no field for `terminate_after`: one hand fewer."""
    gpu: dict[str, Any] = {"id": order.gpu, "count": order.num_gpus}
    if order.min_cuda is not None:
        gpu["minCudaVersion"] = order.min_cuda
    return _container(order) | {"cloud": order.cloud, "gpu": gpu}


def cluster_body(order: PodOrder) -> dict[str, Any]:
    """`CreateClusterRequest`: every member gets the same container, variables and host key."""
    compute = {
        "gpuTypeId": order.gpu,
        "gpuCountPerPod": order.num_gpus,
        "podCount": order.num_pods,
    }
    # No Slurm and no Ray: we start torchrun ourselves.
    return _container(order) | {"type": "TRAINING", "compute": compute}


def _container(order: PodOrder) -> dict[str, Any]:
    """What REST is told of a container, alone or in each member of a cluster."""
    body: dict[str, Any] = {
        "name": order.name,
        "image": order.image,
        "disk": order.disk_gb,
        "ports": list(order.ports),
        "startSsh": True,
        "env": dict(order.env),
    }
    if order.data_center is not None:
        body["dataCenterIds"] = [order.data_center]
    return body


def graphql_input(order: PodOrder) -> dict[str, Any]:
    """`PodFindAndDeployOnDemandInput`, with the server-side end of the pod's life."""
    value: dict[str, Any] = {
        "name": order.name,
        "imageName": order.image,
        "cloudType": order.cloud,
        "gpuTypeId": order.gpu,
        "gpuCount": order.num_gpus,
        "containerDiskInGb": order.disk_gb,
        "volumeInGb": 0,
        "ports": ",".join(order.ports),
        "startSsh": True,
        "supportPublicIp": True,
        "env": [{"key": key, "value": value} for key, value in sorted(order.env.items())],
        "terminateAfter": utc_text(order.terminate_after.replace(microsecond=0)),
    }
    if order.min_cuda is not None:
        value["minCudaVersion"] = order.min_cuda
    if order.data_center is not None:
        value["dataCenterId"] = order.data_center
    return value


@dataclass(frozen=True)
class SshAddress:
    """Where a pod's ssh server is reached directly (rsync needs that, not the proxy)."""

    host: str
    port: int
    user: str


@dataclass(frozen=True)
class Membership:
    """A pod's place in a cluster.

    Attributes:
        cluster_id: The cluster, with which it ends.
        rank: 0 is the one that all meet at; None until it is assigned.
        address: On the cluster's own network; None until it is assigned.
    """

    cluster_id: str
    rank: int | None
    address: str | None


@dataclass(frozen=True)
class Pod:
    """A pod, as REST v2 describes it.

    Attributes:
        pod_id: The provider's id.
        name: Ours.
        status: See `PodStatus`.
        cost_usd_per_h: What it costs now.
        data_center: Where it is, if it is known.
        ssh: Where to reach it; None while it has no public port.
        num_gpus_seen: GPUs that the running container sees; None while it does not run.
        is_locked: A locked pod cannot be stopped.
        member: Set for a member of a cluster.
        created_at: When it was made.
        cuda: CUDA version of its host, where it says one.
        order: Our name of the order that it was made by, from its variables; members of a cluster
            have names of the provider's choice.
    """

    pod_id: str
    name: str
    status: PodStatus
    cost_usd_per_h: float
    data_center: str | None
    ssh: SshAddress | None
    num_gpus_seen: int | None
    is_locked: bool
    member: Membership | None
    created_at: datetime
    cuda: str | None = None
    order: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Pod":
        """Read it. Raises KeyError, TypeError or ValueError for what is not a pod."""
        runtime = value["runtime"]
        direct = (value["ssh"] or {}).get("direct")
        gpus = runtime.get("gpus") if runtime else None
        return cls(
            pod_id=_text(value["id"]),
            name=_text(value["name"]),
            status=PodStatus(value["status"]),
            cost_usd_per_h=float(value["cost"]),
            data_center=value["dataCenterId"],
            ssh=SshAddress(_text(direct["host"]), int(direct["port"]), _text(direct["username"]))
            if direct
            else None,
            num_gpus_seen=len(gpus) if gpus is not None else None,
            is_locked=bool(value["locked"]),
            member=_membership(value["cluster"]) if value.get("cluster") else None,
            created_at=parse_utc(value["createdAt"]),
            cuda=value.get("cudaVersion"),
            order=(value.get("env") or {}).get(ORDER_VARIABLE),
        )


@dataclass(frozen=True)
class Cluster:
    """A cluster, as REST v2 describes it: what it is, not what its members do.

    Attributes:
        cluster_id: The provider's id.
        name: Ours.
        num_pods: Members that were ordered.
        num_placed: Members that there are now.
        created_at: When it was made.
    """

    cluster_id: str
    name: str
    num_pods: int
    num_placed: int
    created_at: datetime

    @classmethod
    def from_json(cls, value: Any) -> "Cluster":
        """Read it. Raises KeyError, TypeError or ValueError for what is not a cluster."""
        return cls(
            cluster_id=_text(value["id"]),
            name=_text(value["name"]),
            num_pods=int(value["compute"]["podCount"]),
            num_placed=int(value["pods"]["total"]),
            created_at=parse_utc(value["createdAt"]),
        )


@dataclass(frozen=True)
class Created:
    """The answer to an order: a pod is on its way, and costs from now on."""

    pod_id: str
    name: str
    cost_usd_per_h: float


@dataclass(frozen=True)
class GpuOffer:
    """A GPU type of the catalogue.

    Attributes:
        gpu: Its id.
        memory_gb: Of one GPU.
        secure_usd_per_h: Price of one GPU in the secure cloud; 0 where it is not offered there.
        community_usd_per_h: The same for the community cloud.
        availability: NONE, LOW, MEDIUM or HIGH; None when it was not asked for.
        data_centers: Availability by data centre, where it was said.
    """

    gpu: str
    memory_gb: int
    secure_usd_per_h: float
    community_usd_per_h: float
    availability: str | None
    data_centers: Mapping[str, str]

    def usd_per_h(self, cloud: str) -> float:
        """Price of one GPU in `cloud`."""
        return self.secure_usd_per_h if cloud == "SECURE" else self.community_usd_per_h

    @classmethod
    def from_json(cls, value: Any) -> "GpuOffer":
        return cls(
            gpu=_text(value["id"]),
            memory_gb=int(value["memory"]),
            secure_usd_per_h=float(value["price"]["secure"]),
            community_usd_per_h=float(value["price"]["community"]),
            availability=value.get("availability"),
            data_centers={row["id"]: row["availability"] for row in value.get("dataCenters") or []},
        )


@dataclass(frozen=True)
class BillingRow:
    """What a pod, or a cluster under its own id, was billed in one span of time."""

    pod_id: str
    start: datetime
    end: datetime
    total_usd: float
    gpu_usd: float
    disk_usd: float

    @classmethod
    def from_json(cls, value: Any) -> "BillingRow":
        return cls(
            pod_id=_text(value["clusterId"] if "clusterId" in value else value["podId"]),
            start=parse_utc(value["startTime"]),
            end=parse_utc(value["endTime"]),
            total_usd=float(value["totalAmount"]),
            gpu_usd=float(value["gpuAmount"]),
            disk_usd=float(value["diskAmount"]),
        )


@dataclass(frozen=True)
class LogLine:
    """A line that a pod has said.

    Attributes:
        event_id: Give it back to go on after this line.
        source: `container` or `system`.
        text: The line.
    """

    event_id: str
    source: str
    text: str


@dataclass(frozen=True)
class Account:
    """The account's money, USD; None where the provider does not say."""

    balance_usd: float | None
    spend_usd_per_h: float | None


def _membership(value: Any) -> Membership:
    rank, address = value["rank"], value.get("ip")
    return Membership(
        cluster_id=_text(value["id"]),
        rank=None if rank is None else int(rank),
        address=None if address is None else _text(address),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, found {str(value)[:50]!r}")
    return value
