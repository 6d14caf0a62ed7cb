"""A check finds every changed byte of a log."""

import random
from pathlib import Path

import pytest

from scf.audit.check import check_log
from scf.audit.tree_head import TreeHead
from support.foundries import SmallFoundry, small_foundry, without_flush


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SmallFoundry:
    """A log of 270 entries: full and partial tiles on two levels."""
    place = small_foundry(tmp_path_factory.mktemp("foundry"))
    log = place.log()
    with without_flush():
        for i in range(270):
            log.append("run.transition" if i % 2 else "shard.committed", f"subject {i}")
    return place


def test_a_sound_log_is_counted(place: SmallFoundry) -> None:
    report = check_log(place.audit_folder.path, place.keys["foundry"])

    assert report.ok
    assert report.size == 270
    assert report.events == {"run.transition": 135, "shard.committed": 135}
    assert report.first_at < report.last_at
    assert report.to_json()["problems"] == []


def test_any_changed_byte_of_any_needed_file_is_found_and_named(place: SmallFoundry) -> None:
    """60 random flips: each found, and the file named."""
    folder = place.audit_folder.path
    needed = ["checkpoint", "tile/0/000", "tile/0/001.p/14", "tile/1/000.p/1",
              "tile/entries/000", "tile/entries/001.p/14"]  # fmt: skip
    generator = random.Random(3)
    for trial in range(60):
        path = folder / needed[trial % len(needed)]
        kept = path.read_bytes()
        changed = bytearray(kept)
        changed[generator.randrange(len(kept))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        report = check_log(folder, place.keys["foundry"])
        path.write_bytes(kept)
        name = str(path.relative_to(folder))
        assert not report.ok
        blamed = {problem.partition(":")[0] for problem in report.problems}
        # A changed entry shows in the tile above it, whose hash it no longer has.
        assert name in blamed or (name.startswith("tile/entries") and "tile/0" in str(blamed))


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000", "tile/entries/001.p/14"])
def test_a_missing_file_is_named(place: SmallFoundry, name: str) -> None:
    path = place.audit_folder.path / name
    kept = path.read_bytes()
    path.unlink()
    report = check_log(place.audit_folder.path, place.keys["foundry"])
    path.write_bytes(kept)

    assert any(problem.startswith(name) for problem in report.problems)


def test_a_head_known_before_must_be_its_beginning(place: SmallFoundry) -> None:
    key = place.keys["foundry"]
    folder = place.audit_folder.path
    head = place.log().tree_head()

    assert check_log(folder, key, known=head).ok
    longer = TreeHead(head.origin, head.size + 1, head.root)
    assert "271 entries were signed" in check_log(folder, key, known=longer).problems[0]
    other = TreeHead(head.origin, 100, bytes(32))
    assert "first 100 entries are not" in check_log(folder, key, known=other).problems[0]


def test_another_key_does_not_fit(place: SmallFoundry, tmp_path: Path) -> None:
    report = check_log(place.audit_folder.path, place.keys["vault"])

    assert not report.ok
    assert report.problems[0].startswith("checkpoint:")
