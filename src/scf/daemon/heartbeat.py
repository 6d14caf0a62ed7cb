"""What the conductor shows of itself: one small file in the home, and lines for whoever watches.

`daemon.json` is written when something in it changes and every `HEARTBEAT_S`, so that `scf status`
can say how the daemon does without asking it. Whether a daemon lives at all is said by its lock,
not by this file.
"""

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from scf.core.clock import Clock, utc_text
from scf.core.errors import BudgetExceeded, DriveError, InputError
from scf.core.units import format_duration
from scf.storage import durable

STATE_NAME = "daemon.json"
STATE_SCHEMA = "scf.daemon/1"
LOCK_NAME = "daemon.lock"
HEARTBEAT_S = 30.0
# A person wants to see that training moves, not every step of it.
PROGRESS_EVERY_S = 5.0


class DaemonState(StrEnum):
    """What the conductor is at."""

    STOPPED = "STOPPED"
    IDLE = "IDLE"
    WORKING = "WORKING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    EMERGENCY_LOCKED = "EMERGENCY_LOCKED"
    DRIVE_MISSING = "DRIVE_MISSING"
    DISK_FULL = "DISK_FULL"


class Heartbeat:
    """Keeps `daemon.json` of one home up to date."""

    def __init__(self, home: Path, clock: Clock) -> None:
        self._path = home / STATE_NAME
        self._clock = clock
        self._started_at = utc_text(clock.now())
        self._shown: dict[str, Any] = {}
        self._next = 0.0

    def show(self, state: DaemonState, **about: Any) -> bool:
        """Note the state; returns whether it is another one than before."""
        is_new = self._shown.get("state") != state
        shown = {"state": str(state), **about}
        now = self._clock.monotonic()
        if shown != self._shown or now >= self._next:
            self._shown = shown
            self._next = now + HEARTBEAT_S
            beat = {
                "schema": STATE_SCHEMA,
                "pid": os.getpid(),
                "started_at": self._started_at,
                "at": utc_text(self._clock.now()),
                **shown,
            }
            # A full disk is no reason to stop: it is the state that could not be shown.
            with suppress(BudgetExceeded, DriveError):
                durable.write_json(self._path, beat)
        return is_new


def read_state(home: Path) -> dict[str, Any]:
    """The last `daemon.json`; where no daemon holds the home's lock, `state` is STOPPED."""
    try:
        shown = durable.read_json(home / STATE_NAME, size_max_bytes=2**20)
    except InputError:
        shown = {}
    known = shown if isinstance(shown, dict) else {}
    if is_running(home):
        return known
    known.pop("held", None)  # a daemon that is gone holds nothing back
    return {**known, "state": str(DaemonState.STOPPED)}


def is_running(home: Path) -> bool:
    """Whether a daemon holds the lock of this home. Takes nothing, makes nothing."""
    try:
        descriptor = os.open(home / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A shared try for an instant; a daemon that starts in this instant tries again (START_S).
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@dataclass
class Teller:
    """Says how a job does, at most every `PROGRESS_EVERY_S`, and only when it moved."""

    talk: Callable[[str], None]
    clock: Clock
    _last: tuple[str, Any] = ("", None)
    _next: float = 0.0

    def tell(self, attempt_id: str, note: Mapping[str, Any]) -> None:
        """Pass on what the job noted last."""
        now = self.clock.monotonic()
        mark = (attempt_id, note.get("step", note.get("done")))
        if now < self._next or mark == self._last or not note:
            return
        text = progress_text(note)
        if text:
            self._last, self._next = mark, now + PROGRESS_EVERY_S
            self.talk(f"{attempt_id}: {text}")


def progress_text(note: Mapping[str, Any]) -> str:
    """A job's note as a person reads it: step, speed, loss, time left. Empty for other notes."""
    if note.get("event") in {"finished", "error"}:
        return ""  # the move that follows says it
    parts: list[str] = []
    step, total = _number(note.get("step")), _number(note.get("max_steps"))
    if step is not None:
        of_total = f" of at most {total:.0f}" if total else ""
        parts.append(f"step {step:.0f}{of_total}")
    elif isinstance(note.get("stage"), str):
        parts.append(note["stage"])
    rate = _number(note.get("steps_per_s"))
    if rate is not None:
        parts.append(f"{rate:.3g} steps/s")
    loss = _number(note.get("loss"))
    if loss is not None:
        parts.append(f"loss {loss:.4g}")
    left_s = _number(note.get("eta_s"))
    if left_s is not None:
        parts.append(f"{format_duration(left_s)} left")
    return ", ".join(parts)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
