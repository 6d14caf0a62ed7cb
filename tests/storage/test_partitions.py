"""The drive: six partitions, a marker, and a check before every write."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from scf.core.errors import DriveError
from scf.storage import durable
from scf.storage.partitions import (
    DEFAULT_BUDGETS_BYTES,
    MARKER_NAME,
    USAGE_PATH,
    USAGE_SCHEMA,
    Drive,
    DriveMissing,
    Folder,
    PartitionFull,
)


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive.scaffold(tmp_path / "root")


def test_scaffold_makes_six_partitions_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    first = Drive.scaffold(tmp_path / "root")
    again = Drive.scaffold(tmp_path / "root")

    assert first.uuid == again.uuid
    assert {p.name for p in (tmp_path / "root").iterdir()} == {*DEFAULT_BUDGETS_BYTES, MARKER_NAME}


def test_budgets_scale_to_the_disk(drive: Drive) -> None:
    total = shutil.disk_usage(drive.root).total

    assert sum(drive.budgets_bytes.values()) <= 0.9 * total
    vault, atlas = drive.budgets_bytes["fossil_vault"], drive.budgets_bytes["energy_atlas"]
    assert vault / atlas == pytest.approx(2.5, rel=1e-6)


def test_usage_counts_the_bytes_of_each_partition(drive: Drive) -> None:
    drive.folder("model_zoo", "ebdm_gen0001").write_file("model", b"x" * 1234)

    assert {u.name: u.used_bytes for u in drive.usage()}["model_zoo"] == 1234


def test_opening_without_a_marker_names_the_root(tmp_path: Path) -> None:
    with pytest.raises(DriveMissing, match="no readable marker") as caught:
        Drive.open(tmp_path)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "scf.root/1"}'])
def test_a_damaged_marker_is_no_drive(drive: Drive, content: bytes) -> None:
    (drive.root / MARKER_NAME).write_bytes(content)

    with pytest.raises(DriveError):
        Drive.open(drive.root)
    with pytest.raises(DriveError):
        drive.folder("model_zoo")


WRITES = {
    "file": lambda folder, staged: folder.write_file("x", b"1"),
    "json": lambda folder, staged: folder.write_json("x", {}),
    "once": lambda folder, staged: folder.write_once("x", b"1"),
    "append": lambda folder, staged: folder.append_line("x", b"1"),
    "folder": lambda folder, staged: folder.folder("x"),
    "staging": lambda folder, staged: folder.new_staging("x"),
    "publish": lambda folder, staged: folder.publish_folder(staged, "x"),
    "staged": lambda folder, staged: folder.open_staged("x").__enter__(),
}


@pytest.mark.parametrize("write", WRITES)
def test_no_write_happens_once_the_marker_is_gone(drive: Drive, write: str) -> None:
    folder = drive.folder("system_cache")
    staged = folder.new_staging("s")
    (drive.root / MARKER_NAME).unlink()

    with pytest.raises(DriveMissing):
        WRITES[write](folder, staged)

    assert not (folder.path / "x").exists()


def test_a_marker_of_another_drive_stops_writes(drive: Drive, tmp_path: Path) -> None:
    folder = drive.folder("system_cache")
    other = Drive.scaffold(tmp_path / "other")
    shutil.copy(other.root / MARKER_NAME, drive.root / MARKER_NAME)

    with pytest.raises(DriveMissing, match=other.uuid):
        folder.write_file("x", b"1")


def test_a_drive_unmounted_lazily_gets_no_write_on_the_system_disk(small_disk: Path) -> None:
    """`umount -l` leaves the empty mount point: writing there would fill the system disk."""
    folder = Drive.scaffold(small_disk).folder("system_cache")
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    try:
        with pytest.raises(DriveMissing):
            folder.write_file("x", b"1")
        assert list(small_disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)


def test_a_drive_pulled_while_a_file_is_being_written_gets_no_final_name(drive: Drive) -> None:
    folder = drive.folder("system_cache")

    with pytest.raises(DriveMissing), folder.open_staged("x") as file:
        file.write(b"half")
        (drive.root / MARKER_NAME).unlink()

    assert not (folder.path / "x").exists()


def test_a_folder_finds_its_drive_by_the_marker_above(drive: Drive, tmp_path: Path) -> None:
    inside = Folder.at(drive.root / "system_cache" / "deep" / "er")
    outside = Folder.at(tmp_path / "elsewhere")

    assert inside.drive is not None
    assert inside.drive.uuid == drive.uuid
    assert outside.drive is None


@pytest.mark.parametrize("point", ["durable.before_write", "durable.before_rename"])
def test_a_full_disk_while_scaffolding_leaves_no_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv("SCF_FAIL", f"{point}:enospc")
    with pytest.raises(durable.BudgetExceeded):
        Drive.scaffold(tmp_path / "root")
    monkeypatch.delenv("SCF_FAIL")

    assert not (tmp_path / "root" / MARKER_NAME).exists()
    assert Drive.scaffold(tmp_path / "root").uuid


def survey(drive: Drive, **used_bytes: int) -> None:
    """Say what the partitions hold, as the conductor's survey does."""
    used = {name: used_bytes.get(name, 0) for name in DEFAULT_BUDGETS_BYTES}
    path = drive.root.joinpath(*USAGE_PATH)
    durable.write_json(path, {"schema": USAGE_SCHEMA, "used_bytes": used})


