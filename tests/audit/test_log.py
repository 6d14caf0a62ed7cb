"""An event is in the log once `append` returns, and not before; whatever dies in between."""

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.audit.check import check_log
from scf.audit.log import (
    AuditLog,
    AuditLogDamaged,
    AuditLogRolledBack,
    NoSigner,
)
from scf.core.errors import BudgetExceeded, DriveError, UsageError
from scf.core.merkle import leaf_hash, verify_inclusion
from scf.signing.verify import SignatureInvalid
from scf.storage import failpoint
from scf.storage.partitions import DriveMissing
from support.foundries import SmallFoundry, SteppingClock, small_foundry, tree_bytes, without_flush
from support.processes import python_env


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    return small_foundry(tmp_path)


def subjects(log: AuditLog) -> list[str]:
    return [logged.entry.subject for logged in log.entries()]


def assert_sound(place: SmallFoundry) -> None:
    """The whole log fits, and it is the one that the home knows."""
    report = check_log(
        place.audit_folder.path, place.keys["foundry"], known=place.log().tree_head()
    )
    assert report.problems == ()
    assert not (place.audit_folder.path / "staged.json").exists()


def test_what_is_appended_is_read_back_in_order(place: SmallFoundry) -> None:
    log = place.log()
    indices = [log.append("run.transition", f"run-{i}", {"i": i}) for i in range(5)]

    again = place.log()

    assert indices == [0, 1, 2, 3, 4]
    assert subjects(again) == [f"run-{i}" for i in range(5)]
    assert [logged.index for logged in again.entries(3)] == [3, 4]
    assert again.tree_head() == log.tree_head()
    assert_sound(place)


def test_a_fresh_log_is_empty(place: SmallFoundry) -> None:
    log = place.log()

    assert log.tree_head() is None
    assert list(log.entries()) == []
    with pytest.raises(UsageError, match="has 0 entries"):
        log.inclusion_proof(0)
    assert check_log(place.audit_folder.path, place.keys["foundry"]).ok


def test_a_keyed_event_is_there_once(place: SmallFoundry) -> None:
    """Appending the same event twice, in this process or a later one, leaves one entry."""
    log = place.log()
    log.append("other", "x")
    first = log.append("zoo.promoted", "ebdm_gen0001", key="promote/run-1")

    assert log.append("zoo.promoted", "ebdm_gen0001", key="promote/run-1") == first
    assert place.log().append("zoo.promoted", "ebdm_gen0001", key="promote/run-1") == first
    assert place.log().tree_head().size == 2


def test_inclusion_is_proved_to_a_stranger(place: SmallFoundry) -> None:
    """Each proof leads from the entry's bytes to the signed root."""
    log = place.log()
    for i in range(11):
        log.append("e", str(i))
    head = log.tree_head()
    for index in range(11):
        found = log.inclusion_proof(index)
        assert verify_inclusion(leaf_hash(found.data), index, 11, found.proof, head.root)


def test_full_tiles_replace_their_partial_forerunners(place: SmallFoundry) -> None:
    """260 entries: one full tile, its partial ones gone; everything still fits."""
    log = place.log()
    with without_flush():
        for i in range(260):
            log.append("e", str(i))
    tile = place.audit_folder.path / "tile"

    assert (tile / "0" / "000").stat().st_size == 8192
    assert not (tile / "0" / "000.p").exists()
    assert not (tile / "entries" / "000.p").exists()
    assert (tile / "1" / "000.p" / "1").stat().st_size == 32
    assert_sound(place)
    assert subjects(place.log())[254:258] == ["254", "255", "256", "257"]


def test_a_reader_needs_no_key_and_cannot_write(place: SmallFoundry) -> None:
    place.log().append("e", "s")

    reader = AuditLog.open(place.audit_folder, place.home)

    assert subjects(reader) == ["s"]
    with pytest.raises(NoSigner):
        reader.append("e", "t")


