"""A double of RunPod: a real HTTP server on loopback, with REST v2, GraphQL create, and faults.

It keeps pods, clusters, money and time. Faults stand in a script, an operation each:

    with FakeRunpod() as provider:
        provider.script("create", NO_CAPACITY, LOST_REPLY)
        client = RunpodClient(ApiKey(provider.key), rest=provider.rest, graphql=provider.graphql)

What a pod does is its `PodScript`. Pods move on when they are looked at; time moves when `pass_time`
is called (and with the real clock). Requests and answers keep to the provider's OpenAPI document
where that is at hand (`openapi.py`).
"""

import json
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fakes.runpod import openapi
from fakes.runpod.world import (
    DATA_CENTERS,
    GPU_PRICES,
    Answer,
    Cut,
    FakePod,
    Garbage,
    Twice,
    World,
    text_of,
)

GRAPHQL_INPUT = {
    "name": str,
    "imageName": str,
    "cloudType": str,
    "gpuTypeId": str,
    "gpuCount": int,
    "containerDiskInGb": int,
    "volumeInGb": int,
    "ports": str,
    "startSsh": bool,
    "supportPublicIp": bool,
    "env": list,
    "terminateAfter": str,
    "minCudaVersion": str,
    "dataCenterId": str,
}


CLUSTER_OPERATIONS = (
    "create cluster", "list clusters", "get cluster", "cluster pods", "terminate cluster",
)  # fmt: skip


