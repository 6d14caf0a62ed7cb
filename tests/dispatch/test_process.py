"""A held file tells living jobs from dead ones; a process mark tells a process from its successor."""

import os
import subprocess
import sys
from pathlib import Path

from scf.dispatch.process import HeldFile, ProcessMark


def test_a_lock_is_held_until_the_last_process_that_inherited_it_ends(tmp_path: Path) -> None:
    """The child keeps the lock after we closed our copy, and its end releases it."""
    held = HeldFile(tmp_path / "job.lock")
    descriptor = held.acquire()
    assert descriptor is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(descriptor,),
    )
    os.close(descriptor)

    assert held.is_held
    assert held.acquire() is None
    child.kill()
    child.communicate()
    assert not held.is_held


def test_looking_at_an_absent_lock_makes_no_file(tmp_path: Path) -> None:
    held = HeldFile(tmp_path / "job.lock")

    assert not held.is_held
    assert held.read() == {}
    assert list(tmp_path.iterdir()) == []


def test_half_written_text_reads_as_nothing(tmp_path: Path) -> None:
    """The daemon may die while it writes who holds the lock."""
    (tmp_path / "job.lock").write_text('{"pid": 12')

    assert HeldFile(tmp_path / "job.lock").read() == {}


def test_a_process_id_used_again_is_not_the_same_process() -> None:
    """A mark with another start time does not fit a living process of the same id."""
    ours = ProcessMark.of(os.getpid())

    assert ours.is_alive
    assert not ProcessMark(os.getpid(), "ticks:1").is_alive
    assert not ProcessMark(os.getpid(), None).is_alive


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    mark = ProcessMark.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not mark.is_alive
    child.wait()
