"""What the double of RunPod keeps: pods, money, time, and the script of faults."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fakes.runpod.clusters import ClusterScript, FakeCluster

GPU_PRICES = {
    "NVIDIA H100 80GB HBM3": (80, 2.69, 2.59),
    "NVIDIA H100 NVL": (94, 2.79, 2.49),
    "NVIDIA RTX A4000": (16, 0.25, 0.17),
}
DATA_CENTERS = ("US-CA-2", "EU-RO-1")


@dataclass(frozen=True)
class Answer:
    """An answer without an effect: REST status and detail; `graphql` is how GraphQL says it."""

    status: int
    detail: str = "scripted"
    graphql: str | None = None
    code: str = "INTERNAL_SERVER_ERROR"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The connection is closed without an answer; `effects` times the call has done its work."""

    effects: int


@dataclass(frozen=True)
class Twice:
    """The call does its work twice (a repeated delivery), and answers once."""


@dataclass(frozen=True)
class Garbage:
    """Status 200 and no JSON; nothing done."""


Fault = Answer | Cut | Twice | Garbage

NO_CAPACITY = Answer(
    400,
    "This machine does not have the resources to deploy your pod",
    "There are no longer any instances available with the requested specifications.",
)
NO_BALANCE = Answer(402, "Insufficient balance", "Your balance is too low to rent this pod.")
INVALID = Answer(422, "The body does not match", "bad input", "BAD_USER_INPUT")
NO_POOL = Answer(403, "Your account cannot access the requested pool", "forbidden", "FORBIDDEN")
TOO_MANY = Answer(429, "Too many requests", headers={"Retry-After": "7"})
BROKEN = Answer(502, "bad gateway", "upstream failed")
LOST_REQUEST = Cut(0)
LOST_REPLY = Cut(1)
TWICE = Twice()
GARBAGE = Garbage()


@dataclass(frozen=True)
class PodScript:
    """How a pod behaves.

    Attributes:
        unseen: Looks at the account during which the pod is not shown.
        until_running: Looks before it runs; None: it never does (a stuck image pull).
        has_ports: Whether a running pod has a public ssh port.
        num_gpus: GPUs that its container sees; None: as ordered.
        deaf: Looks during which it lives on after it was terminated.
        cuda: CUDA version that its host reports.
    """

    unseen: int = 0
    until_running: int | None = 1
    has_ports: bool = True
    num_gpus: int | None = None
    deaf: int = 0
    cuda: str | None = "13.0"


@dataclass
class FakePod:
    """A pod of the double."""

    pod_id: str
    name: str
    image: str
    gpu: str
    num_gpus: int
    cloud: str
    disk_gb: int
    ports: list[str]
    env: dict[str, str]
    price_usd_per_h: float
    data_center: str
    created_at: datetime
    terminate_after: datetime | None
    script: PodScript
    looks: int = 0
    status: str = "PROVISIONING"
    address: tuple[str, int, str] | None = None
    cost_usd: float = 0.0
    deaf_left: int = 0
    is_ending: bool = False
    cluster: FakeCluster | None = None
    rank: int | None = None
    overlay: str | None = None  # address on the cluster's network, once it runs
    log: list[str] = field(default_factory=lambda: ["the container starts", "sshd listens"])


