"""A hint wakes early; without one the conductor looks at its own pace."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
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


def waits(waker: Waker, act: Callable[[], object]) -> float:
    """How long a wait took in which `act` was done after 0.1 s."""
    timer = threading.Timer(0.1, act)
    timer.start()
    began = time.monotonic()
    waker.wait(3.0)
    timer.join()
    return time.monotonic() - began


def test_what_is_of_interest_wakes_and_nothing_else(waker: Waker, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    waker.watch(tmp_path, lambda name: name == "journal.log")
    waker.watch(tmp_path / "absent", lambda name: True)
    time.sleep(0.3)
    assert waits(waker, lambda: durable.append_line(tmp_path / "journal.log", b"1")) < 1.5
    waker.wait(0.3)
    assert not waker.wait(0.2)
    assert waits(waker, lambda: durable.write_file(tmp_path / "journal.log", b"2\n")) < 1.5
    waker.wait(0.3)
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
def test_a_command_is_obeyed_long_before_the_next_look(tmp_path: Path) -> None:
    """In STANDARD gear a look comes every 5 s; `scf gear` is answered at once."""
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
        time.sleep(0.3)
        began = time.monotonic()
        assert works.cli("gear", "accelerated") == 0
        assert time.monotonic() - began < 2.0
    finally:
        works.cli("stop")
        thread.join(timeout=20)
    assert not thread.is_alive()