def test_two_writers_in_one_process_take_turns(place: SmallFoundry) -> None:
    """Each sees what the other appended."""
    one, two = place.log(), place.log()
    assert [one.append("e", "a"), two.append("e", "b"), one.append("e", "c")] == [0, 1, 2]
    assert subjects(two) == ["a", "b", "c"]
    assert_sound(place)


def _append_many(base: Path, name: str, count: int) -> None:
    place = SmallFoundry(base, SteppingClock())
    for i in range(count):
        place.log().append("e", f"{name}{i}")


def test_writers_in_several_processes_lose_nothing(place: SmallFoundry) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(place.base, name, 8)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    found = subjects(place.log())
    assert sorted(found) == sorted(f"{name}{i}" for name in "abc" for i in range(8))
    assert [s for s in found if s[0] == "a"] == [f"a{i}" for i in range(8)]
    assert_sound(place)


# -- crashes ---------------------------------------------------------------------------------------

# One append writes five files through durable.write_file: what is staged, the head in the home (the
# commit), an entry bundle, a tile, the head on the drive.
POINTS = [
    ("audit.staged", 1, False),
    ("audit.committed", 1, True),
    *[("durable.before_write", n, n > 2) for n in range(1, 6)],
    *[("durable.before_rename", n, n > 2) for n in range(1, 6)],
    *[("durable.after_rename", n, n >= 2) for n in range(1, 6)],
]

CRASH = """
import sys
from pathlib import Path
from support.foundries import SmallFoundry, SteppingClock
place = SmallFoundry(Path(sys.argv[1]), SteppingClock())
place.log().append("e", "crashed", key="crashed")
"""


@pytest.mark.crash
@pytest.mark.parametrize(("point", "passage", "is_written"), POINTS)
def test_a_kill_at_any_moment_leaves_the_entry_there_or_not(
    place: SmallFoundry, point: str, passage: int, is_written: bool
) -> None:
    """Before the commit the event never happened, after it it did; then life goes on."""
    place.log().append("e", "before")
    child = subprocess.run(
        [sys.executable, "-c", CRASH, str(place.base)],
        env=python_env(
            SCF_FAIL=f"{point}:kill:{passage}", PYTHONPATH=str(Path(__file__).parents[1])
        ),
        check=False,
        timeout=300,
    )
    assert child.returncode == -9

    log = place.log()

    assert subjects(log) == ["before", "crashed"] if is_written else ["before"]
    assert log.append("e", "crashed", key="crashed") == 1
    assert log.append("e", "after") == 2
    assert subjects(place.log()) == ["before", "crashed", "after"]
    assert_sound(place)


