"""A real box on loopback: sshd with throw-away keys, one for a whole test session."""

import atexit
import contextlib
import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from scf.dispatch.follower import FollowSettings
from scf.dispatch.remote import RemoteDoor
from scf.dispatch.ssh import SshDoor
from scf.dispatch.transfer import SshBox
from scf.storage.partitions import Folder
from support.tiny_worker import HERE

WORKER = ("{python}", str(HERE / "tiny_worker.py"))
QUICK = FollowSettings(worker=WORKER, look_s=0.08, retry_s=0.05, retry_max_s=0.3, patience_s=300)
# For tests in which the box goes away, and the door is to say so.
IMPATIENT = replace(QUICK, patience_s=1.0)
# Below the ports that connections to elsewhere are given: nothing takes one of a server that is away.
PORTS = range(12_000, 30_000)
UP_S = 60.0


@dataclass
class Sshd:
    """A running ssh server. `stop` and `start` are a link that is cut and comes back."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    netns: str | None = None
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert sshd is not None
        prefix = ["ip", "netns", "exec", self.netns] if self.netns else []
        self.process = subprocess.Popen(
            [*prefix, sshd, "-D", "-f", str(self.folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"sshd did not come up at {self.host}:{self.port}")

    def stop(self) -> None:
        """End the server and every connection that it serves."""
        if self.process is None:
            return
        for pid in _descendants(self.process.pid):
            if _is_sshd(pid):
                _kill(pid)
        self.process.kill()
        self.process.wait()
        self.process = None

    def box(self, root: Path, **changes: Any) -> SshBox:
        key = (self.folder / "host_key.pub").read_text().split()
        box = SshBox(
            name="box",
            host=self.host,
            user=os.environ.get("USER", "root") if os.getuid() else "root",
            host_keys=(f"{key[0]} {key[1]}",),
            port=self.port,
            identity=self.folder / "id",
            root=str(root),
            python=sys.executable,
            connect_timeout_s=60,
            keepalive_s=20,
        )
        return replace(box, **changes)


def start_sshd(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    netns: str | None = None,
    host_key: bytes | None = None,
    authorised: str | None = None,
    environment: Mapping[str, str] | None = None,
    is_pod: bool = False,
    has_sftp: bool = True,
) -> Sshd:
    """Start a server; the test is skipped, with the reason, where that cannot be had.

    Args:
        folder: Its own.
        host: Address to listen on.
        netns: Network namespace to live in.
        host_key: Private host key; by default a new one.
        authorised: Public key that may log in; by default a new one, `id` in the folder.
        environment: Variables of whatever is run over ssh.
        is_pod: Commands begin in `folder`, so that relative paths are this machine's own.
        has_sftp: It serves files, too.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for program in ("sshd", "ssh", "ssh-keygen", "rsync"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed (apt-get install openssh-server rsync)")
    folder.mkdir(parents=True, exist_ok=True)
    for name, given in (("host_key", host_key), ("id", authorised)):
        if given is None:
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
    if host_key is not None:
        (folder / "host_key").touch(mode=0o600)
        (folder / "host_key").write_bytes(host_key)
    keys = authorised or (folder / "id.pub").read_text()
    (folder / "authorized_keys").write_text(f"{keys.strip()}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = _free_port()
    more = "".join(f" {name}={value}" for name, value in (environment or {}).items())
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {host}\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nClientAliveInterval 20\nMaxStartups 100\nUseDNS no\n"
        # The login shell reads its start-up files there, and not those of whoever runs the tests.
        f"SetEnv HOME={folder}{more}\n"
        + ("Subsystem sftp internal-sftp\n" if has_sftp else "")
        + (f'ForceCommand cd {folder} && eval "$SSH_ORIGINAL_COMMAND"\n' if is_pod else "")
    )
    sshd = Sshd(folder, port, host, netns)
    sshd.start()
    atexit.register(sshd.stop)
    return sshd


def _free_port() -> int:
    """A port that nobody listens on, and that is not the one which another process would be given."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def session_sshd() -> Sshd:
    """One server for all tests that do not cut its links."""
    return start_sshd(Path(tempfile.mkdtemp(prefix="scf-sshd-")))


def ssh_door(tmp_path: Path) -> "Doors":
    """For the contract suite: each call opens the door as a daemon that was started again."""
    sshd = session_sshd()
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    jobs = Folder.at(tmp_path / "jobs")
    box = sshd.box(tmp_path / "box")
    return Doors(lambda: SshDoor(box, jobs, home, settings=QUICK))


class Doors:
    """Opens the same door again and again, and closes all of them."""

    def __init__(self, make: Callable[[], RemoteDoor]) -> None:
        self._make = make
        self._open: list[RemoteDoor] = []

    def __call__(self) -> RemoteDoor:
        self._open.append(self._make())
        return self._open[-1]

    def close(self) -> None:
        for door in self._open:
            door.close()


def kill_marked(mark: str) -> None:
    """End every process whose environment holds `mark` (`NAME=value`)."""
    for pid in marked(mark):
        _kill(pid)


def marked(mark: str) -> Iterator[int]:
    """Every process whose environment holds `mark`."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *_descendants(child)]
    return found


def _is_sshd(pid: int) -> bool:
    try:
        return "sshd" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
