"""Processes of this machine, told apart even when a process id is used again."""

import contextlib
import fcntl
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError


@dataclass(frozen=True)
class ProcessMark:
    """A process, named so that another one with the same id is not taken for it.

    Attributes:
        pid: Process id; here always the leader of its process group, too.
        started: When it started, as this machine's process table says it; None if unknown.
    """

    pid: int
    started: str | None

    @classmethod
    def of(cls, pid: int) -> "ProcessMark":
        return cls(pid, start_time_text(pid))

    @property
    def is_alive(self) -> bool:
        """Whether this very process is still there (a zombie is not)."""
        return self.started is not None and start_time_text(self.pid) == self.started


class HeldFile:
    """A small file whose lock says "something of this job is alive", and whose text says what.

    The lock is flock(2): it belongs to the open file, which child processes inherit, so the kernel
    drops it when the last process of the job is gone and not before. It cannot be left behind by a
    crash, and it does not depend on process ids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> int | None:
        """An open descriptor that holds the lock, or None when somebody holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @property
    def is_held(self) -> bool:
        """Whether any process of the job is alive."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # A shared try: two who only look do not get into each other's way.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read(self) -> dict[str, Any]:
        """What the holder wrote about itself; empty when that is nothing, or not whole."""
        try:
            value = parse_json(self.path.read_bytes())
        except (FileNotFoundError, InputError):
            return {}
        return value if isinstance(value, dict) else {}

    @staticmethod
    def write(descriptor: int, about: dict[str, Any]) -> None:
        """Say who holds it, through the descriptor that holds it."""
        data = canonical_json(about)
        # In this order: whoever reads between the two finds it there.
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))


def kill_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads, if there is one."""
    if pid <= 1:
        raise ValueError(f"process group {pid} is not one of ours")
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def start_time_text(pid: int) -> str | None:
    """When a living process started, in the system's own words; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_time_from_ps(pid)
    except (ProcessLookupError, PermissionError):
        return None
    # Fields follow the last ")", since a program's name may hold anything. proc(5): 3 is the state,
    # 22 the start in clock ticks since boot.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"ticks:{fields[19]}"


def _start_time_from_ps(pid: int) -> str | None:
    # macOS has no /proc. A second's resolution is enough beside the process id.
    result = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = result.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()
