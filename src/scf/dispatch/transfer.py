"""The link to another machine: requests to it, files to it and files from it, over ssh and rsync.

Who it is, is known in advance: `StrictHostKeyChecking=yes` against a known_hosts file of our own,
which holds the keys that the operator gave; there is no trust on first use. Programs are the
system's ssh and rsync (`limited.py`: own process group, limits, no secrets). Nothing that the other
end says is believed before it has been looked at: not sizes, not names, not that a file is a file.

Files to it are named by their SHA-256 and arrive in a cache, so what is there is not sent again.
Files from it arrive beside the bundle, are looked at, and only then take their place.
"""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import (
    DoorError,
    DoorUnavailable,
    InputError,
    MissingTool,
    OperatorError,
    UsageError,
)
from scf.core.identity import sha256_hex
from scf.dispatch.limited import Finished, run_limited
from scf.dispatch.remote_agent import MARK
from scf.storage import durable

PARTIAL = ".rsync-partial"
# 3.2.5 is the first rsync whose client refuses names that it did not ask for.
RSYNC_MIN = (3, 2, 5)

# ssh and rsync talk at least this fast, or the transfer is ended and tried again (it resumes).
SLOWEST_BYTES_PER_S = 256 * 1024
_CALL_ANSWER_MAX_BYTES = 64 * 2**20
_PUSHED_SOME = {0, 23, 24, 30}  # rsync(1): 23, 24 some files were not there; 30 stalled

