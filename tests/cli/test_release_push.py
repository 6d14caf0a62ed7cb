"""`scf release push` and `make --publish`: verified first, once, and nothing without a clear lock."""

import json
from pathlib import Path

import pytest

from scf.cli.main import run as scf_command
from scf.release.verify_release import verify_release
from support.foundries import SmallFoundry, tree_bytes
from support.releases import releasable, release_week


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    place = releasable(tmp_path / "foundry")
    (place.home / "scf.toml").write_text(f'root = "{place.root}"\n')
    (tmp_path / "to").mkdir()
    return place


def at(place: SmallFoundry) -> list[str]:
    return ["--home", str(place.home)]


def test_make_and_publish_in_one_command_then_nothing_to_do(
    place: SmallFoundry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what scf.toml says; a week that is released but not published is published."""
    with (place.home / "scf.toml").open("a") as file:
        file.write(f'[release]\npush = ["folder:{tmp_path / "to"}"]\n')
    assert scf_command(["release", "make", "--week", "2026-11-16", *at(place)]) == 0
    capsys.readouterr()

    assert scf_command(["release", "make", "--week", "2026-11-16", "--publish", *at(place)]) == 0
    assert "published" in capsys.readouterr().out
    published = tmp_path / "to" / "week-2026-11-16"
    assert verify_release(published, place.keys["foundry"].to_pem()).ok
    assert tree_bytes(published) == tree_bytes(place.root / "release_history" / "week-2026-11-16")

    assert scf_command(["release", "make", "--week", "2026-11-16", "--publish", *at(place)]) == 3
    assert scf_command(["release", "push", *at(place)]) == 3
    events = [e.entry for e in place.log().entries() if e.entry.event == "release.published"]
    assert [(e.subject, e.details["outlet"]) for e in events] == [
        ("week-2026-11-16", f"folder:{tmp_path / 'to'}")
    ]


def test_one_outlet_that_fails_keeps_no_other_waiting(
    place: SmallFoundry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release_week(place)
    good = f"folder:{tmp_path / 'to'}"
    command = ["release", "push", "latest", "--to", f"folder:{tmp_path / 'gone'}", "--to", good]

    assert scf_command([*command, "--json", *at(place)]) == 8

    told = json.loads(capsys.readouterr().out)["pushed"]
    assert [(row["address"] == good, row["result"]) for row in told] == [
        (False, "failed"), (True, "published"),
    ]  # fmt: skip
    assert (tmp_path / "to" / "week-2026-11-16" / "RELEASE.json").is_file()


def test_what_does_not_verify_is_published_nowhere(
    place: SmallFoundry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = release_week(place)
    (made.path / "NOTES.md").chmod(0o644)
    (made.path / "NOTES.md").write_text("edited by hand")
    assert scf_command(["release", "push", "--to", f"folder:{tmp_path / 'to'}", *at(place)]) == 5
    assert "NOTES.md" in capsys.readouterr().err
    assert list((tmp_path / "to").iterdir()) == []


def test_a_locked_foundry_publishes_nothing(place: SmallFoundry, tmp_path: Path) -> None:
    release_week(place)
    (place.home / "EMERGENCY_LOCK").touch()
    assert scf_command(["release", "push", "--to", f"folder:{tmp_path / 'to'}", *at(place)]) == 4
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "nobody said where to publish"),
        ("ftp://somewhere", "is not an outlet"),
        ("s3://key:secret@bucket/prefix", "an address holds no credentials"),
    ],
)
def test_addresses_that_are_none(
    place: SmallFoundry, capsys: pytest.CaptureFixture[str], address: str | None, said: str
) -> None:
    release_week(place)
    to = ["--to", address] if address else []
    assert scf_command(["release", "push", *to, *at(place)]) == 2
    assert said in capsys.readouterr().err