class FakeRunpod(World):
    """The provider on loopback. See the head of this file, and `World` for its arguments."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> "FakeRunpod":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        for cluster in self.alive_clusters():
            cluster.is_gone = True
        for pod in self.alive():
            self.delete_by_hand(pod.pod_id)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def rest(self) -> str:
        return f"{self.address}/v2"

    @property
    def graphql(self) -> str:
        return f"{self.address}/graphql"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    provider: FakeRunpod


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Nothing: tests read `calls`."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The provider's clock is not ours."""
        return super().date_time_string(timestamp or self.server.provider.now().timestamp())

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        provider = self.server.provider
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        with provider.lock:
            operation = _operation(method, url.path, body)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            provider.calls.append((operation, body if body is not None else query))
            is_admitted, self._limits = provider.admit()
            if not provider.may(self.headers.get("Authorization", ""), operation, url.path, body):
                self._limits = {}
                self._problem(401, "Unauthorized")
                return
            if not is_admitted:
                self._problem(429, "Too many requests")
                return
            self._meet(operation, url.path, query, body)

    def _meet(self, operation: str, path: str, query: dict[str, str], body: Any) -> None:
        fault = self.server.provider.fault(operation)
        match fault:
            case Cut(effects):
                self._limits = None  # answers go nowhere
                for _ in range(effects):
                    self._do(operation, path, query, body)
                self.close_connection = True
            case Twice():
                limits, self._limits = self._limits, None
                self._do(operation, path, query, body)
                self._limits = limits
                self._do(operation, path, query, body)
            case Garbage():
                self._answer(200, b"<html>maintenance</html>", "text/html")
            case Answer(graphql=str(text), code=code) if path == "/graphql" and fault.status < 500:
                errors = [{"message": text, "extensions": {"code": code}}]
                self._json(200, {"errors": errors, "data": None})
            case Answer():
                self._limits = {**self._limits, **fault.headers}
                self._problem(fault.status, fault.detail)
            case None:
                self._do(operation, path, query, body)

    def _do(self, operation: str, path: str, query: dict[str, str], body: Any) -> None:
        provider = self.server.provider
        parts = path.strip("/").split("/")
        if operation == "create":
            if path == "/graphql":
                self._create_by_graphql(body["variables"]["input"])
            else:
                self._create_by_rest(body)
        elif operation == "account":
            spend = sum(pod.price_usd_per_h for pod in provider.alive())
            value = {"clientBalance": provider.balance_usd, "currentSpendPerHr": spend}
            self._json(200, {"data": {"myself": value}})
        elif operation == "list":
            shown = provider.look()
            if query.get("includeClusterPods") != "true":
                shown = [pod for pod in shown if pod.cluster is None]
            self._json(200, {"pods": [provider.described(pod) for pod in shown]})
        elif operation in CLUSTER_OPERATIONS:
            self._do_cluster(operation, parts, body)
        elif operation == "podTerminate":
            wanted = body["variables"]["input"]["podId"]
            for pod in provider.alive():
                if pod.pod_id == wanted and pod.cluster is None:
                    provider.terminate(pod)
            self._json(200, {"data": {"podTerminate": None}})
        elif operation in {"get", "terminate", "logs"}:
            found = [pod for pod in provider.look() if pod.pod_id == parts[2]]
            if not found:
                self._problem(404, f"no pod {parts[2]}")
            elif operation == "get":
                self._json(200, provider.described(found[0]))
            elif operation == "terminate" and _is_bound(found[0]):
                self._problem(409, "Pod belongs to a cluster and cannot be terminated here")
            elif operation == "terminate":
                provider.terminate(found[0])
                self._answer(204, b"", None)
            else:
                self._log(found[0], query)
        elif operation == "catalog":
            self._json(200, {"gpus": [_offer(gpu, query) for gpu in GPU_PRICES]})
        elif operation == "billing":
            self._json(200, _bill(provider, query))
        elif operation == "cluster billing":
            self._json(200, _cluster_bill(provider, query))
        elif operation == "ssh-keys":
            self._json(200, {"keys": provider.ssh_keys})
        else:
            self._problem(404, f"no operation {operation}")

    def _create_by_rest(self, body: Any) -> None:
        provider = self.server.provider
        if errors := openapi.errors_of("CreatePodRequest", body):
            self._json(
                422,
                {"title": "Invalid", "status": 422, "detail": "body", "errors": errors},
                "application/problem+json",
            )
            return
        gpu = body["gpu"]
        if gpu["id"] not in GPU_PRICES:
            self._problem(400, f"no GPU type {gpu['id']}")
            return
        if self._is_broke(gpu["id"], gpu["count"]):
            self._problem(402, "Insufficient balance")
            return
        pod = provider.create(
            name=body["name"],
            image=body["image"],
            gpu=gpu["id"],
            num_gpus=gpu["count"],
            cloud=body.get("cloud", "SECURE"),
            disk_gb=body.get("disk", 20),
            ports=body.get("ports", []),
            env=body.get("env", {}) | self._keys(body.get("startSsh", False)),
            data_center=(body.get("dataCenterIds") or [None])[0],
            terminate_after=None,
        )
        self._json(201, provider.described(pod))

    def _do_cluster(self, operation: str, parts: list[str], body: Any) -> None:
        provider = self.server.provider
        if operation == "create cluster":
            self._create_cluster(body)
            return
        if operation == "list clusters":
            shown = provider.look_at_clusters()
            self._json(200, {"clusters": [cluster.described() for cluster in shown]})
            return
        cluster = next((c for c in provider.alive_clusters() if c.cluster_id == parts[2]), None)
        if cluster is None:
            self._problem(404, f"no cluster {parts[2]}")
        elif operation == "get cluster":
            self._json(200, cluster.described())
        elif operation == "cluster pods":
            shown = [pod for pod in provider.look() if pod.cluster is cluster]
            self._json(200, {"pods": [provider.described(pod) for pod in shown]})
        else:
            provider.terminate_cluster(cluster)
            self._answer(204, b"", None)

    def _create_cluster(self, body: Any) -> None:
        provider = self.server.provider
        if errors := openapi.errors_of("CreateClusterRequest", body):
            self._json(
                422,
                {"title": "Invalid", "status": 422, "detail": "body", "errors": errors},
                "application/problem+json",
            )
            return
        compute = body["compute"]
        gpu, num_pods = compute["gpuTypeId"], compute["podCount"]
        if gpu not in GPU_PRICES:
            self._problem(400, f"no GPU type {gpu}")
            return
        if self._is_broke(gpu, compute["gpuCountPerPod"] * num_pods):
            self._problem(402, "Insufficient balance")
            return
        cluster = provider.create_cluster(
            name=body["name"],
            num_pods=num_pods,
            image=body["image"],
            gpu=gpu,
            num_gpus=compute["gpuCountPerPod"],
            cloud="SECURE",
            disk_gb=body.get("disk", 20),
            ports=body.get("ports", []),
            env=body.get("env", {}) | self._keys(body.get("startSsh", False)),
            data_center=(body.get("dataCenterIds") or [None])[0],
        )
        self._json(201, cluster.described())

    def _create_by_graphql(self, given: dict[str, Any]) -> None:
        provider = self.server.provider
        wrong = [
            name
            for name, value in given.items()
            if name not in GRAPHQL_INPUT or type(value) is not GRAPHQL_INPUT[name]
        ]
        try:
            end = datetime.fromisoformat(given["terminateAfter"])
        except (KeyError, ValueError):
            wrong.append("terminateAfter")
        if wrong:
            message = f'Variable "$input" got invalid value: {wrong}'
            errors = [{"message": message, "extensions": {"code": "BAD_USER_INPUT"}}]
            self._json(400, {"errors": errors})
            return
        if given["gpuTypeId"] not in GPU_PRICES:
            errors = [{"message": "There are no longer any instances available"}]
            self._json(200, {"errors": errors, "data": {"podFindAndDeployOnDemand": None}})
            return
        if self._is_broke(given["gpuTypeId"], given["gpuCount"]):
            errors = [{"message": "Your balance is too low"}]
            self._json(200, {"errors": errors, "data": {"podFindAndDeployOnDemand": None}})
            return
        pod = provider.create(
            name=given["name"],
            image=given["imageName"],
            gpu=given["gpuTypeId"],
            num_gpus=given["gpuCount"],
            cloud=given["cloudType"],
            disk_gb=given["containerDiskInGb"],
            ports=given["ports"].split(","),
            env={row["key"]: row["value"] for row in given["env"]}
            | self._keys(given.get("startSsh", False)),
            data_center=given.get("dataCenterId"),
            terminate_after=end,
        )
        answer = {
            "id": pod.pod_id,
            "name": pod.name,
            "costPerHr": pod.price_usd_per_h,
            "desiredStatus": "RUNNING",
        }
        self._json(200, {"data": {"podFindAndDeployOnDemand": answer}})

    def _keys(self, starts_ssh: bool) -> dict[str, str]:
        """ "Injects a PUBLIC_KEY environment variable carrying your account's registered SSH public
        key": over one that was given, as far as its document says."""
        keys = self.server.provider.ssh_keys
        return {"PUBLIC_KEY": "\n".join(keys)} if starts_ssh and keys else {}

    def _is_broke(self, gpu: str, num_gpus: int) -> bool:
        return self.server.provider.balance_usd < GPU_PRICES[gpu][1] * num_gpus

    def _log(self, pod: FakePod, query: dict[str, str]) -> None:
        start = 0
        if after := self.headers.get("Last-Event-ID"):
            start = int(after.rpartition("/")[2])
        elif "tail" in query:
            start = max(0, len(pod.log) - int(query["tail"]))
        events = ""
        for number, line in enumerate(pod.log[start:], start + 1):
            at = text_of(pod.created_at)
            data = json.dumps({"ts": at, "source": "container", "line": line})
            events += f"id: {at}/{number:012d}\ndata: {data}\n\n"
        self._answer(200, events.encode(), "text/event-stream")

    def _problem(self, status: int, detail: str) -> None:
        value = {"title": "Problem", "status": status, "detail": detail}
        self._json(status, value, "application/problem+json")

    def _json(self, status: int, value: Any, kind: str = "application/json") -> None:
        self._answer(status, json.dumps(value).encode(), kind)

    def _answer(self, status: int, data: bytes, kind: str | None) -> None:
        if self._limits is None:
            return
        self.send_response(status)
        for name, value in self._limits.items():
            self.send_header(name, value)
        if kind is not None:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _operation(method: str, path: str, body: Any) -> str:
    parts = path.strip("/").split("/")
    if path == "/graphql" and "podTerminate" in body["query"]:
        return "podTerminate"
    if path == "/graphql":
        return "create" if "podFindAndDeployOnDemand" in body["query"] else "account"
    match [method, *parts]:
        case ["POST", "v2", "pods"]:
            return "create"
        case ["GET", "v2", "pods"]:
            return "list"
        case ["GET", "v2", "pods", _]:
            return "get"
        case ["DELETE", "v2", "pods", _]:
            return "terminate"
        case ["GET", "v2", "pods", _, "logs"]:
            return "logs"
        case ["POST", "v2", "clusters"]:
            return "create cluster"
        case ["GET", "v2", "clusters"]:
            return "list clusters"
        case ["GET", "v2", "clusters", _]:
            return "get cluster"
        case ["DELETE", "v2", "clusters", _]:
            return "terminate cluster"
        case ["GET", "v2", "clusters", _, "pods"]:
            return "cluster pods"
        case ["GET", "v2", "billing", "clusters"]:
            return "cluster billing"
        case ["GET", "v2", "catalog", "gpus"]:
            return "catalog"
        case ["GET", "v2", "billing", "pods"]:
            return "billing"
        case ["GET", "v2", "account", "ssh-keys"]:
            return "ssh-keys"
    return f"{method} {path}"


