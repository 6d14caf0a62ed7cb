"""Dropped files are found without walking the vault at gear speed."""

import os
import time
from pathlib import Path

import pytest

from scf.daemon import drops as drops_module
from scf.daemon.drops import Drops

LATER = 1e12


def drop(root: Path, name: str, text: str = "x") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def whole_pass(drops: Drops, now_s: float = 0.0) -> int:
    drops.begin(now_s)
    steps = 0
    while drops.is_under_way:
        drops.step(LATER)
        steps += 1
    return steps


def test_a_pass_is_bounded_and_finds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drops_module, "NAMES_PER_STEP", 10)
    for n in range(60):
        drop(tmp_path, f"d{n % 6}/e/{n}.ndjson")
    drops = Drops(tmp_path, lambda found: False)

    assert whole_pass(drops) > 5
    assert len(drops.waiting) == 60


def test_folders_that_did_not_change_cost_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many files dealt with: only the folder with a new name is read."""
    monkeypatch.setattr(drops_module, "FEW_FILES", 5)
    for n in range(60):
        drop(tmp_path, f"d{n % 6}/{n}.ndjson")
    known: set[str] = set()
    asked: list[str] = []

    def is_known(found):
        asked.append(found.name)
        return found.name in known

    drops = Drops(tmp_path, is_known)
    whole_pass(drops)
    known.update(drops.waiting)
    drops.look_again()
    assert drops.waiting == {}
    asked.clear()
    whole_pass(drops, 5.0)
    assert asked == []

    drop(tmp_path, "d3/new.ndjson")
    whole_pass(drops, 10.0)
    assert set(drops.waiting) == {"d3/new.ndjson"}
    assert len(asked) == 11
    asked.clear()
    whole_pass(drops, 10_000.0)
    assert len(asked) == 61


def test_a_file_that_grows_is_seen_as_it_is(tmp_path: Path) -> None:
    path = drop(tmp_path, "a/one.ndjson")
    drops = Drops(tmp_path, lambda found: False)
    whole_pass(drops)
    path.write_text("xyz")
    drops.look_again()
    assert drops.waiting["a/one.ndjson"].size_bytes == 3
    path.unlink()
    drops.look_again()
    assert drops.waiting == {}


def test_more_files_than_can_wait_are_found_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is forgotten, however many lie there already."""
    monkeypatch.setattr(drops_module, "WAITING_MAX", 10)
    monkeypatch.setattr(drops_module, "FEW_FILES", 5)
    for n in range(45):
        drop(tmp_path, f"d{n % 9}/{n}.ndjson")
    known: set[str] = set()
    drops = Drops(tmp_path, lambda found: found.name in known)
    for turn in range(20):
        whole_pass(drops, float(turn))
        known.update(drops.waiting)
        drops.look_again()

    assert len(known) == 45


def test_a_folder_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    drop(tmp_path, "a/one.ndjson")
    (tmp_path / "loop").symlink_to(tmp_path)
    drops = Drops(tmp_path, lambda found: False)
    drops.begin(0.0)
    drops._left.append("gone")
    while drops.is_under_way:
        drops.step(LATER)

    assert set(drops.waiting) == {"a/one.ndjson"}


def test_a_pass_over_unchanged_folders_lists_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred folders with thousands of files dealt with: a look at each folder, no file."""
    for n in range(3000):
        drop(tmp_path, f"d{n % 100:02}/{n}.ndjson", "")
    old = time.time() - 100
    for folder in tmp_path.iterdir():
        os.utime(folder, (old, old))
    drops = Drops(tmp_path, lambda found: True)
    whole_pass(drops)
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} was listed"))
    whole_pass(drops, 5.0)

    assert drops.waiting == {}
