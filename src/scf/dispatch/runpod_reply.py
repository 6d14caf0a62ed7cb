"""What RunPod answers, read with care: limits in size and time, and who must act on a refusal."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from scf.core.canonical import parse_json
from scf.core.clock import Clock
from scf.core.errors import InputError
from scf.dispatch.runpod_errors import (
    BalanceTooLow,
    CreateUnknown,
    KeyRefused,
    NotPlaced,
    ProviderFault,
    RequestRefused,
)
from scf.dispatch.runpod_model import LogLine

REPLY_MAX_BYTES = 32 * 2**20
LINE_MAX_CHARS = 10_000

# GraphQL says in words what REST says with a status. Seen in runpod-python#297, runpodctl#189.
_NO_ROOM = re.compile(
    r"no longer any instances|does not have the resources|no (resources|capacity|instances|gpus?)"
    r"|not available|unavailable|out of stock|could not be placed|insufficient (gpu|capacity)",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"balance|credit|funds|spend(ing)? limit|payment", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """An answer whose body is here whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def bounded(response: httpx.Response, clock: Clock, limit_s: float) -> bytes:
    """The body of a reply. Raises ProviderFault for one that is too large or too slow."""
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


def parsed(what: str, reply: Reply) -> Any:
    """The body as JSON. Raises ProviderFault for one that is none."""
    try:
        return parse_json(reply.body)
    except InputError as error:
        raise ProviderFault(f"{what}: an answer that is no JSON") from error


def detail_of(reply: Reply) -> str:
    """What a problem document (RFC 9457) says, in one line."""
    try:
        value = parse_json(reply.body)
        text = f"{value['title']}: {value['detail']}"
        errors = value.get("errors") or []
        return "; ".join([text, *map(str, errors)])[:500]
    except (InputError, KeyError, TypeError, AttributeError):
        return f"status {reply.status}"


def error_of(what: str, reply: Reply) -> Exception:
    """The error that a status stands for, divided by what to do next."""
    detail = f"{what}: {detail_of(reply)}"
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


def raise_graphql(what: str, value: Any, *, creates: bool) -> None:
    """Raise the error that a GraphQL answer tells of, if it tells of one."""
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


def lines_of(response: httpx.Response, is_over: Callable[[], bool]) -> Iterator[str]:
    """Lines of a stream, cut where one is far too long."""
    rest = b""
    for piece in response.iter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode(errors="replace")
        rest = rest[: 4 * LINE_MAX_CHARS]
        if is_over():
            return


def events_of(lines: Iterator[str]) -> Iterator[LogLine]:
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
