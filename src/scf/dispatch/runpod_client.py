"""A thin client of RunPod: REST v2 for everything, GraphQL to create with a server-side end.

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
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from scf.core.canonical import parse_json
from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import InputError, UsageError
from scf.dispatch.runpod_errors import (
    BalanceTooLow,
    CreateUnknown,
    KeyRefused,
    NotPlaced,
    ProviderFault,
    RateLimited,
    RequestRefused,
)
from scf.dispatch.runpod_model import (
    ACCOUNT_QUERY,
    CREATE_MUTATION,
    Account,
    BillingRow,
    Created,
    GpuOffer,
    LogLine,
    Pod,
    PodOrder,
    graphql_input,
    rest_body,
)

REST = "https://api.runpod.io/v2"
GRAPHQL = "https://api.runpod.io/graphql"

REPLY_MAX_BYTES = 32 * 2**20
LINE_MAX_CHARS = 10_000
TRIES = 3
# A pause that the provider asks for is kept here when it is short, else the caller comes again.
PAUSE_MAX_S = 3.0

T = TypeVar("T")

_WINDOW = re.compile(r'"(?P<name>[^"]*)"\s*;\s*r=(?P<left>\d+)\s*;\s*t=(?P<seconds>\d+)')
# GraphQL says in words what REST says with a status. Seen in runpod-python#297, runpodctl#189.
_NO_ROOM = re.compile(
    r"no longer any instances|does not have the resources|no (resources|capacity|instances|gpus?)"
    r"|not available|unavailable|out of stock|could not be placed|insufficient (gpu|capacity)",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"balance|credit|funds|spend(ing)? limit|payment", re.IGNORECASE)


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


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


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
        """Rent a pod. Called once for an order: see the head of this file.

        Args:
            order: The pod.
            route: `graphql` (with `terminateAfter`) or `rest` (without it).

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
            raise _error_of(f"create {order.name}", reply)
        try:
            value = parse_json(reply.body)
            if route == "graphql":
                _raise_graphql(f"create {order.name}", value, creates=True)
                pod = value["data"]["podFindAndDeployOnDemand"]
                return Created(str(pod["id"]), str(pod["name"]), float(pod["costPerHr"]))
            return Created(str(value["id"]), str(value["name"]), float(value["cost"]))
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

    def terminate(self, pod_id: str) -> None:
        """Ask for the pod's end; a pod that is not there counts as done. `get_pod` confirms it."""
        reply = self._call("DELETE", f"{self._rest}/pods/{_part(pod_id)}", f"terminate {pod_id}")
        if reply.status not in {200, 202, 204, 404}:
            raise _error_of(f"terminate {pod_id}", reply)

    def gpu_offers(self, *, num_gpus: int = 1, with_availability: bool = True) -> list[GpuOffer]:
        """The catalogue with prices."""
        query = {"count": str(num_gpus)}
        if with_availability:
            query |= {"include": "AVAILABILITY", "product": "POD"}
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
            raise _error_of("account", reply)
        value = _parsed("account", reply)
        _raise_graphql("account", value, creates=False)

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
                    reply = _Reply(response.status_code, response.headers, self._body(response))
                    raise _error_of(f"logs of {pod_id}", reply)
                lines = _lines(response, lambda: self._clock.monotonic() >= deadline)
                yield from itertools.islice(_events(lines), lines_max)
        except httpx.ReadTimeout:
            return
        except httpx.HTTPError as error:
            raise ProviderFault(f"logs of {pod_id}: {type(error).__name__}") from error

    def _create_call(self, order: PodOrder, route: str) -> tuple[str, dict[str, Any]]:
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
            raise _error_of(what, reply)
        return _parsed(what, reply)

    def _call(
        self,
        method: str,
        address: str,
        what: str,
        *,
        query: dict[str, str] | None = None,
        json_body: dict[str, Any] | None = None,
    ) -> _Reply:
        """A call that can be repeated, repeated while the provider fails."""
        for number in range(TRIES):
            is_last = number == TRIES - 1
            try:
                reply = self._send(method, address, query=query, json_body=json_body)
            except httpx.HTTPError as error:
                if is_last:
                    raise ProviderFault(f"{what}: {type(error).__name__}") from error
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
    ) -> _Reply:
        self._wait_for_room(f"{method} {urlsplit(address).path}")
        headers = {"Authorization": self._key.header, "Accept": "application/json"}
        with self._http.stream(
            method, address, params=query, json=json_body, headers=headers
        ) as response:
            self._note_limits(response.headers)
            reply = _Reply(response.status_code, dict(response.headers), self._body(response))
        if reply.status == 429:
            raise RateLimited(
                f"{method} {urlsplit(address).path}: RunPod asks us to wait",
                self._retry_after_s(reply),
            )
        return reply

    def _body(self, response: httpx.Response) -> bytes:
        return _bounded(response, self._clock, self._timeout_s)

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

    def _retry_after_s(self, reply: _Reply) -> float:
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


