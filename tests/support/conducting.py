"""A foundry with fossils and small jobs, and ways to run its conductor: in steps, or as a process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scf.cli.main import run as scf_command
from scf.config import FoundryConfig, load_config
from scf.core.clock import Clock, SystemClock
from scf.daemon.heartbeat import is_running
from scf.daemon.rooms import OpenDoor
from scf.daemon.scf_daemon import Conductor, Tick, run_daemon
from scf.daemon.setup import initialise
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.local import LocalDoor
from scf.runs.record import Run, Transition
from scf.runs.state import State
from scf.runs.store import RunStore
from scf.storage.partitions import Folder
from support.fossils import write_fossils
from support.processes import python_env
from support.tiny_worker import WORKER
from support.waiting import wait_for

DAEMON = Path(__file__).with_name("tiny_daemon.py")


def released_foundry(base: Path) -> "Works":
    """A foundry with a released generation."""
    works = Works(base)
    works.drop("a.ndjson", range(120))
    works.until_idle()
    return works


def open_tiny_door(jobs: Folder, home: Path) -> Dispatcher:
    return LocalDoor(jobs, home, worker=WORKER)


@dataclass
class Works:
    """One foundry."""

    base: Path
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        initialise(self.home, self.root)
        self.set(**self.settings)

    @property
    def home(self) -> Path:
        return self.base / "home"

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def config(self) -> FoundryConfig:
        return load_config(self.home, environment={})

    def set(self, **settings: object) -> None:
        """Write [daemon] settings."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        text = "\n".join(
            [f'root = "{self.root}"', "[daemon]", *lines, '[training]\npreset = "tiny"']
        )
        (self.home / "scf.toml").write_text(text)

    def drop(self, name: str, indices: range, *, age_s: float = 60.0) -> Path:
        """Drop a file of fossils into the vault's folder, as somebody would."""
        path = write_fossils(self.root / "fossil_vault" / "drop" / name, indices)
        then = time.time() - age_s
        os.utime(path, (then, then))
        return path

    def until_idle(self, talk: Callable[[str], None] = lambda _: None) -> int:
        """Run the daemon in this process until nothing is left to do."""
        return run_daemon(self.config, until_idle=True, open_door=open_tiny_door, talk=talk)

    @contextmanager
    def process(self, *options: str, **env: str):
        """The daemon as a process of its own; killed at the end, if it is still there."""
        child = self.start(*options, **env)
        try:
            yield child
        finally:
            child.kill()
            child.wait()

    def start(self, *options: str, **env: str) -> "subprocess.Popen[bytes]":
        """Start the daemon as a process of its own."""
        with (self.base / "daemon.err").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, str(DAEMON), str(self.home), *options],
                env=python_env(**env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def said(self) -> str:
        """The end of what daemon processes said on stderr: why one ended as it did."""
        path = self.base / "daemon.err"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def run_process(self, *options: str, **env: str) -> int:
        """Run it to its end."""
        return self.start(*options, **env).wait(timeout=240)

    def cli(self, *arguments: str) -> int:
        """The `scf` command, in this process."""
        return scf_command([*arguments, "--home", str(self.home)])

    def runs(self) -> list[Run]:
        store = RunStore.open(self.home, SystemClock())
        try:
            return store.runs()
        finally:
            store.close()

    def transitions(self) -> list[Transition]:
        store = RunStore.open(self.home, SystemClock())
        try:
            return store.transitions()
        finally:
            store.close()

    def wait_for_state(self, state: State, *, limit_s: float = 120.0) -> Run:
        """Until the newest run stands at `state`."""
        database = self.home / "runs.db"

        def look() -> Run | None:
            runs = self.runs() if database.exists() else []
            return runs[-1] if runs and runs[-1].state is state else None

        return wait_for(look, what=f"a run at {state}", limit_s=limit_s)

    def wait_until_running(self) -> None:
        wait_for(lambda: is_running(self.home), what="the daemon to hold its lock")

    def generations(self) -> list[str]:
        return sorted(path.name for path in (self.root / "model_zoo").glob("ebdm_gen*"))

    def history(self) -> list[dict[str, object]]:
        path = self.root / "model_zoo" / "history.log"
        return [json.loads(line) for line in path.read_text().splitlines()]

    @contextmanager
    def conductor(
        self,
        clock: Clock | None = None,
        *,
        is_hasty: bool = True,
        open_door: OpenDoor = open_tiny_door,
    ):
        """A conductor to be ticked by hand."""
        talk: list[str] = []
        made = Conductor(
            self.config,
            clock=clock or SystemClock(),
            open_door=open_door,
            talk=talk.append,
            is_hasty=is_hasty,
        )
        try:
            yield made, talk
        finally:
            made.close()


def tick_until(
    conductor: Conductor, done: Callable[[Tick], bool], *, limit_s: float = 120.0
) -> Tick:
    """Tick until `done` says so."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        tick = conductor.tick()
        if done(tick):
            return tick
        if not tick.did:
            time.sleep(0.02)
    raise AssertionError("the conductor did not get there")