def test_a_budget_is_enforced_before_the_write(drive: Drive) -> None:
    """What fits is written and counted; what does not leaves nothing, and says what to do."""
    drive.set_budgets({"model_zoo": 1000})
    survey(drive, model_zoo=900)
    folder = drive.folder("model_zoo", "inside")
    folder.write_file("small", b"x" * 60)
    folder.append_line("log", b"y" * 19)

    with pytest.raises(PartitionFull, match="20 B are left of its budget") as refused:
        folder.write_file("large", b"x" * 21)
    assert "scf budget set model_zoo" in str(refused.value.remedy)
    with pytest.raises(PartitionFull), folder.open_staged("staged") as file:
        file.write(b"x" * 21)
    assert sorted(path.name for path in folder.path.iterdir()) == ["log", "small"]
    folder.write_file("small", b"x" * 50)
    folder.write_file("other", b"x" * 30)
    drive.folder("zk_proofs").write_file("elsewhere", b"x" * 5000)


def test_a_folder_that_does_not_fit_is_not_published(drive: Drive) -> None:
    drive.set_budgets({"model_zoo": 1000})
    survey(drive, model_zoo=500)
    folder = drive.folder("model_zoo")
    staged = folder.new_staging("g")
    (staged / "weights").write_bytes(b"x" * 501)

    with pytest.raises(PartitionFull):
        folder.publish_folder(staged, "g")

    assert not (folder.path / "g").exists()
    (staged / "weights").write_bytes(b"x" * 500)
    folder.publish_folder(staged, "g")
    with pytest.raises(PartitionFull):
        folder.new_staging("another")


def test_a_budget_holds_without_a_survey_where_a_keeper_tells_what_is_there(drive: Drive) -> None:
    """Nor does an old survey make the partition smaller than its own books say."""
    drive.set_budgets({"model_zoo": 1000})
    drive.folder("model_zoo").write_file("old", b"x" * 100)
    drive.learn_usage("model_zoo", 990)

    with pytest.raises(PartitionFull, match="10 B are left"):
        drive.folder("model_zoo").write_file("a", b"x" * 11)
    drive.learn_usage("model_zoo", 5)
    with pytest.raises(PartitionFull):
        drive.folder("model_zoo").write_file("a", b"x" * 11)


def test_a_raised_budget_is_noticed_by_whoever_has_the_drive_open(drive: Drive) -> None:
    survey(drive, model_zoo=5000)
    drive.set_budgets({"model_zoo": 1000})
    other = Drive.open(drive.root)
    folder = other.folder("model_zoo")
    with pytest.raises(PartitionFull):
        folder.write_file("x", b"1")

    drive.set_budgets({"model_zoo": 10_000})

    folder.write_file("x", b"1")


def test_what_nobody_has_measured_is_not_refused(drive: Drive) -> None:
    """No survey yet, or one that cannot be read: the disk itself is the limit."""
    drive.set_budgets({"model_zoo": 1})
    folder = drive.folder("model_zoo")
    folder.write_file("x", b"12345")
    (drive.root / "system_cache" / "usage.json").write_text("{")
    folder.write_file("x", b"1234567")


def test_the_look_at_a_budget_costs_microseconds(drive: Drive) -> None:
    """No walk per write: a look takes well under a tenth of a millisecond of this thread."""
    survey(drive, model_zoo=1)
    folder = drive.folder("model_zoo", "a", "b")
    began = time.thread_time()
    for _ in range(1000):
        folder.admit(1)

    assert (time.thread_time() - began) / 1000 < 1e-4