def _offer(gpu: str, query: dict[str, str]) -> dict[str, Any]:
    memory, secure, community = GPU_PRICES[gpu]
    offer = {
        "id": gpu,
        "name": gpu,
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": {"secure": secure, "community": community},
        "maxCount": {"secure": 8, "community": 8},
    }
    if query.get("include") == "AVAILABILITY":
        centers = [{"id": dc, "name": dc, "availability": "LOW"} for dc in DATA_CENTERS]
        offer |= {"availability": "HIGH", "dataCenters": centers}
    return offer


def _bill(provider: FakeRunpod, query: dict[str, str]) -> dict[str, Any]:
    provider.spent_usd()
    records = [
        {
            "podId": pod.pod_id,
            "startTime": query["startTime"],
            "endTime": query["endTime"],
            "totalAmount": pod.cost_usd,
            "gpuAmount": pod.cost_usd,
            "cpuAmount": 0.0,
            "diskAmount": 0.0,
        }
        for pod in provider.all_pods
        if pod.cluster is None and query.get("podId") in {None, pod.pod_id}
    ]
    names = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
    totals = {name: sum(row[name] for row in records) for name in names}
    asked = {"startTime": query["startTime"], "endTime": query["endTime"]}
    return {
        "records": records,
        "metadata": {
            "query": {**asked, "bucketSize": query.get("bucketSize", "day"), "podId": None},
            "recordCount": len(records),
            "uniquePodCount": len({row["podId"] for row in records}),
            "totals": totals,
        },
    }