class World:
    """The provider without its network.

    Args:
        key: The API key that is accepted.
        balance_usd: Money in the account.
        keeps_leases: Whether `terminateAfter` is obeyed.
        calls_per_minute: Rate limit.
        start: Called when a pod begins to run; returns (host, port, user) of its ssh server.
        stop: Called when a pod ends.
        clock: In place of the system's, for simulations.
        members_may_end: Whether the pod-scoped key of a member may look at its pod and end its
            cluster; the provider's documents do not say.
    """

    def __init__(
        self,
        *,
        key: str = "rpa_TESTKEY",
        balance_usd: float = 100.0,
        keeps_leases: bool = True,
        calls_per_minute: int = 1000,
        start: Callable[[FakePod], tuple[str, int, str]] | None = None,
        stop: Callable[[FakePod], None] | None = None,
        clock: Any = None,
        members_may_end: bool = False,
    ) -> None:
        self._clock = clock
        self.members_may_end = members_may_end
        self.all_clusters: list[FakeCluster] = []
        self.cluster_scripts: deque[ClusterScript] = deque()
        self.key = key
        self.balance_usd = balance_usd
        self.keeps_leases = keeps_leases
        self.calls_per_minute = calls_per_minute
        self.calls: list[tuple[str, Any]] = []
        self.all_pods: list[FakePod] = []
        self.pod_scripts: deque[PodScript] = deque()
        self.ssh_keys = ["ssh-ed25519 AAAA registered"]
        self._start, self._stop = start, stop
        self._faults: dict[str, deque[Fault]] = {}
        self.lock = threading.RLock()
        self._offset = timedelta()
        self._charged_at = self.now()
        self._times: deque[datetime] = deque()

    def now(self) -> datetime:
        now = self._clock.now() if self._clock is not None else datetime.now(UTC)
        return now + self._offset

    def script(self, operation: str, *faults: Fault | None) -> None:
        """The next calls of `operation` meet these; None is a call that goes well."""
        self._faults.setdefault(operation, deque()).extend(faults)

    def alive(self) -> list[FakePod]:
        """Pods that cost money, shown or not."""
        with self.lock:
            return [pod for pod in self.all_pods if pod.status != "TERMINATED"]

    def delete_by_hand(self, pod_id: str) -> None:
        """Somebody ends the pod in the console."""
        with self.lock:
            for pod in self.all_pods:
                if pod.pod_id == pod_id:
                    self._charge()
                    self._end(pod)

    def pass_time(self, seconds: float) -> None:
        """Time goes by: pods cost, leases run out, the balance falls."""
        with self.lock:
            self._offset += timedelta(seconds=seconds)
            self._charge()

    def spent_usd(self) -> float:
        with self.lock:
            self._charge()
            return sum(pod.cost_usd for pod in self.all_pods)

    def pod_key(self, pod_id: str) -> str:
        """The provider's own key of a pod: it can end that pod, and nothing else."""
        return f"rpa_POD_{pod_id}"

    def may(self, header: str, operation: str, path: str, body: Any) -> bool:
        """Whether a key may do this."""
        if header == f"Bearer {self.key}":
            return True
        pod_id = header.removeprefix("Bearer rpa_POD_")
        mine = next((pod for pod in self.all_pods if pod.pod_id == pod_id), None)
        if mine is not None and mine.cluster is not None and self.members_may_end:
            if operation == "terminate cluster":
                return path.endswith(f"/clusters/{mine.cluster.cluster_id}")
            if operation == "get":
                return path.endswith(f"/pods/{pod_id}")
        if operation == "podTerminate":
            return bool(body["variables"]["input"]["podId"] == pod_id)
        return operation == "terminate" and path.endswith(f"/pods/{pod_id}")

    def count(self, operation: str) -> int:
        return sum(1 for name, _ in self.calls if name == operation)

    # What the handler calls.

    def fault(self, operation: str) -> Fault | None:
        faults = self._faults.get(operation)
        return faults.popleft() if faults else None

    def admit(self) -> tuple[bool, dict[str, str]]:
        """Whether the rate limit lets a call in, and the headers that say how it stands."""
        now = self.now()
        while self._times and now - self._times[0] >= timedelta(seconds=60):
            self._times.popleft()
        is_in = len(self._times) < self.calls_per_minute
        if is_in:
            self._times.append(now)
        left = self.calls_per_minute - len(self._times)
        wait = 60 - int((now - self._times[0]).total_seconds()) if self._times else 60
        headers = {
            "RateLimit": f'"minute";r={left};t={wait}, "hour";r=2800;t=1812',
            "RateLimit-Policy": f'"minute";q={self.calls_per_minute};w=60, "hour";q=3000;w=3600',
        }
        return is_in, headers if is_in else headers | {"Retry-After": str(wait)}

    def create(
        self,
        *,
        name: str,
        image: str,
        gpu: str,
        num_gpus: int,
        cloud: str,
        disk_gb: int,
        ports: list[str],
        env: dict[str, str],
        data_center: str | None,
        terminate_after: datetime | None,
    ) -> FakePod:
        prices = GPU_PRICES[gpu]
        price = (prices[1] if cloud == "SECURE" else prices[2]) * num_gpus
        number = len(self.all_pods) + 1
        pod = FakePod(
            pod_id=f"pod{number:06x}",
            name=name,
            image=image,
            gpu=gpu,
            num_gpus=num_gpus,
            cloud=cloud,
            disk_gb=disk_gb,
            ports=ports,
            env=env,
            price_usd_per_h=price,
            data_center=data_center or DATA_CENTERS[0],
            created_at=self.now(),
            terminate_after=terminate_after,
            script=self.pod_scripts.popleft() if self.pod_scripts else PodScript(),
        )
        pod.deaf_left = pod.script.deaf
        self.all_pods.append(pod)
        return pod

    def create_cluster(self, *, name: str, num_pods: int, **order: Any) -> FakeCluster:
        """A cluster whose members are made from `order` (the arguments of `create`)."""
        number = len(self.all_clusters) + 1
        cluster = FakeCluster(
            cluster_id=f"cluster{number:06x}",
            name=name,
            num_pods=num_pods,
            order=order,
            created_at=self.now(),
            script=self.cluster_scripts.popleft() if self.cluster_scripts else ClusterScript(),
        )
        cluster.deaf_left = cluster.script.deaf
        self.all_clusters.append(cluster)
        self._place(cluster)
        return cluster

    def _place(self, cluster: FakeCluster) -> None:
        for rank in cluster.due():
            pod = self.create(name=f"node-{rank}", terminate_after=None, **cluster.order)
            pod.cluster, pod.rank = cluster, rank
            cluster.members[rank] = pod

    def alive_clusters(self) -> list[FakeCluster]:
        """Clusters that are there, shown or not, with or without members."""
        with self.lock:
            return [cluster for cluster in self.all_clusters if not cluster.is_gone]

    def look_at_clusters(self) -> list[FakeCluster]:
        """Clusters that are shown; each has moved on by one look."""
        self._charge()
        for cluster in self.alive_clusters():
            cluster.looks += 1
            if cluster.is_ending:
                cluster.deaf_left -= 1
                if cluster.deaf_left <= 0:
                    self._end_cluster(cluster)
        return [c for c in self.alive_clusters() if c.looks > c.script.unseen]

    def terminate_cluster(self, cluster: FakeCluster) -> None:
        if cluster.deaf_left > 0:
            cluster.is_ending = True
        else:
            self._end_cluster(cluster)

    def _end_cluster(self, cluster: FakeCluster) -> None:
        cluster.is_gone = True
        for pod in cluster.members.values():
            self.terminate(pod)  # which may be deaf, and outlive its cluster

    def look(self) -> list[FakePod]:
        """Pods that are shown; each has moved on by one look."""
        self._charge()
        for cluster in self.alive_clusters():
            cluster.pod_looks += 1
            self._place(cluster)
        for pod in self.alive():
            pod.looks += 1
            if pod.is_ending:
                pod.deaf_left -= 1
                if pod.deaf_left <= 0:
                    self._end(pod)
                    continue
            until = pod.script.until_running
            if until is not None and pod.looks > pod.script.unseen + until:
                self._run(pod)
            elif pod.looks > pod.script.unseen + 1:
                pod.status = "STARTING" if pod.status == "PROVISIONING" else pod.status
        return [pod for pod in self.alive() if pod.looks > pod.script.unseen]

    def terminate(self, pod: FakePod) -> None:
        if pod.deaf_left > 0:
            pod.is_ending = True
        else:
            self._end(pod)

    def described(self, pod: FakePod) -> dict[str, Any]:
        """`Pod` of the OpenAPI document."""
        is_running = pod.status == "RUNNING"
        direct = None
        if is_running and pod.address is not None and pod.script.has_ports:
            host, port, user = pod.address
            command = f"ssh {user}@{host} -p {port}"
            direct = {"host": host, "port": port, "username": user, "command": command}
        num_gpus = pod.num_gpus if pod.script.num_gpus is None else pod.script.num_gpus
        runtime: dict[str, Any] | None = None
        if is_running:
            runtime = {
                "uptime": int((self.now() - pod.created_at).total_seconds()),
                "gpus": [{"util": 50, "memoryUtil": 40}] * num_gpus,
                "cpu": {"util": 10},
                "memory": {"util": 10},
            }
        more = {"cluster": pod.cluster.membership(pod)} if pod.cluster is not None else {}
        if runtime is not None and direct is not None:
            public = {"private": 22, "public": direct["port"], "type": "tcp", "ip": direct["host"]}
            runtime["ports"] = [public]
        return {
            "id": pod.pod_id,
            "name": pod.name,
            "status": pod.status,
            "actions": ["stop", "restart", "terminate"],
            "image": pod.image,
            "args": "",
            "disk": pod.disk_gb,
            "mounts": {},
            "ports": pod.ports,
            "env": pod.env,
            "registry": None,
            "cloud": pod.cloud,
            "dataCenterId": pod.data_center,
            "cudaVersion": pod.script.cuda if is_running else None,
            "gpu": {"id": pod.gpu, "count": pod.num_gpus},
            "ssh": {"proxy": None, "direct": direct},
            "template": None,
            "cost": pod.price_usd_per_h,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": runtime,
            "createdAt": text_of(pod.created_at),
            "startedAt": text_of(pod.created_at) if is_running else None,
            **more,
        }

    def _run(self, pod: FakePod) -> None:
        if pod.status == "RUNNING":
            return
        pod.status = "RUNNING"
        pod.address = self._start(pod) if self._start else ("127.0.0.1", 2222, "root")
        if pod.cluster is not None:
            pod.overlay = pod.overlay or "127.0.0.1"

    def _end(self, pod: FakePod) -> None:
        if pod.status == "TERMINATED":
            return
        pod.status = "TERMINATED"
        if self._stop and pod.address is not None:
            self._stop(pod)

    def _charge(self) -> None:
        now, since = self.now(), self._charged_at
        self._charged_at = now
        for pod in self.alive():
            lease = pod.terminate_after if self.keeps_leases else None
            until = min(now, lease) if lease else now
            begun = max(since, pod.created_at)
            cost = max(0.0, (until - begun).total_seconds()) / 3600 * pod.price_usd_per_h
            pod.cost_usd += cost
            self.balance_usd -= cost
            if (lease and now >= lease) or self.balance_usd <= 0:
                self._end(pod)
        if self.balance_usd <= 0:
            for cluster in self.all_clusters:
                cluster.is_gone = True


def text_of(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