def _bounded(response: httpx.Response, clock: Clock, limit_s: float) -> bytes:
    # httpx limits the wait for each piece; this limits all of them together.
    deadline = clock.monotonic() + limit_s
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > REPLY_MAX_BYTES:
            raise ProviderFault(f"a reply of more than {REPLY_MAX_BYTES} bytes")
        if clock.monotonic() > deadline:
            raise ProviderFault(f"a reply that takes longer than {limit_s:g} s")
    return bytes(data)


def _parsed(what: str, reply: _Reply) -> Any:
    try:
        return parse_json(reply.body)
    except InputError as error:
        raise ProviderFault(f"{what}: an answer that is no JSON") from error


def _detail_of(reply: _Reply) -> str:
    """What a problem document (RFC 9457) says, in one line."""
    try:
        value = parse_json(reply.body)
        text = f"{value['title']}: {value['detail']}"
        errors = value.get("errors") or []
        return "; ".join([text, *map(str, errors)])[:500]
    except (InputError, KeyError, TypeError, AttributeError):
        return f"status {reply.status}"


def _error_of(what: str, reply: _Reply) -> Exception:
    detail = f"{what}: {_detail_of(reply)}"
    if reply.status == 401:
        return KeyRefused(detail, remedy="Make a new API key in the RunPod console, and give it.")
    if reply.status == 402:
        return BalanceTooLow(detail, remedy="Add credit to the RunPod account.")
    if reply.status == 403:
        # "Your account cannot access the requested pool": the next candidate may work.
        is_create = what.startswith("create ")
        return NotPlaced(detail) if is_create else KeyRefused(detail)
    if reply.status == 400:
        return NotPlaced(detail)
    if reply.status >= 500:
        return ProviderFault(detail)
    return RequestRefused(detail)


def _raise_graphql(what: str, value: Any, *, creates: bool) -> None:
    errors = value.get("errors")
    if not errors:
        return
    text = "; ".join(str(row.get("message")) for row in errors)[:500]
    codes = {str((row.get("extensions") or {}).get("code")) for row in errors}
    detail = f"{what}: {text}"
    if codes & {"UNAUTHENTICATED", "FORBIDDEN"} or "not authorized" in text.lower():
        raise KeyRefused(detail, remedy="Make a new API key in the RunPod console, and give it.")
    if codes & {"GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED"}:
        raise RequestRefused(detail)
    if _NO_MONEY.search(text):
        raise BalanceTooLow(detail, remedy="Add credit to the RunPod account.")
    if _NO_ROOM.search(text):
        raise NotPlaced(detail)
    if creates:
        raise CreateUnknown(detail)
    raise ProviderFault(detail)


def _lines(response: httpx.Response, is_over: Callable[[], bool]) -> Iterator[str]:
    """Lines of a stream, cut where one is far too long."""
    rest = b""
    for piece in response.iter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode(errors="replace")
        rest = rest[: 4 * LINE_MAX_CHARS]
        if is_over():
            return


def _events(lines: Iterator[str]) -> Iterator[LogLine]:
    """Log lines of a stream of server-sent events."""
    event_id, data = "", ""
    for line in lines:
        if line.startswith("id:"):
            event_id = line[3:].strip()[:200]
        elif line.startswith("data:"):
            data = line[5:].strip()[: 2 * LINE_MAX_CHARS]
        elif not line and data:
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                value = json.loads(data)
                text = str(value["line"])[:LINE_MAX_CHARS]
                yield LogLine(event_id or str(value["ts"]), str(value["source"]), text)
            data = ""
