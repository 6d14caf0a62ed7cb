"""The gate of one job on a Ray cluster: what Ray starts as the job, and where its bytes go through.

    python -m scf.dispatch.ray_gate --job ID --submission ID --root DIR --sender ID ...

Ray brings a job to a cluster, ends it and shows its log, but carries no files back and none of more
than 512 MB there. So the job that Ray starts is this: an HTTP server, beside which the worker runs
as a process of its own. It answers what `remote_agent` answers over ssh, takes files by the SHA-256
of their content, from where they broke off, and gives those of the bundle.

    POST /call                 a request of `remote_agent`, as JSON
    PUT  /incoming/SHA256?at=N the content from byte N on; 409 with the size that is here
    GET  /bundle/NAME          a file; ETag is size and time, Range and If-Range go on with it

Who asks shows a key made of the cluster's token and the job's id (`key_of`): the token itself does
not travel here. Standard library alone; nothing of Ray. When Ray ends this process, or the node of
it dies, the worker sees that (`SCF_WHILE_PID`), writes its checkpoint and ends, too.
"""

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit

from scf.dispatch import remote_agent
from scf.dispatch.process import HeldFile
from scf.dispatch.ray_nodes import WHILE_PID

MARK = "scf-ray-gate/1 "
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUEST_MAX_BYTES = 64 * 2**20
_PIECE_BYTES = 2**20
_SOCKET_WAIT_S = 60.0
_LOOK_S = 1.0


def key_of(token: str, submission_id: str) -> str:
    """What opens the gate of one job."""
    told = f"scf-ray-gate/1\n{submission_id}".encode()
    return hmac.new(token.encode(), told, hashlib.sha256).hexdigest()


def token_of(environment: Mapping[str, str]) -> str:
    """The cluster's token, found where Ray itself looks, in its order.

    Raises:
        SystemExit: There is none.
    """
    if text := environment.get("RAY_AUTH_TOKEN", "").strip():
        return text
    path = environment.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not text:
        sys.exit(f"{path}: no token on this node; start it with RAY_AUTH_MODE=token")
    return text


