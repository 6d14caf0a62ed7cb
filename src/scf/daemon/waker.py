"""Wake the conductor early when something happens. Only a hint: it may be late, wrong or absent.

The conductor looks at the pace of its gear whether it is woken or not. On Linux the kernel tells
us (inotify, called directly, costs nothing and wakes in 0.1 ms; `watchfiles`, measured beside it,
takes 0.33 % of a core and 16 ms, or 0.55 % and 8 ms). Elsewhere `watchfiles` is used if it is
there, from a thread; else nothing is.
"""

import contextlib
import ctypes
import os
import select
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from scf.core.clock import Clock

NameFilter = Callable[[str], bool]

# From <sys/inotify.h>. A file counts when its writer has closed it: by then it is on the medium.
_CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x80, 0x100, 0x200
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_WATCHFILES_STEP_MS = 50


class Waker(Protocol):
    """Watches a few folders, not what is below them.

    Attributes:
        look_s: How long one may sleep before looking at the emergency lock all the same. Nothing is
            started between two looks of the loop, and a job looks for itself, so this only bounds
            how late the daemon shows that it is locked.
    """

    look_s: float

    def watch(self, folder: Path, is_of_interest: NameFilter) -> None:
        """Wake when a name in `folder` for which the filter says so is written, made or removed.

        A folder that cannot be watched is not watched.
        """

    def wait(self, seconds: float) -> bool:
        """Sleep, but not through something of interest; returns whether there was something."""

    def close(self) -> None:
        """Stop watching."""


class Sleeper:
    """Wakes for nothing: sleeps by the clock."""

    look_s = 0.1

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def watch(self, folder: Path, is_of_interest: NameFilter) -> None:
        del folder, is_of_interest

    def wait(self, seconds: float) -> bool:
        self._clock.sleep(seconds)
        return False

    def close(self) -> None:
        pass


class InotifyWaker:
    """Woken by the Linux kernel. Raises OSError where it has no inotify to give."""

    look_s = 0.5

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._filters: dict[int, NameFilter] = {}

    def watch(self, folder: Path, is_of_interest: NameFilter) -> None:
        mask = _CLOSE_WRITE | _MOVED_TO | _CREATE | _DELETE
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask)
        if number >= 0:
            self._filters[number] = is_of_interest

    def wait(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], seconds)
        return bool(ready) and self._drain()

    def close(self) -> None:
        os.close(self._fd)

    def _drain(self) -> bool:
        found = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65_536):
                offset = 0
                while offset < len(data):
                    number, _, _, length = _EVENT.unpack_from(data, offset)
                    offset += _EVENT.size
                    name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
                    offset += length
                    is_of_interest = self._filters.get(number)
                    # No watch of ours: the queue overflowed, so anything may have happened.
                    found |= is_of_interest is None or is_of_interest(name)
        return found


class WatchfilesWaker:
    """Woken by `watchfiles`. Raises ImportError where that is absent."""

    look_s = 0.1

    def __init__(self) -> None:
        import watchfiles

        self._watch_files = watchfiles.watch
        self._happened = threading.Event()
        self._stop = threading.Event()

    def watch(self, folder: Path, is_of_interest: NameFilter) -> None:
        def look() -> None:
            with contextlib.suppress(OSError, RuntimeError):
                for changes in self._watch_files(
                    folder,
                    watch_filter=None,
                    step=_WATCHFILES_STEP_MS,
                    debounce=2 * _WATCHFILES_STEP_MS,
                    stop_event=self._stop,
                    rust_timeout=1000,
                    recursive=False,
                ):
                    if any(is_of_interest(Path(path).name) for _, path in changes):
                        self._happened.set()

        threading.Thread(target=look, name=f"watch {folder}", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        happened = self._happened.wait(seconds)
        self._happened.clear()
        return happened

    def close(self) -> None:
        self._stop.set()


def open_waker(clock: Clock, *, is_real_time: bool) -> Waker:
    """The best there is here; one that only sleeps for a clock that a test moves."""
    if is_real_time and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return InotifyWaker()
    if is_real_time and sys.platform != "linux":
        with contextlib.suppress(ImportError):
            return WatchfilesWaker()
    return Sleeper(clock)
