"""A real Ray cluster with token authentication: two nodes, each in a network of its own, where root allows; else one.

Started once for those who ask (`session_lan`), ended with the tests' process. All that it starts
carries a mark in its environment, by which what is left is found and ended.
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from scf.dispatch.follower import FollowSettings
from scf.dispatch.ray_access import RaySettings
from scf.dispatch.ray_door import RayDoor
from scf.dispatch.ray_nodes import RayGroup
from scf.storage.partitions import Folder
from support.networks import Cable, new_cable
from support.processes import python_env
from support.several import free_port
from support.ssh_boxes import Doors
from support.tiny_worker import HERE
from support.waiting import wait_for

MARK = "SCF_TEST_RAY_LAN"
WORKER = ("{python}", str(HERE / "tiny_worker.py"))
QUICK = FollowSettings(worker=WORKER, look_s=0.1, retry_s=0.1, retry_max_s=0.5, patience_s=5.0)
START_S = 420.0


@dataclass
class RayLan:
    """A running cluster.

    Attributes:
        cable: The second node's network; None where there is one node.
        token_file: Its token.
        address: Of its job server.
    """

    cable: Cable | None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="scf-ray-")))
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    _started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.cable.here if self.cable else "127.0.0.1"

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.dashboard}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def token(self) -> str:
        return self.token_file.read_text()

    @property
    def mark(self) -> str:
        return f"{MARK}={self.folder.name}"

    def start(self) -> None:
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(16))
        self.start_head()
        if self.cable is not None:
            self.start_helper()
        num = 2 if self.cable else 1
        deadline = time.monotonic() + START_S
        while self.num_nodes() < num:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.3)

    def start_head(self) -> None:
        self._ray(
            [], "--head", f"--node-ip-address={self.host}", f"--port={self.port}",
            f"--dashboard-host={self.host}", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={self.folder / 'r'}",
        )  # fmt: skip

    def start_helper(self) -> None:
        """Another network, and another disk for what Ray itself keeps, as another machine has it."""
        assert self.cable is not None
        own, shared = self.folder / "r-helper", self.folder / "r"
        for folder in (own, shared):
            folder.mkdir(exist_ok=True)
        mounted = f'mount --bind {own} {shared} && exec "$@"'
        self._ray(
            ["ip", "netns", "exec", self.cable.name, "sh", "-c", mounted, "sh"],
            f"--address={self.host}:{self.port}", f"--node-ip-address={self.cable.there}",
        )  # fmt: skip

    def _ray(self, prefix: list[str], *options: str) -> None:
        name, _, value = self.mark.partition("=")
        environment = python_env(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(self.token_file),
            RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1", **{name: value},
        )  # fmt: skip
        command = [
            *prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
            "--num-cpus=2", f"--object-store-memory={80 * 2**20}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0",
            "--max-worker-port=0", *options,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self._started.append(child)

    def num_nodes(self) -> int:
        """Nodes that the dashboard calls alive; 0 while it does not answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = httpx.get(
                f"{self.address}/nodes?view=summary", headers=headers, timeout=30, trust_env=False
            )
            rows = answer.json()["data"]["summary"]
        except (httpx.HTTPError, ValueError, KeyError):
            return 0
        return sum(row["raylet"].get("state") == "ALIVE" for row in rows)

    def said(self) -> str:
        return (self.folder / "log").read_text()[-2000:]

    def processes(self, *, there: bool | None = None) -> list[psutil.Process]:
        """What runs of it: all, or only the node in the other network, or only the head's."""
        name, _, value = self.mark.partition("=")
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(name) == value
                if is_ours and (there is None or self._is_there(process.pid) == there):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in found if process.pid != os.getpid()]

    def _is_there(self, pid: int) -> bool:
        return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()

    def kill(self, *, there: bool | None = None) -> None:
        """End all of it, or one of the nodes, with everything that runs there."""
        for _ in range(50):  # what is ended may just have started something
            processes = self.processes(there=there)
            if not processes:
                return
            for process in processes:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.Error:
                    continue
            psutil.wait_procs(processes, timeout=5)

    def kill_head(self) -> None:
        """End what makes the head a head, and not what runs for jobs."""
        for process in self.processes(there=False):
            with contextlib.suppress(psutil.Error):
                if process.name() in {"gcs_server", "raylet"} or "--head" in process.cmdline():
                    process.kill()

    def remove(self) -> None:
        """End it; nothing of it is left."""
        self.kill()
        for child in self._started:
            child.wait(30)
        left = [process.name() for process in self.processes()]
        if self.cable is not None:
            self.cable.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"left behind: {left}"

    def settings(self, root: Path, **changes: Any) -> RaySettings:
        group = changes.pop("group", RayGroup())
        return RaySettings(
            address=self.address, token_file=self.token_file, root=str(root),
            python=sys.executable, group=group, **changes,
        )  # fmt: skip


def start_lan() -> RayLan:
    """A cluster; the test is skipped, with the reason, where that cannot be had."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (pip install 'scf[ray]')")
    lan = RayLan(new_cable())
    atexit.register(lan.kill)
    try:
        lan.start()
    except BaseException:
        lan.remove()
        raise
    return lan


@functools.cache
def session_lan() -> RayLan:
    """One cluster for all tests of this process that do not harm it."""
    lan = start_lan()
    atexit.register(lan.remove)
    return lan


def ray_door(tmp_path: Path) -> Doors:
    """For the contract suite: each call opens the door as a daemon that was started again."""
    lan = session_lan()
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    jobs = Folder.at(tmp_path / "jobs")
    settings = lan.settings(tmp_path / "box")
    return _Released(lambda: RayDoor(settings, jobs, home, settings=QUICK))


class _Released(Doors):
    """Doors that are closed when nothing of their jobs is left on the cluster."""

    def close(self) -> None:
        door = self()
        door.resume()
        wait_for(
            lambda: not door._records.open_jobs(), what="jobs to leave the cluster", limit_s=120
        )
        super().close()