_SAFE = re.compile(r"[A-Za-z0-9_./+@:\[\]-]+")
_HOST_KEY = re.compile(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+")


class BoxUnreachable(DoorUnavailable):
    """No connection: off, no network, or nobody listens."""


class BoxNotTrusted(DoorUnavailable):
    """Somebody answered, without the host key that was given in advance."""


class BoxRefusedUs(DoorUnavailable):
    """The machine does not accept our key."""


class BoxFault(DoorError):
    """The other end answered, and not as it must."""


@dataclass(frozen=True, kw_only=True)
class SshBox:
    """A machine that takes jobs over ssh.

    Attributes:
        name: What we call it; lower-case letters, digits and -.
        host: Name or address.
        user: Login name there.
        host_keys: Its public host keys (`ssh-ed25519 AAAA...`), known in advance.
        port: TCP port of its ssh server.
        identity: File of our private key; None leaves it to the running ssh agent.
        root: Folder there for everything that we keep on it.
        python: Its Python, 3.11 or newer, with what training needs (numpy, torch).
        bandwidth_kib_s: Upper limit for transfers, each way; None for no limit.
        cache_max_bytes: What was used longest ago leaves the box's cache above this; None for no
            limit.
        connect_timeout_s: How long a connection may take to come about.
        keepalive_s: A silent link is asked this often, and is cut after three silences.
    """

    name: str
    host: str
    user: str
    host_keys: tuple[str, ...]
    port: int = 22
    identity: Path | None = None
    root: str = ".scf-worker"
    python: str = "python3"
    bandwidth_kib_s: int | None = None
    cache_max_bytes: int | None = None
    connect_timeout_s: int = 10
    keepalive_s: int = 10

    def __post_init__(self) -> None:
        for key in ("name", "host", "user", "root", "python"):
            value = getattr(self, key)
            if not _SAFE.fullmatch(value) or value.startswith("-"):
                raise UsageError(f"ssh box: {key} {value!r} has characters that cannot stand there")
        if not self.host_keys or not all(map(_HOST_KEY.fullmatch, self.host_keys)):
            raise UsageError(
                f"ssh box {self.name}: host_keys must hold its public host keys, as they are",
                remedy="On the box: `cat /etc/ssh/ssh_host_ed25519_key.pub`; give the first two "
                "words. scf never trusts a machine because it answered first.",
            )


class Box(Protocol):
    """What has to be known of a machine, whichever way leads there."""

    @property
    def name(self) -> str: ...

    @property
    def python(self) -> str: ...

    @property
    def cache_max_bytes(self) -> int | None: ...


class Link(Protocol):
    """A way to another machine: `SshLink` says what each promises."""

    @property
    def box(self) -> Box: ...

    def call(
        self, verb: str, request: dict[str, Any], *, limit_s: float = 60.0
    ) -> dict[str, Any]: ...

    def push(self, staged: Path, *, size_bytes: int) -> None: ...

    def pull(
        self, job_id: str, names: Mapping[str, int], into: Path, *, size_bytes: int
    ) -> None: ...


@dataclass
class SshLink:
    """Requests and transfers to one box.

    Args:
        box: The machine.
        folder: Ours: ssh configuration and known hosts are written there.
        sender: Who we are, among those who send to the same box.
        held: Descriptors that every program started here inherits: the lock of a follower, which
            is free again only when nothing of it is left.
    """

    box: SshBox
    folder: Path
    sender: str
    held: Sequence[int] = ()
    _config: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._config = self.folder / f"{self.box.name}.ssh_config"
        known_hosts = self.folder / f"{self.box.name}.known_hosts"
        alias = f"scf-{self.box.name}"
        lines = "".join(f"{alias} {key}\n" for key in self.box.host_keys)
        _keep(known_hosts, lines.encode())
        socket = _socket_folder() / sha256_hex(str(self._config).encode())[:8]
        _keep(self._config, _ssh_config(self.box, alias, known_hosts, socket).encode())

    def call(self, verb: str, request: dict[str, Any], *, limit_s: float = 60.0) -> dict[str, Any]:
        """Have `remote_agent` answer a request.

        Raises:
            DoorUnavailable: No answer; whether it was done is unknown, asking again is safe.
            BoxFault: An answer that says why not, or that is none.
        """
        full = {"verb": verb, "root": self.box.root, "sender": self.sender, **request}
        text = canonical_json(full).decode()
        agent = resources.files("scf.dispatch").joinpath("remote_agent.py").read_bytes()
        finished = run_limited(
            ["ssh", "-F", str(self._config), self.box.name, f"{self.box.python} -I -S -"],
            stdin=agent + f"\nmain({text!r})\n".encode(),
            limit_s=limit_s,
            stdout_max_bytes=_CALL_ANSWER_MAX_BYTES,
            pass_fds=self.held,
        )
        return _answer_of(self.box, verb, finished)

    def push(self, staged: Path, *, size_bytes: int) -> None:
        """Send the files of `staged` (links are followed) to what is arriving on the box.

        Raises:
            DoorUnavailable: Not all of it got there; what did is kept, and pushing again goes on.
        """
        self._rsync(
            ["-rL", "--size-only", "--chmod=D700,F600", f"{staged}/", self._remote("incoming")],
            size_bytes=size_bytes,
        )

    def pull(self, job_id: str, names: Iterable[str], into: Path, *, size_bytes: int) -> None:
        """Fetch files of a job's bundle by name; a file that is gone there is simply absent here.

        Args:
            job_id: The job.
            names: Paths inside the bundle, looked at before (`returned.py`).
            into: Where they arrive; what lies in the folder above and is the same is not fetched.
            size_bytes: What they have together, for the limit in time.

        Raises:
            DoorUnavailable: Not all of it got here; fetching again goes on.
        """
        into.mkdir(exist_ok=True)
        # Asked for by name, so there is nothing for the other end to choose; no links, devices,
        # owners or modes; what is not asked for, a checked client refuses.
        options = [
            *("--files-from=-", "--from0", "--no-implied-dirs", "--times", "--fsync"),
            *("--no-links", "--no-devices", "--no-specials", "--no-recursive"),
            f"--compare-dest={into.parent.resolve()}",
            *(f"{self._remote('jobs')}{job_id}/", f"{into}/"),
        ]
        text = "".join(f"{name}\0" for name in names)
        self._rsync(options, size_bytes=size_bytes, stdin=text.encode())

    def _rsync(self, options: list[str], *, size_bytes: int, stdin: bytes = b"") -> None:
        rate = SLOWEST_BYTES_PER_S
        if self.box.bandwidth_kib_s is not None:
            options = [f"--bwlimit={self.box.bandwidth_kib_s}", *options]
            rate = min(rate, self.box.bandwidth_kib_s * 512)
        command = [
            *("rsync", f"--partial-dir={PARTIAL}", "--delay-updates", "--timeout=60"),
            *("-e", f"ssh -F '{self._config}'"),
            *options,
        ]
        limit_s = 120.0 + size_bytes / rate
        finished = run_limited(command, stdin=stdin, limit_s=limit_s, pass_fds=self.held)
        if finished.fault is not None:
            raise BoxUnreachable(f"{self.box.name}: the transfer {finished.fault}; it resumes")
        if finished.returncode in {255, 10, 12, 30, 35} or finished.returncode < 0:
            raise _no_connection(self.box, finished)
        if finished.returncode not in _PUSHED_SOME:
            raise BoxFault(f"{self.box.name}: rsync: {_last_line(finished.stderr)}")

    def _remote(self, folder: str) -> str:
        below = f"{folder}/{self.sender}" if folder == "incoming" else folder
        return f"{self.box.name}:{self.box.root}/{below}/"


def check_tools() -> None:
    """Make sure that ssh and an rsync which refuses unasked names are here.

    Raises:
        MissingTool: Says which, and what to install.
    """
    version = run_limited(["rsync", "--version"], limit_s=10).stdout.decode(errors="replace")
    found = re.search(r"rsync +version v?(\d+)\.(\d+)\.(\d+)", version)
    if not found or tuple(map(int, found.groups())) < RSYNC_MIN:
        said = version.splitlines()[0] if version else "no version"
        raise MissingTool(
            f"rsync is too old: {said!r}; {'.'.join(map(str, RSYNC_MIN))} or newer is needed",
            remedy="Install a newer rsync (macOS: `brew install rsync`).",
        )
    run_limited(["ssh", "-V"], limit_s=10)


def _socket_folder() -> Path:
    """Where shared connections have their sockets; ours alone."""
    # Short, because a socket's path may have 104 bytes at most (macOS).
    folder = Path(tempfile.gettempdir(), f"scf-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise OperatorError(
            f"{folder}: not a folder of ours alone",
            remedy=f"Look at who made it, then remove it: rm -r {folder}",
        )
    return folder


def _ssh_config(box: SshBox, alias: str, known_hosts: Path, socket: Path) -> str:
    settings = {
        "HostName": box.host,
        "Port": box.port,
        "User": box.user,
        "HostKeyAlias": alias,
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "PreferredAuthentications": "publickey",
        "ConnectTimeout": box.connect_timeout_s,
        "ConnectionAttempts": 1,
        "ServerAliveInterval": box.keepalive_s,
        "ServerAliveCountMax": 3,
        "TCPKeepAlive": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "LogLevel": "ERROR",
        # One login serves all questions to the box; a dead link is noticed by the keepalives.
        "ControlMaster": "auto",
        "ControlPath": f'"{socket}"',
        "ControlPersist": 60,
    }
    if box.identity is not None:
        settings |= {"IdentityFile": f'"{box.identity}"', "IdentitiesOnly": "yes"}
    rows = "".join(f"    {name} {value}\n" for name, value in settings.items())
    head = f"# Written by scf. By hand: ssh -F THIS_FILE {box.name}\n"
    return f"{head}Host {box.name}\n{rows}"


def read_answer(data: bytes, name: str, verb: str) -> dict[str, Any]:
    """What the agent on the box `name` answered to `verb`.

    Raises:
        BoxFault: It says why not, or it is no answer.
    """
    try:
        answer = parse_json(data)
    except InputError as error:
        raise BoxFault(f"{name}: {verb}: an answer that cannot be read") from error
    if not isinstance(answer, dict):
        raise BoxFault(f"{name}: {verb}: an answer that is no object")
    if "error" in answer:
        raise BoxFault(f"{name}: {verb}: {str(answer['error'])[:500]}")
    return answer


def _answer_of(box: SshBox, verb: str, finished: Finished) -> dict[str, Any]:
    for line in reversed(finished.stdout.splitlines()):
        if line.startswith(MARK.encode()):
            return read_answer(line[len(MARK) :], box.name, verb)
    if finished.fault is not None:
        raise BoxUnreachable(f"{box.name}: {verb} {finished.fault}")
    if finished.returncode == 255:
        raise _no_connection(box, finished)
    raise BoxFault(
        f"{box.name}: {verb}: no answer (exit {finished.returncode}): "
        f"{_last_line(finished.stderr)}",
        remedy=f"Look at what `{box.python}` is on the box: Python 3.11 or newer is needed.",
    )


def _no_connection(box: SshBox, finished: Finished) -> DoorUnavailable:
    said = _last_line(finished.stderr)
    if "Host key verification failed" in finished.stderr:
        return BoxNotTrusted(
            f"{box.name}: the machine that answered at {box.host}:{box.port} does not have the "
            "host key that was given",
            remedy="If the box was installed anew, give its new host key; else find out who "
            "answers there. Nothing was sent.",
        )
    if "Permission denied" in finished.stderr:
        return BoxRefusedUs(
            f"{box.name}: {said}",
            remedy=f"Add our public key to ~{box.user}/.ssh/authorized_keys on the box.",
        )
    return BoxUnreachable(f"{box.name}: {said or f'ssh ended with {finished.returncode}'}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _keep(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        durable.write_file(path, data, mode=0o600)
