"""The emergency lock holds by presence alone, and in doubt."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.control.emergency_lock import LOCK_NAME, EmergencyLock
from scf.core.errors import EmergencyLocked, NothingToDo, OperatorError

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def test_clear_when_there_is_no_file(tmp_path: Path) -> None:
    """A home without the name is clear."""
    lock = EmergencyLock(tmp_path)

    assert not lock.is_set
    lock.require_clear("anything")


@pytest.mark.parametrize("content", [b"", b"no reason", b"\xff\x00 not text", b"unlocked"])
def test_presence_alone_locks(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, it locks."""
    (tmp_path / LOCK_NAME).write_bytes(content)

    with pytest.raises(EmergencyLocked, match="training"):
        EmergencyLock(tmp_path).require_clear("training")


def test_a_folder_or_a_dangling_link_of_that_name_locks(tmp_path: Path) -> None:
    """Anything of that name locks."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / LOCK_NAME).mkdir()
    (tmp_path / "b" / LOCK_NAME).symlink_to("/nowhere/at/all")

    assert EmergencyLock(tmp_path / "a").is_set
    assert EmergencyLock(tmp_path / "b").is_set


def test_a_path_that_cannot_be_looked_at_is_locked(tmp_path: Path) -> None:
    """A home that is a file, a loop of links, or gone, is locked: fail closed."""
    (tmp_path / "file").write_text("not a home")
    (tmp_path / "loop").symlink_to("loop")

    assert EmergencyLock(tmp_path / "file").is_set
    assert EmergencyLock(tmp_path / "loop").is_set
    assert EmergencyLock(tmp_path / "gone").is_set


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_refused_look_is_locked(tmp_path: Path) -> None:
    """Without permission to look, it is locked."""
    home = tmp_path / "home"
    home.mkdir(mode=0o000)
    try:
        assert EmergencyLock(home).is_set
    finally:
        home.chmod(0o755)


def test_set_twice_keeps_the_first_reason(tmp_path: Path) -> None:
    """The second `set` says that it was set before and changes nothing."""
    lock = EmergencyLock(tmp_path)

    assert lock.set("smoke", now=NOW)
    assert not lock.set("other", now=NOW)
    assert lock.reason() == "2026-11-23T06:00:00Z smoke"


def test_a_full_disk_still_locks(small_disk: Path) -> None:
    """The name locks, even when there is no room for the reason."""
    (small_disk / "ballast").write_bytes(b"x" * 1_000_000)
    with (
        (small_disk / "filler").open("wb", buffering=0) as filler,
        pytest.raises(OSError, match="No space"),
    ):
        while True:
            filler.write(b"x" * 4096)
    lock = EmergencyLock(small_disk)

    assert lock.set("the disk is full", now=NOW)
    assert lock.is_set


def test_set_says_so_when_it_cannot_lock(tmp_path: Path) -> None:
    """No home: an error, not silence."""
    with pytest.raises(OperatorError, match="could not be set"):
        EmergencyLock(tmp_path / "gone").set("smoke", now=NOW)


def test_release_clears_once(tmp_path: Path) -> None:
    """Releasing twice says that there was nothing to release."""
    lock = EmergencyLock(tmp_path)
    lock.set("smoke", now=NOW)

    lock.release()

    assert not lock.is_set
    with pytest.raises(NothingToDo):
        lock.release()
