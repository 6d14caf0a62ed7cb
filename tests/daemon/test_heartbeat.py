"""What the conductor shows of itself."""

import json
import os
from pathlib import Path

import pytest

from scf.daemon.heartbeat import (
    HEARTBEAT_S,
    LOCK_NAME,
    DaemonState,
    Heartbeat,
    Teller,
    is_running,
    progress_text,
    read_state,
)
from scf.storage.instance_lock import instance_lock
from support.clocks import ManualClock


def test_the_file_is_written_on_a_change_and_now_and_then(tmp_path: Path) -> None:
    """Not at gear speed: an idle daemon writes twice a minute."""
    clock = ManualClock()
    heartbeat = Heartbeat(tmp_path, clock)
    path = tmp_path / "daemon.json"

    def written() -> bool:
        before = path.stat().st_ino if path.exists() else None
        heartbeat.show(DaemonState.IDLE, gear="HYPER")
        return path.stat().st_ino != before

    assert written()
    clock.advance(HEARTBEAT_S / 2)
    assert not written()
    clock.advance(HEARTBEAT_S / 2)
    assert written()
    assert heartbeat.show(DaemonState.WORKING, gear="HYPER")
    assert not heartbeat.show(DaemonState.WORKING, gear="STANDARD")
    shown = json.loads(path.read_text())
    assert (shown["state"], shown["gear"], shown["pid"]) == ("WORKING", "STANDARD", os.getpid())


def test_the_lock_says_whether_a_daemon_lives(tmp_path: Path) -> None:
    """A file left by a dead daemon does not; looking makes nothing."""
    assert read_state(tmp_path) == {"state": "STOPPED"}
    assert list(tmp_path.iterdir()) == []
    Heartbeat(tmp_path, ManualClock()).show(DaemonState.WORKING)
    assert read_state(tmp_path)["state"] == "STOPPED"

    with instance_lock(tmp_path / LOCK_NAME, holder="a test"):
        assert is_running(tmp_path)
        assert read_state(tmp_path)["state"] == "WORKING"
    assert not is_running(tmp_path)


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (
            {"event": "step", "step": 400, "steps_per_s": 121.4, "loss": 0.51234, "eta_s": 12.3},
            "step 400, 121 steps/s, loss 0.5123, 12 s left",
        ),
        ({"step": 3, "max_steps": 10}, "step 3 of at most 10"),
        ({"stage": "sampling"}, "sampling"),
        ({"event": "error", "error": "Diverged"}, ""),
        ({"step": "rubbish", "loss": None, "eta_s": True}, ""),
    ],
)
def test_progress_reads_like_a_sentence(note: dict[str, object], text: str) -> None:
    assert progress_text(note) == text


def test_progress_is_said_now_and_then_and_only_when_it_moves() -> None:
    clock, lines = ManualClock(), []
    teller = Teller(lines.append, clock)
    for step in (1, 2, 2, 2):
        teller.tell("job-1", {"step": step})
        clock.advance(3)

    assert lines == ["job-1: step 1", "job-1: step 2"]