def _cluster_bill(provider: FakeRunpod, query: dict[str, str]) -> dict[str, Any]:
    provider.spent_usd()
    records = []
    for cluster in provider.all_clusters:
        cost_usd = sum(pod.cost_usd for pod in provider.all_pods if pod.cluster is cluster)
        if query.get("clusterId") in {None, cluster.cluster_id}:
            amounts = {"totalAmount": cost_usd, "gpuAmount": cost_usd, "diskAmount": 0.0}
            span = {name: query[name] for name in ("startTime", "endTime")}
            row = {"clusterId": cluster.cluster_id, **span, **amounts, "networkingAmount": 0.0}
            records.append(row)
    names = ("totalAmount", "gpuAmount", "diskAmount", "networkingAmount")
    asked = {"startTime": query["startTime"], "endTime": query["endTime"]}
    return {
        "records": records,
        "metadata": {
            "query": {**asked, "bucketSize": query.get("bucketSize", "day"), "clusterId": None},
            "recordCount": len(records),
            "uniqueClusterCount": len(records),
            "totals": {name: sum(row[name] for row in records) for name in names},
        },
    }


def _is_bound(pod: FakePod) -> bool:
    """Whether it is a member of a cluster that is there."""
    return pod.cluster is not None and not pod.cluster.is_gone
