"""A thin client of RunPod: REST v2 for everything, GraphQL to create a pod with a server-side end.

Rules of this file:

* The key is a value that is handed in; it stands in one header and in no text, log or error.
* The create call is made once. It has no idempotency key, so after a lost reply nobody knows
  whether a pod exists: `CreateUnknown`, and the caller lists by name before anything else.
* Reading and terminating can be repeated, and are, a few times.
* The provider's rate limits are read from its replies; a call that would pass them is not made.
* Every reply has a limit in size and time, and its form is checked.
"""

import contextlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from scf.core.canonical import parse_json
from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import InputError, UsageError
from scf.dispatch.runpod_errors import CreateUnknown, ProviderFault, RateLimited
from scf.dispatch.runpod_model import (
    ACCOUNT_QUERY,
    CREATE_MUTATION,
    Account,
    BillingRow,
    Cluster,
    Created,
    GpuOffer,
    LogLine,
    Pod,
    PodOrder,
    cluster_body,
    graphql_input,
    rest_body,
)
from scf.dispatch.runpod_reply import (
    Reply,
    bounded,
    error_of,
    events_of,
    lines_of,
    parsed,
    raise_graphql,
)

REST = "https://api.runpod.io/v2"
GRAPHQL = "https://api.runpod.io/graphql"

TRIES = 3
# A pause that the provider asks for is kept here when it is short, else the caller comes again.
PAUSE_MAX_S = 3.0

T = TypeVar("T")

_WINDOW = re.compile(r'"(?P<name>[^"]*)"\s*;\s*r=(?P<left>\d+)\s*;\s*t=(?P<seconds>\d+)')


