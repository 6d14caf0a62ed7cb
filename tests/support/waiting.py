"""Wait, with a limit, for something that happens in another process.

The limit says that something will never happen, not how fast it must: a machine may be busy.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from scf.dispatch.process import start_time_text

T = TypeVar("T")


def wait_for(look: Callable[[], T | None], *, what: str, limit_s: float = 120.0) -> T:
    """The first true answer of `look`; fails with `what` after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {limit_s} s in vain for: {what}")


def is_gone(pid: int) -> bool:
    """Whether no process of this id works any more (a zombie does not)."""
    return start_time_text(pid) is None