class Gate(ThreadingHTTPServer):
    """Serves one job.

    Args:
        listener: Address and port.
        key: What a request must show.
        root: Folder on this node for everything of ours.
        job_id: The job.
        sender: Who sends to it.
        code: Folder with the package `scf`, for the worker; and how it is called.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        listener: tuple[str, int],
        *,
        key: str,
        root: Path,
        job_id: str,
        sender: str,
        code: tuple[Path, str],
    ) -> None:
        self.key = key
        self.job_id = job_id
        self._given = {"root": str(root), "sender": sender, "job_id": job_id}
        self._code, self._code_name = code
        self.place = remote_agent.Place(self._given)
        self.place.make()
        self.place.incoming.mkdir(exist_ok=True, parents=True, mode=0o700)
        self.last_asked = time.monotonic()
        self._children: set[int] = set()
        self._one_at_a_time = threading.Lock()
        super().__init__(listener, _Handler)

    @property
    def bundle(self) -> Path:
        return self.place.jobs / self.job_id

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What `remote_agent` answers; paths and the job's id are ours, not the asker's."""
        request = {**request, **self._given}
        verb = request.get("verb")
        if verb == "start":
            environment = {**request["environment"], WHILE_PID: str(os.getpid())}
            environment["PYTHONPATH"] = str(self._code)
            request |= {"environment": environment, "code": None}
        request["asks_version"] = False
        try:
            with self._one_at_a_time:
                if verb == "arrived":
                    return {"sizes": self._arrived(request["contents"])}
                answer = remote_agent.REQUESTS[str(verb)](self.place, request)
        except remote_agent.Refused as error:
            return {"error": str(error)}
        except (OSError, KeyError, TypeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        if verb == "prepare":
            answer |= {"scf": self._code_name, "rsync": True}
        if verb == "start" and answer.get("phase") == "started":
            self._children.add(answer["pid"])
        return answer

    def tend(self, idle_s: float) -> None:
        """Serve until told to end, or until the job is over and nobody has asked for `idle_s`."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        while True:
            time.sleep(_LOOK_S)
            for pid in list(self._children):
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        continue
                self._children.discard(pid)
            if self._children or time.monotonic() - self.last_asked < idle_s:
                continue
            return

    def _arrived(self, contents: list[str]) -> dict[str, int]:
        sizes = {}
        for sha256 in contents:
            path = self.place.incoming / sha256
            if _SHA256.fullmatch(sha256) and path.is_file():
                sizes[sha256] = path.stat().st_size
        return sizes


class _Handler(BaseHTTPRequestHandler):
    server: Gate
    protocol_version = "HTTP/1.1"
    server_version = "scf-ray-gate"
    sys_version = ""
    timeout = _SOCKET_WAIT_S

    def do_POST(self) -> None:
        if not self._is_welcome() or self.path != "/call":
            self._say(404, b"")
            return
        length = self._length()
        if not 0 <= length <= _REQUEST_MAX_BYTES:
            self._say(413, b"")
            return
        try:
            request = json.loads(self.rfile.read(length))
            answer = self.server.answer(dict(request))
        except (TypeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._say(200, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        sha256 = parts.path.removeprefix("/incoming/")
        length = self._length()
        if not self._is_welcome() or not _SHA256.fullmatch(sha256) or length < 0:
            self._say(404, b"")
            return
        at = int(parse_qs(parts.query).get("at", ["0"])[0])
        path = self.server.place.incoming / sha256
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes != at:
                self.close_connection = True
                self._say(409, str(size_bytes).encode())
                return
            file.seek(at)
            while length and (piece := self.rfile.read(min(_PIECE_BYTES, length))):
                file.write(piece)
                length -= len(piece)
        self._say(200 if length == 0 else 400, b"")

    def do_GET(self) -> None:
        name = unquote(self.path.removeprefix("/bundle/"))
        file = self._open(name) if self._is_welcome() and name != self.path else None
        if file is None:
            self._say(404, b"")
            return
        with file:
            info = os.fstat(file.fileno())
            tag = f'"{info.st_size}-{info.st_mtime_ns}"'
            if tag in self.headers.get("If-None-Match", ""):
                self._say(304, b"", ETag=tag)
                return
            begin = 0
            if self.headers.get("If-Range") == tag:
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                begin = min(int(asked[1]), info.st_size) if asked else 0
            self.send_response(206 if begin else 200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(info.st_size - begin))
            self.end_headers()
            self._pour(file.fileno(), begin, info.st_size)

    def _pour(self, descriptor: int, begin: int, end: int) -> None:
        while begin < end:
            piece = os.pread(descriptor, min(_PIECE_BYTES, end - begin), begin)
            if not piece:  # shorter than it was: the other end sees that it is not whole
                self.close_connection = True
                return
            self.wfile.write(piece)
            begin += len(piece)

    def _open(self, name: str) -> IO[bytes] | None:
        bundle = self.server.bundle
        path = bundle / name
        try:
            if not path.resolve().is_relative_to(bundle.resolve()) or path.is_symlink():
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        return None

    def _is_welcome(self) -> bool:
        shown = self.headers.get("Authorization", "").encode("latin-1", "replace")
        is_known = hmac.compare_digest(shown, f"Bearer {self.server.key}".encode())
        if is_known:
            self.server.last_asked = time.monotonic()
        else:
            self.close_connection = True
        return is_known

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdecimal() else -1

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing: the job's log is for the job."""


def main() -> None:
    """Open the gate, say where, keep it open."""
    options = _parser().parse_args()
    os.umask(0o077)
    root = Path(options.root).expanduser().absolute()
    code = Path(__file__).parents[2]
    gate = _open_gate(
        own_address(os.environ.get("RAY_ADDRESS", "")),
        options.ports,
        key=key_of(token_of(os.environ), options.submission),
        root=root,
        job_id=options.job,
        sender=options.sender,
        code=(code, options.code),
    )
    held = HeldFile(root / f"{options.job}.gate").acquire()
    if held is None:
        sys.exit(f"{options.job}: its gate is open already")
    sweep(gate.place, options.job)
    host, port = gate.server_address[:2]
    sys.stdout.write(f"{MARK}{json.dumps({'host': str(host), 'port': port})}\n")
    sys.stdout.flush()
    gate.tend(options.idle_s)


def own_address(cluster: str) -> str:
    """The address of this node that the others see: the one from which the head is reached."""
    host, _, port = cluster.rpartition(":")
    if not host or not port.isdecimal():
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing: the kernel only chooses a way
        return str(probe.getsockname()[0])


def sweep(place: remote_agent.Place, job_id: str) -> None:
    """Take away bundles of jobs that are over and whose gate is shut: nobody can ask for them."""
    for path in place.jobs.iterdir():
        gate = HeldFile(place.root / f"{path.name}.gate")
        if path.name != job_id and not gate.is_held and not HeldFile(path / "worker.lock").is_held:
            shutil.rmtree(path, ignore_errors=True)
            gate.path.unlink(missing_ok=True)


def _open_gate(host: str, ports: str, **settings: Any) -> Gate:
    first, _, last = ports.partition("-")
    for port in range(int(first), int(last or first) + 1):
        try:
            return Gate((host, port), **settings)
        except OSError as error:
            why = error
    sys.exit(f"{host}: none of the ports {ports} can be listened at: {why}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scf.dispatch.ray_gate")
    for name in ("job", "submission", "root", "sender", "code", "ports"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--idle-s", type=float, required=True)
    return parser


if __name__ == "__main__":
    main()