class ApiKey:
    """A secret that does not print itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise UsageError("the RunPod API key has characters that no key has")
        self._text = text

    def __repr__(self) -> str:
        return "ApiKey(...)"

    @property
    def header(self) -> str:
        """Value of the Authorization header."""
        return f"Bearer {self._text}"


class RunpodClient:
    """Calls to one account. Safe to use from several threads.

    Args:
        key: The API key.
        rest: Address of REST v2 (setting `SCF_RUNPOD_REST`).
        graphql: Address of GraphQL (setting `SCF_RUNPOD_GRAPHQL`).
        timeout_s: Limit for a whole call.
        clock: Time.
    """

    def __init__(
        self,
        key: ApiKey,
        *,
        rest: str = REST,
        graphql: str = GRAPHQL,
        timeout_s: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._key = key
        self._rest = _checked_address(rest)
        self._graphql = _checked_address(graphql)
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._skew_s: float | None = None
        # No redirects: the key goes to the address that the operator named and nowhere else.
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)), follow_redirects=False
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def create(self, order: PodOrder, *, route: str = "graphql") -> Created:
        """Rent a pod, or a cluster. Called once for an order: see the head of this file.

        Args:
            order: What is to be rented.
            route: `graphql` (with `terminateAfter`) or `rest` (without it). A cluster is always
                created by REST, and without an end: the document knows no other way.

        Raises:
            CreateUnknown: It may exist.
            NotPlaced: It does not; another candidate may work.
            BalanceTooLow: It does not; none will work.
            RequestRefused, KeyRefused, RateLimited, ProviderFault: It does not.
        """
        if route not in {"graphql", "rest"}:
            raise UsageError(f"create route {route!r}: one of graphql, rest")
        address, body = self._create_call(order, route)
        try:
            reply = self._send("POST", address, json_body=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ProviderFault(f"create {order.name}: RunPod cannot be reached") from error
        except (httpx.HTTPError, ProviderFault) as error:
            raise CreateUnknown(
                f"create {order.name}: the reply was lost ({type(error).__name__})"
            ) from error
        if reply.status >= 500 or reply.status in {408, 409}:
            raise CreateUnknown(f"create {order.name}: RunPod answered {reply.status}")
        if reply.status not in {200, 201}:
            raise error_of(f"create {order.name}", reply)
        try:
            value = parse_json(reply.body)
            if address == self._graphql:
                raise_graphql(f"create {order.name}", value, creates=True)
                pod = value["data"]["podFindAndDeployOnDemand"]
                return Created(str(pod["id"]), str(pod["name"]), float(pod["costPerHr"]))
            # A cluster's answer has no price: its members say theirs once they are placed.
            cost = 0.0 if order.num_pods > 1 else float(value["cost"])
            return Created(str(value["id"]), str(value["name"]), cost)
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise CreateUnknown(f"create {order.name}: an answer that names no pod") from error

    def list_pods(self) -> list[Pod]:
        """Every pod of the account, members of clusters included."""
        value = self._get("list pods", "/pods", {"includeClusterPods": "true"})
        return self._read("list pods", lambda: [Pod.from_json(row) for row in value["pods"]])

    def get_pod(self, pod_id: str) -> Pod | None:
        """The pod; None when the provider says that there is none."""
        value = self._get(f"pod {pod_id}", f"/pods/{_part(pod_id)}", {}, may_be_absent=True)
        if value is None:
            return None
        return self._read(f"pod {pod_id}", lambda: Pod.from_json(value))

    def list_clusters(self) -> list[Cluster]:
        """Every cluster of the account. Their members are in `list_pods`."""
        value = self._get("list clusters", "/clusters", {})
        return self._read(
            "list clusters", lambda: [Cluster.from_json(row) for row in value["clusters"]]
        )

    def get_cluster(self, cluster_id: str) -> Cluster | None:
        """The cluster; None when the provider says that there is none."""
        what = f"cluster {cluster_id}"
        value = self._get(what, f"/clusters/{_part(cluster_id)}", {}, may_be_absent=True)
        return None if value is None else self._read(what, lambda: Cluster.from_json(value))

    def cluster_pods(self, cluster_id: str) -> list[Pod]:
        """Members of a cluster; none when the provider says that there is no such cluster."""
        what = f"pods of cluster {cluster_id}"
        value = self._get(what, f"/clusters/{_part(cluster_id)}/pods", {}, may_be_absent=True)
        if value is None:
            return []
        return self._read(what, lambda: [Pod.from_json(row) for row in value["pods"]])

    def terminate_cluster(self, cluster_id: str) -> bool:
        """Ask for the end of a cluster and all its members; False where it is not there."""
        what = f"terminate cluster {cluster_id}"
        reply = self._call("DELETE", f"{self._rest}/clusters/{_part(cluster_id)}", what)
        if reply.status not in {200, 202, 204, 404}:
            raise error_of(what, reply)
        return reply.status != 404

    def terminate(self, pod_id: str) -> None:
        """Ask for the pod's end; a pod that is not there counts as done. `get_pod` confirms it.

        Raises:
            RequestRefused: It is a member of a cluster, and ends with that (409).
        """
        reply = self._call("DELETE", f"{self._rest}/pods/{_part(pod_id)}", f"terminate {pod_id}")
        if reply.status not in {200, 202, 204, 404}:
            raise error_of(f"terminate {pod_id}", reply)

    def gpu_offers(
        self, *, num_gpus: int = 1, with_availability: bool = True, product: str = "POD"
    ) -> list[GpuOffer]:
        """The catalogue with prices, which are those of pods; availability is of `product`."""
        query = {"count": str(num_gpus)}
        if with_availability:
            query |= {"include": "AVAILABILITY", "product": product}
        value = self._get("catalogue", "/catalog/gpus", query)
        return self._read("catalogue", lambda: [GpuOffer.from_json(row) for row in value["gpus"]])

    def billing(
        self, start: datetime, end: datetime, *, pod_id: str | None = None, bucket: str = "hour"
    ) -> list[BillingRow]:
        """What pods were billed: the truth against which estimates are held."""
        query = {"startTime": utc_text(start), "endTime": utc_text(end), "bucketSize": bucket}
        if pod_id is not None:
            query["podId"] = pod_id
        value = self._get("billing", "/billing/pods", query)
        return self._read("billing", lambda: [BillingRow.from_json(r) for r in value["records"]])

    def cluster_billing(
        self, start: datetime, end: datetime, *, cluster_id: str, bucket: str = "hour"
    ) -> list[BillingRow]:
        """What a cluster was billed: GPUs, disks and its network; `pod_id` is the cluster's id."""
        query = {"startTime": utc_text(start), "endTime": utc_text(end), "bucketSize": bucket}
        value = self._get("billing", "/billing/clusters", query | {"clusterId": cluster_id})
        return self._read("billing", lambda: [BillingRow.from_json(r) for r in value["records"]])

    def ssh_keys(self) -> list[str]:
        """Public keys that the account has registered."""
        value = self._get("ssh keys", "/account/ssh-keys", {})
        return self._read("ssh keys", lambda: [str(key) for key in value["keys"]])

    def account(self) -> Account:
        """Balance and present spending. Only GraphQL says them."""
        reply = self._call(
            "POST", self._graphql, "account", json_body={"query": ACCOUNT_QUERY, "variables": {}}
        )
        if reply.status != 200:
            raise error_of("account", reply)
        value = parsed("account", reply)
        raise_graphql("account", value, creates=False)

        def read() -> Account:
            row = value["data"]["myself"]
            numbers = [row.get(name) for name in ("clientBalance", "currentSpendPerHr")]
            return Account(*(None if number is None else float(number) for number in numbers))

        return self._read("account", read)

    def logs(
        self,
        pod_id: str,
        *,
        source: str | None = None,
        tail: int = 100,
        after: str | None = None,
        limit_s: float = 10.0,
        lines_max: int = 5000,
    ) -> Iterator[LogLine]:
        """What the pod says, from the last `tail` lines or from after an event, until a limit.

        The stream has no end of its own: it is read for `limit_s` or `lines_max` lines.
        """
        self._wait_for_room(f"logs of {pod_id}")
        headers = {"Authorization": self._key.header, "Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = after
        query = {"tail": str(min(max(tail, 0), 5000))} | ({"source": source} if source else {})
        address = f"{self._rest}/pods/{_part(pod_id)}/logs"
        deadline = self._clock.monotonic() + limit_s
        timeout = httpx.Timeout(limit_s, connect=min(10.0, limit_s))
        try:
            with self._http.stream(
                "GET", address, params=query, headers=headers, timeout=timeout
            ) as response:
                self._note_limits(response.headers)
                if response.status_code != 200:
                    reply = Reply(response.status_code, response.headers, self._body(response))
                    raise error_of(f"logs of {pod_id}", reply)
                lines = lines_of(response, lambda: self._clock.monotonic() >= deadline)
                yield from itertools.islice(events_of(lines), lines_max)
        except httpx.ReadTimeout:
            return
        except httpx.HTTPError as error:
            raise ProviderFault(
                f"logs of {pod_id}: RunPod does not answer ({type(error).__name__})"
            ) from error

    def _create_call(self, order: PodOrder, route: str) -> tuple[str, dict[str, Any]]:
        if order.num_pods > 1:
            return f"{self._rest}/clusters", cluster_body(order)
        if route == "rest":
            return f"{self._rest}/pods", rest_body(order)
        variables = {"input": graphql_input(order)}
        return self._graphql, {"query": CREATE_MUTATION, "variables": variables}

    def _get(
        self, what: str, path: str, query: dict[str, str], *, may_be_absent: bool = False
    ) -> Any:
        reply = self._call("GET", f"{self._rest}{path}", what, query=query)
        if reply.status == 404 and may_be_absent:
            return None
        if reply.status != 200:
            raise error_of(what, reply)
        return parsed(what, reply)

    def _call(
        self,
        method: str,
        address: str,
        what: str,
        *,
        query: dict[str, str] | None = None,
        json_body: dict[str, Any] | None = None,
    ) -> Reply:
        """A call that can be repeated, repeated while the provider fails."""
        for number in range(TRIES):
            is_last = number == TRIES - 1
            try:
                reply = self._send(method, address, query=query, json_body=json_body)
            except httpx.HTTPError as error:
                if is_last:
                    raise ProviderFault(
                        f"{what}: RunPod does not answer ({type(error).__name__})"
                    ) from error
            else:
                if reply.status < 500 or is_last:
                    return reply
            self._clock.sleep(0.25 * 2**number)
        raise AssertionError("the last try returns or raises")

    def _send(
        self,
        method: str,
        address: str,
        *,
        query: dict[str, str] | None = None,
        json_body: dict[str, Any] | None = None,
    ) -> Reply:
        self._wait_for_room(f"{method} {urlsplit(address).path}")
        headers = {"Authorization": self._key.header, "Accept": "application/json"}
        with self._http.stream(
            method, address, params=query, json=json_body, headers=headers
        ) as response:
            self._note_limits(response.headers)
            reply = Reply(response.status_code, dict(response.headers), self._body(response))
        if reply.status == 429:
            raise RateLimited(
                f"{method} {urlsplit(address).path}: RunPod asks us to wait",
                self._retry_after_s(reply),
            )
        return reply

    def _body(self, response: httpx.Response) -> bytes:
        return bounded(response, self._clock, self._timeout_s)

    def _wait_for_room(self, what: str) -> None:
        with self._lock:
            pause_s = self._not_before - self._clock.monotonic()
        if pause_s <= 0:
            return
        if pause_s > PAUSE_MAX_S:
            raise RateLimited(f"{what}: not sent, the rate limit is used up", pause_s)
        self._clock.sleep(pause_s)

    @property
    def clock_skew_s(self) -> float | None:
        """How far our clock is ahead of the provider's, by its latest reply; None before one."""
        return self._skew_s

    def _note_limits(self, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(TypeError, ValueError):
            theirs = parsedate_to_datetime(headers.get("date", ""))
            self._skew_s = (self._clock.now() - theirs).total_seconds()
        windows = _WINDOW.finditer(headers.get("ratelimit", ""))
        empty = [float(found["seconds"]) for found in windows if int(found["left"]) == 0]
        if empty:
            self._hold(max(empty))

    def _retry_after_s(self, reply: Reply) -> float:
        try:
            seconds = float(reply.headers.get("retry-after", "10"))
        except ValueError:
            seconds = 10.0
        seconds = min(max(seconds, 0.0), 3600.0)
        self._hold(seconds)
        return seconds

    def _hold(self, seconds: float) -> None:
        with self._lock:
            self._not_before = max(self._not_before, self._clock.monotonic() + seconds)

    @staticmethod
    def _read(what: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProviderFault(f"{what}: an answer of another form: {error}") from error


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    is_here = parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
        raise UsageError(f"{parts.hostname or address!r}: not an address of the form https://...")
    if parts.scheme == "http" and not is_here:
        raise UsageError(f"{parts.hostname}: the API key is sent over https only")
    return address.rstrip("/")


def _part(pod_id: str) -> str:
    return quote(pod_id, safe="")
