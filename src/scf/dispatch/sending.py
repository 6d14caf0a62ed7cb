"""Send a job to another machine and start it there: only what is missing, and at most once."""

import base64
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import parse_json
from scf.core.errors import InputError
from scf.core.units import format_bytes
from scf.dispatch.bundle import Bundle
from scf.dispatch.job import JobExit
from scf.dispatch.packing import Carried, Packing, pack
from scf.dispatch.remote_agent import EXIT_MAX_BYTES
from scf.dispatch.returned import OutputsRefused
from scf.dispatch.transfer import BoxFault, Link
from scf.dispatch.wheel import keep_wheel

PYTHON_MIN = (3, 11)
# What is sent between two looks at what has arrived: a cut costs at most the check of this much.
BATCH_BYTES = 2**30
BATCH_FILES = 1000
_TRIES = 3
_HASH_BYTES_PER_S = 50 * 2**20


@dataclass(frozen=True)
class Sent:
    """A job whose files are all over there.

    Attributes:
        packing: What it takes with it.
        root: The folder over there, absolute.
        code: SHA-256 of the wheel; None where the box uses its own scf.
        placement: What is known of the machine and of the code that runs.
    """

    packing: Packing
    root: str
    code: str | None
    placement: dict[str, Any]


def send(
    link: Link,
    bundle: Bundle,
    *,
    staging: Path,
    code: Path | None,
    is_stopped: Callable[[], bool],
) -> Sent | None:
    """Bring everything that the job needs into the box's cache; None when it is to be stopped.

    Raises:
        InputError: Something here is not what the spec says.
        DoorUnavailable: The link failed; sending again goes on where it was.
        BoxFault: The box cannot do it: no rsync, no room, an old Python.
    """
    packing = pack(bundle)
    contents = {row.sha256: row for row in packing.carried}
    wheel = None
    if code is not None:
        path, wheel = keep_wheel(code)
        contents[wheel] = Carried("", wheel, path.stat().st_size, path)
    wanted = [[sha256, row.size_bytes] for sha256, row in sorted(contents.items())]
    for _ in range(_TRIES):
        ready = link.call("prepare", {"wanted": wanted, "asks_version": code is None})
        missing = _checked(link, ready, contents)
        if not missing:
            return Sent(packing, str(ready["root"]), wheel, _placement(ready, wheel))
        if link.box.cache_max_bytes is not None:
            room = link.box.cache_max_bytes - sum(row.size_bytes for row in missing)
            link.call("trim", {"keep": sorted(contents), "cache_max_bytes": max(room, 0)})
        for batch in _batches(missing):
            if is_stopped():
                return None
            _send_batch(link, batch, staging)
    raise BoxFault(f"{link.box.name}: after {_TRIES} tries, files have not arrived whole")


def start(
    link: Link, sent: Sent, *, worker: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Start the worker, or find it started; what to say of its place.

    Raises:
        DoorUnavailable: It may have been started. Starting again is safe.
        BoxFault: It was not.
    """
    spec = sent.packing.spec
    request = {
        "job_id": spec.job_id,
        "spec": sent.packing.spec_there(sent.root),
        "tree": sent.packing.tree,
        "code": sent.code,
        "worker": list(worker),
        "environment": dict(environment),
    }
    answer = link.call("start", request, limit_s=120.0)
    if answer.get("phase") not in {"started", "running", "ended", "lost", "cancelled"}:
        raise BoxFault(f"{link.box.name}: start: phase {str(answer.get('phase'))[:50]!r} is none")
    pid = answer.get("pid")
    return sent.placement | ({"pid": pid} if isinstance(pid, int) else {})


def exit_of(encoded: Any) -> JobExit:
    """An exit record as the other machine gave it.

    Raises:
        OutputsRefused: It is not one.
    """
    try:
        data = base64.b64decode(encoded, validate=True)
        if len(data) > EXIT_MAX_BYTES:
            raise InputError(f"larger than {EXIT_MAX_BYTES} bytes")
        return JobExit.from_json(parse_json(data))
    except (InputError, TypeError, ValueError) as error:
        raise OutputsRefused(f"the exit record cannot be used: {error}") from error


def _checked(
    link: Link, ready: Mapping[str, Any], contents: Mapping[str, Carried]
) -> list[Carried]:
    box = link.box.name
    try:
        version = tuple(int(part) for part in str(ready["python"]).split(".")[:2])
        missing = [contents[sha256] for sha256 in ready["missing"]]
        free_bytes = int(ready["free_bytes"])
        has_rsync = bool(ready["rsync"])
    except (KeyError, TypeError, ValueError) as error:
        raise BoxFault(f"{box}: prepare: an answer that cannot be used: {error}") from error
    if version < PYTHON_MIN:
        raise BoxFault(
            f"{box}: {link.box.python} is Python {ready['python']}; 3.11 or newer is needed"
        )
    if not has_rsync:
        raise BoxFault(f"{box}: rsync is not installed there", remedy="Install rsync on the box.")
    needed = sum(row.size_bytes for row in missing)
    if needed > free_bytes:
        raise BoxFault(
            f"{box}: {format_bytes(needed)} are missing there and {format_bytes(free_bytes)} free",
            remedy="Free room on the box.",
        )
    return missing


def _send_batch(link: Link, batch: Sequence[Carried], staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for row in batch:
        (staging / row.sha256).symlink_to(row.source.resolve())
    size_bytes = sum(row.size_bytes for row in batch)
    link.push(staging, size_bytes=size_bytes)
    answer = link.call(
        "receive",
        {"contents": [row.sha256 for row in batch]},
        limit_s=60.0 + size_bytes / _HASH_BYTES_PER_S,
    )
    refused = set(answer.get("refused") or [])
    for row in batch:
        if row.sha256 in refused and _sha256_of(row.source) != row.sha256:
            raise InputError(f"{row.source}: does not have the SHA-256 {row.sha256} it must have")
    shutil.rmtree(staging)


def _batches(rows: Iterable[Carried]) -> Iterator[list[Carried]]:
    batch: list[Carried] = []
    size_bytes = 0
    for row in rows:
        if batch and (size_bytes + row.size_bytes > BATCH_BYTES or len(batch) >= BATCH_FILES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(row)
        size_bytes += row.size_bytes
    if batch:
        yield batch


def _placement(ready: Mapping[str, Any], wheel: str | None) -> dict[str, Any]:
    return {
        "host": str(ready.get("host"))[:200],
        "python": str(ready["python"])[:50],
        "code": f"sha256:{wheel}" if wheel else f"scf {str(ready.get('scf'))[:50]}",
    }


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
