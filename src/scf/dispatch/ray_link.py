"""The way to one job on a Ray cluster: requests, files to it, files from it, through its gate.

The same three things that `SshLink` does with ssh and rsync, over HTTP to `ray_gate`. Nothing that
the other end says is believed: no answer is longer than its limit, no file much longer than was
asked for, and what arrives is looked at (`returned.py`) before it takes its place.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx

from scf.core.canonical import canonical_json
from scf.dispatch.transfer import (
    PARTIAL,
    SLOWEST_BYTES_PER_S,
    BoxFault,
    BoxRefusedUs,
    BoxUnreachable,
    read_answer,
)

_ANSWER_MAX_BYTES = 64 * 2**20
_SILENCE_S = 60.0
_CONNECT_S = 10.0
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class RayBox:
    """What is said of the machine behind a gate."""

    name: str
    python: str
    cache_max_bytes: int | None = None


class RayLink:
    """Requests and transfers through one gate.

    Args:
        box: What to call it.
        gate: `HOST:PORT`.
        key: Opens it (`ray_gate.key_of`).
    """

    def __init__(self, box: RayBox, gate: str, key: str) -> None:
        self.box = box
        self._client = httpx.Client(
            base_url=f"http://{gate}",
            headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def call(self, verb: str, request: dict[str, Any], *, limit_s: float = 60.0) -> dict[str, Any]:
        """Have the gate answer a request of `remote_agent`.

        Raises:
            DoorUnavailable: No answer; whether it was done is unknown, asking again is safe.
            BoxFault: An answer that says why not, or that is none.
        """
        body = bytearray()
        data = canonical_json({"verb": verb, **request})
        timeout = httpx.Timeout(limit_s, connect=_CONNECT_S)
        with self._asking(verb, "POST", "/call", content=data, timeout=timeout) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _ANSWER_MAX_BYTES:
                    raise BoxFault(f"{self.box.name}: {verb}: an endless answer")
        return read_answer(bytes(body), self.box.name, verb)

    def push(self, staged: Path, *, size_bytes: int) -> None:
        """Send the files of `staged`, each named by its SHA-256, from where they broke off.

        Raises:
            DoorUnavailable: Not all of it got there; what did is kept, and pushing again goes on.
        """
        in_time = _limit(size_bytes)
        names = sorted(path.name for path in staged.iterdir())
        sizes = self.call("arrived", {"contents": names}).get("sizes")
        for name in names:
            path = staged / name
            there = sizes.get(name, 0) if isinstance(sizes, dict) else 0
            whole = path.stat().st_size
            if there == whole and there > 0:
                continue
            # Longer than it may be: what it is, `receive` sees, and throws it away.
            if not isinstance(there, int) or not 0 <= there < max(whole, 1):
                self.call("receive", {"contents": [name]})
                there = 0
            with path.open("rb") as file:
                file.seek(there)
                content = _pieces(file.read, in_time)
                length = {"Content-Length": str(whole - there)}
                where = f"/incoming/{name}?at={there}"
                with self._asking("put", "PUT", where, content=content, headers=length):
                    pass

    def pull(self, job_id: str, names: Mapping[str, int], into: Path, *, size_bytes: int) -> None:
        """Fetch files of the job's bundle by name; a file that is gone there is absent here.

        Args:
            job_id: The job.
            names: Paths inside the bundle, and how long each may be about.
            into: Where they arrive; one that lies in the folder above, of the same size and time,
                is not fetched.
            size_bytes: What they have together, for the limit in time.

        Raises:
            DoorUnavailable: Not all of it got here; fetching again goes on.
        """
        del job_id  # a gate is one job's
        into.mkdir(exist_ok=True)
        in_time = _limit(size_bytes)
        try:
            for name, size in names.items():
                self._fetch(name, into, in_time, size_max_bytes=2 * size + 2**20)
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            # What was a file is a folder now, or the other way round.
            shutil.rmtree(into, ignore_errors=True)
            raise BoxUnreachable(f"{self.box.name}: {error}; it is fetched anew") from error

    def _fetch(
        self, name: str, into: Path, in_time: Callable[[], None], *, size_max_bytes: int
    ) -> None:
        target, begun = into / name, _Begun(into / PARTIAL, name)
        had = [tag for path in (target, into.parent / name) if (tag := _tag_of(path))]
        began = begun.tag_and_size()
        headers = {"If-None-Match": ", ".join(had)} if had else {}
        if began is not None:
            headers |= {"If-Range": began[0], "Range": f"bytes={began[1]}-"}
        url = f"/bundle/{quote(name)}"
        with self._asking("get", "GET", url, headers=headers, may_lack=True) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                return
            tag, modified_ns = _checked_tag(answer.headers.get("ETag", ""))
            if answer.status_code == httpx.codes.NOT_MODIFIED:
                if _tag_of(target) != tag:
                    target.unlink(missing_ok=True)  # the bundle has it; this is an older one
                return
            begin = began[1] if began and answer.status_code == httpx.codes.PARTIAL_CONTENT else 0
            with begun.open(tag, begin) as file:
                for piece in answer.iter_raw():
                    in_time()
                    if file.tell() + len(piece) > size_max_bytes:
                        raise BoxFault(f"{self.box.name}: {name}: far longer than it said")
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        begun.finish(target, modified_ns)

    @contextlib.contextmanager
    def _asking(
        self, what: str, method: str, path: str, *, may_lack: bool = False, **request: Any
    ) -> Iterator[httpx.Response]:
        try:
            with self._client.stream(method, path, **request) as answer:
                status = answer.status_code
                if status == httpx.codes.UNAUTHORIZED or (
                    status == httpx.codes.NOT_FOUND and not may_lack
                ):
                    raise BoxRefusedUs(
                        f"{self.box.name}: the job's gate does not know us",
                        remedy="Is the token of every node the one that is here?",
                    )
                if status >= httpx.codes.BAD_REQUEST and status != httpx.codes.NOT_FOUND:
                    raise BoxFault(f"{self.box.name}: {what}: the job's gate says {status}")
                yield answer
        except (httpx.HTTPError, TimeoutError) as error:
            raise BoxUnreachable(
                f"{self.box.name}: {what}: {type(error).__name__}: {error}",
                remedy="The firewall must let [ray] ports through, from here to there.",
            ) from error


def _limit(size_bytes: int) -> Callable[[], None]:
    """Called now and then during a transfer; raises TimeoutError when it has taken too long."""
    deadline = time.monotonic() + 120.0 + size_bytes / SLOWEST_BYTES_PER_S

    def in_time() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError("the transfer takes too long; it resumes")

    return in_time


def _pieces(read: Callable[[int], bytes], in_time: Callable[[], None]) -> Iterator[bytes]:
    while piece := read(_PIECE_BYTES):
        in_time()
        yield piece


def _tag_of(path: Path) -> str | None:
    """What the gate would call this very file."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f'"{info.st_size}-{info.st_mtime_ns}"'


class _Begun:
    """A file that is arriving, and what it was called when it began to."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._tag = folder / "files" / name, folder / "tags" / name

    def tag_and_size(self) -> tuple[str, int] | None:
        """Of a file that broke off; None where there is none."""
        try:
            tag, size_bytes = self._tag.read_text(), self._path.stat().st_size
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return (tag, size_bytes) if size_bytes else None

    def open(self, tag: str, begin: int) -> IO[bytes]:
        for path in (self._path, self._tag):
            path.parent.mkdir(parents=True, exist_ok=True)
        if begin:
            file = self._path.open("r+b")
            file.seek(begin)
            return file
        self._path.unlink(missing_ok=True)
        self._tag.write_text(tag)
        return self._path.open("wb")

    def finish(self, target: Path, modified_ns: int) -> None:
        os.utime(self._path, ns=(modified_ns, modified_ns))
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)
        self._tag.unlink()


def _checked_tag(tag: str) -> tuple[str, int]:
    size, _, modified = tag.strip('"').partition("-")
    if not (size.isdecimal() and modified.isdecimal()) or len(tag) > 60:
        raise BoxFault(f"a file without size and time: {tag[:60]!r}")
    return tag, int(modified)