@pytest.mark.parametrize("how", ["error", "enospc"])
@pytest.mark.parametrize(("point", "passage", "is_written"), POINTS)
def test_a_failed_write_is_repeated_by_the_same_process(
    place: SmallFoundry,
    point: str,
    passage: int,
    is_written: bool,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error has a name; the same log object, asked again with the same key, leaves one entry."""
    log = place.log()
    log.append("e", "before")
    monkeypatch.setattr(failpoint, "_passages", {})
    monkeypatch.setenv("SCF_FAIL", f"{point}:{how}:{passage}")
    with pytest.raises(DriveError if how == "error" else BudgetExceeded):
        log.append("e", "failed", key="failed")
    monkeypatch.delenv("SCF_FAIL")

    assert log.append("e", "failed", key="failed") == 1
    assert subjects(log) == ["before", "failed"]
    assert_sound(place)


# -- drives that changed ------------------------------------------------------------------------------


def test_a_drive_that_was_rolled_back_is_noticed(place: SmallFoundry) -> None:
    """An old copy of the log, complete and signed, is not the log."""
    log = place.log()
    log.append("e", "1")
    old = place.base / "old"
    shutil.copytree(place.audit_folder.path, old)
    log.append("e", "2")
    log.append("e", "3")
    shutil.rmtree(place.audit_folder.path)
    shutil.copytree(old, place.audit_folder.path, dirs_exist_ok=True)

    with pytest.raises(AuditLogRolledBack, match="holds 1 entries of the 3") as caught:
        place.log()
    assert caught.value.exit_code == 5
    with pytest.raises(AuditLogRolledBack):
        log.append("e", "4")
    assert tree_bytes(place.audit_folder.path) == tree_bytes(old)


def test_a_drive_whose_log_is_gone_is_noticed(place: SmallFoundry) -> None:
    place.log().append("e", "1")
    shutil.rmtree(place.audit_folder.path)

    with pytest.raises(AuditLogRolledBack, match="holds 0 entries of the 1"):
        place.log()


def test_a_rewritten_history_is_noticed(place: SmallFoundry, tmp_path: Path) -> None:
    """Another log of the same length, signed by the same key, is refused."""
    place.log().append("e", "true")
    shutil.move(place.audit_folder.path, tmp_path / "true")
    head = next((place.home / "audit").glob("*.checkpoint"))
    kept = head.read_bytes()
    head.unlink()
    place.log().append("e", "false")
    head.write_bytes(kept)

    with pytest.raises(AuditLogRolledBack, match="two different logs"):
        place.log()
    assert check_log(tmp_path / "true", place.keys["foundry"]).ok


def test_a_longer_rewritten_history_is_noticed(place: SmallFoundry) -> None:
    place.log().append("e", "true")
    head = next((place.home / "audit").glob("*.checkpoint"))
    kept = head.read_bytes()
    shutil.rmtree(place.audit_folder.path)
    head.unlink()
    for i in range(3):
        place.log().append("e", f"false {i}")
    head.write_bytes(kept)

    with pytest.raises(AuditLogRolledBack, match="do not begin with the 1"):
        place.log()


@pytest.mark.parametrize("what", ["older", "none"])
def test_a_home_that_was_restored_follows_the_drive(place: SmallFoundry, what: str) -> None:
    """A home's head may be older than the drive's, or gone; the log goes on."""
    log = place.log()
    log.append("e", "1")
    head = next((place.home / "audit").glob("*.checkpoint"))
    kept = head.read_bytes()
    log.append("e", "2")
    head.unlink()
    if what == "older":
        head.write_bytes(kept)

    assert place.log().append("e", "3") == 2
    assert subjects(log) == ["1", "2", "3"]
    assert_sound(place)


def test_a_head_signed_by_another_key_is_refused(place: SmallFoundry, tmp_path: Path) -> None:
    """A foundry does not go on with the log of another."""
    (tmp_path / "other").mkdir()
    place.log().append("e", "1")
    next((place.home / "audit").glob("*.checkpoint")).unlink()
    other = small_foundry(tmp_path / "other")

    with pytest.raises(SignatureInvalid):
        AuditLog.open(place.audit_folder, place.home, other.signer())


def test_damaged_tiles_are_named(place: SmallFoundry) -> None:
    log = place.log()
    log.append("e", "1")
    log.append("e", "2")
    tile = place.audit_folder.path / "tile" / "0" / "000.p" / "2"
    data = bytearray(tile.read_bytes())
    data[40] ^= 1
    tile.write_bytes(bytes(data))

    with pytest.raises(AuditLogDamaged, match="do not lead to the tree head"):
        place.log()
    tile.unlink()
    with pytest.raises(AuditLogDamaged, match=r"000\.p/2: this part of the log is missing"):
        place.log()


def test_nothing_is_written_when_the_drive_is_gone(place: SmallFoundry) -> None:
    log = place.log()
    log.append("e", "1")
    (place.root / ".scf-root.json").unlink()
    before = tree_bytes(place.root)

    with pytest.raises(DriveMissing):
        log.append("e", "2")
    assert tree_bytes(place.root) == before
