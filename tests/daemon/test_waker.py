"""A hint wakes early; without one the conductor looks at its own pace."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scf.control.control_file import GEAR_FLOORS_S
from scf.core.clock import SystemClock
from scf.daemon import commands
from scf.daemon.heartbeat import DaemonState, read_state
from scf.daemon.waker import InotifyWaker, Sleeper, Waker, WatchfilesWaker, open_waker
from scf.storage import durable
from support.clocks import ManualClock
from support.conducting import Works
from support.waiting import wait_for

KINDS = [WatchfilesWaker, *([InotifyWaker] if sys.platform == "linux" else [])]


@pytest.fixture(params=KINDS)
def waker(request: pytest.FixtureRequest):
    made = request.param()
    yield made
    made.close()


def wakes(waker: Waker, act: Callable[[], object]) -> bool:
    """Whether a wait is cut short by `act`, which is done in the middle of it.

    Done again where it was not: a watch may begin a little after it was asked for.
    """
    for _ in range(60):
        timer = threading.Timer(0.1, act)
        timer.start()
        was_woken = waker.wait(2.0)
        timer.join()
        if was_woken:
            return True
    return False


def come_to_rest(waker: Waker) -> None:
    """Until nothing is said any more of what was done."""
    while waker.wait(1.0) or waker.wait(1.0):
        pass


def test_what_is_of_interest_wakes_and_nothing_else(waker: Waker, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    waker.watch(tmp_path, lambda name: name == "journal.log")
    waker.watch(tmp_path / "absent", lambda name: True)
    assert wakes(waker, lambda: durable.append_line(tmp_path / "journal.log", b"1"))
    come_to_rest(waker)
    assert wakes(waker, lambda: durable.write_file(tmp_path / "journal.log", b"2\n"))
    come_to_rest(waker)
    (tmp_path / "other").write_text("x")
    (tmp_path / "below" / "journal.log").write_text("x")
    assert not waker.wait(0.3)


def test_a_clock_of_a_test_is_never_watched(tmp_path: Path) -> None:
    clock = ManualClock()
    waker = open_waker(clock, is_real_time=False)
    assert isinstance(waker, Sleeper)
    before = clock.monotonic()
    assert not waker.wait(5.0)
    assert clock.monotonic() == before + 5.0


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_command_is_obeyed_long_before_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a look once in an hour, `scf gear` is answered: it was the hint that woke the daemon."""
    monkeypatch.setattr(commands, "GEAR_FLOORS_S", {**GEAR_FLOORS_S, "STANDARD": 3600.0})
    assert isinstance(open_waker(SystemClock(), is_real_time=True), InotifyWaker)
    works = Works(tmp_path)
    from scf.config import load_config
    from scf.core.clock import SystemClock as Clock
    from scf.daemon.scf_daemon import run_daemon

    thread = threading.Thread(
        target=lambda: run_daemon(load_config(works.home, environment={}), clock=Clock())
    )
    thread.start()
    try:
        works.wait_until_running()
        wait_for(lambda: read_state(works.home).get("state") == DaemonState.IDLE, what="idle")
        assert works.cli("gear", "accelerated") == 0
    finally:
        works.cli("stop")
        thread.join(timeout=120)
    assert not thread.is_alive()
