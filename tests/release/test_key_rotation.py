"""A foundry whose key was replaced: everything made before stays good, and a stranger can follow."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from scf.cli.main import run as scf_command
from scf.release.deep import DIFFERS, walk
from scf.release.verify_release import verify_release
from support.foundries import SmallFoundry
from support.releases import promote, releasable, release_week, writable_copy
from support.runs import measured_run


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    return releasable(tmp_path / "foundry")


def rotate(place: SmallFoundry, role: str = "foundry") -> int:
    command = ["keys", "rotate", role, "--reason", "yearly"]
    return scf_command([*command, "--home", str(place.home), "--root", str(place.root)])


def test_a_stranger_with_the_old_key_follows_to_the_new_one(
    place: SmallFoundry, tmp_path: Path
) -> None:
    """Before, between and after: statements of the old keys, a new generation, both roles replaced."""
    old = place.keys["foundry"].to_pem()
    first = release_week(place, week=date(2026, 11, 2))
    assert rotate(place) == 0
    second = release_week(place, week=date(2026, 11, 9))  # no promotion: the old key's statement
    assert rotate(place) == rotate(place, "vault") == 0
    promote(place, measured_run(place, number=2, champion_gain=5.0))
    third = release_week(place, week=date(2026, 11, 16))

    new = place.keys["foundry"].to_pem()
    for made, followed in ((first, False), (second, True), (third, True)):
        checked = verify_release(made.path, old)
        assert checked.problems == []
        assert checked.followed is followed
    checked = verify_release(third.path, new)
    assert (checked.problems, checked.followed) == ([], False)
    # What was signed before is not the new key's; who has only that one is told so.
    assert verify_release(first.path, new).problems[0].what == "not the key that was given"
    for made in (first, third):  # the foundry itself knows which key it had then
        hops = list(walk(made.path, place.root, place.keys))
        assert [hop for hop in hops if hop.result == DIFFERS] == []

    (tmp_path / "old.pub").write_bytes(old)
    done = subprocess.run(
        [sys.executable, "-I", str(third.path / "verify_release.py"), str(third.path), "--key", str(tmp_path / "old.pub")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "the key that was given is an older one, and leads to this one" in done.stdout


def test_the_log_holds_the_rotation_and_is_sound(place: SmallFoundry, capsys) -> None:
    old = place.keys["foundry"].key_id
    assert rotate(place) == 0
    assert (
        scf_command(["audit", "check", "--home", str(place.home), "--root", str(place.root)]) == 0
    )
    (entry,) = [e.entry for e in place.log().entries() if e.entry.event == "key.rotated"]
    assert (entry.details["old"], entry.details["new"]) == (old, place.keys["foundry"].key_id)
    capsys.readouterr()
    assert scf_command(["keys", "show", "--json", "--home", str(place.home)]) == 0
    assert json.loads(capsys.readouterr().out)["keys"]["foundry"]["replaced"] == [old]


def test_a_rotation_that_was_tampered_with_is_named(place: SmallFoundry, tmp_path: Path) -> None:
    old = place.keys["foundry"].to_pem()
    assert rotate(place) == 0
    copy = writable_copy(release_week(place).path, tmp_path / "week-2026-11-16")
    path = copy / "keys" / "rotations.json"
    path.write_text(path.read_text().replace("yearly", "weekly") + " ")
    checked = verify_release(copy, old)
    assert "keys/rotations.json" in {problem.file for problem in checked.problems}


def test_another_foundrys_rotation_leads_nowhere(place: SmallFoundry, tmp_path: Path) -> None:
    """A thief packs a release with keys of their own, and a rotation from a key that is not ours."""
    theirs = releasable(tmp_path / "theirs")
    assert rotate(theirs) == 0
    made = release_week(theirs)
    checked = verify_release(made.path, place.keys["foundry"].to_pem())
    assert not checked.ok
    assert not checked.followed


def test_not_beside_a_running_daemon_nor_when_locked(place: SmallFoundry, monkeypatch) -> None:
    before = place.keys
    (place.home / "EMERGENCY_LOCK").touch()
    assert rotate(place) == 4
    (place.home / "EMERGENCY_LOCK").unlink()
    monkeypatch.setattr("scf.daemon.heartbeat.is_running", lambda home: True)
    assert rotate(place) == 1
    assert place.keys == before
