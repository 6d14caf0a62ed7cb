"""What may go wrong on a Monday, by the command that people use: said, with its exit code, nothing half done."""

import errno
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.cli.main import run as scf_command
from scf.release import archive
from scf.release.verify_release import verify_release
from scf.storage import durable
from support.foundries import SmallFoundry, small_foundry, tree_bytes
from support.releases import promote, releasable, release_week, zoo_of
from support.runs import measured_run

MAKE = ("release", "make", "--week", "2026-11-16")


def make(place: SmallFoundry, *options: str) -> int:
    return scf_command([*MAKE, *options, "--home", str(place.home), "--root", str(place.root)])


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    return releasable(tmp_path / "foundry")


def history(place: SmallFoundry) -> list[str]:
    return sorted(path.name for path in (place.root / "release_history").iterdir())


def test_an_empty_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = small_foundry(tmp_path)
    assert make(place) == 3
    assert "no generation was promoted yet" in capsys.readouterr().err
    assert history(place) == []


def test_a_tie_replaces_nothing_and_the_week_is_released_with_it(place: SmallFoundry) -> None:
    """A candidate that is exactly as good as the champion on every family."""
    from scf.verification.gate import decide
    from scf.verification.report import parse_report
    from support.reports import report_json
    from support.runs import Limits

    value = report_json(families=40)
    value["champion_dsm_loss"] = {**value["dsm_loss"], "paired_sigma": 0.0}
    report = parse_report(value)
    decision = decide(
        report, settings=Limits(), checkpoint_digest=report.checkpoint_digest,
        plan_id=report.plan_id, has_champion=True,
    )  # fmt: skip
    assert not decision.promote
    assert decision.reasons == (
        "exactly as good as the champion on each of 40 held-out families: a tie replaces nothing",
    )


def test_a_clock_before_the_last_release(
    place: SmallFoundry, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one claims to be made in 2099; the machine's clock says earlier."""
    place.clock.moment = datetime(2099, 1, 7, tzinfo=UTC)
    release_week(place)
    before = history(place)
    assert make(place) == 1
    assert "was made at 2099" in capsys.readouterr().err
    assert history(place) == before


def test_a_week_that_is_released_already(place: SmallFoundry) -> None:
    assert make(place) == 0
    before = tree_bytes(place.root / "release_history")
    assert make(place) == 3
    assert tree_bytes(place.root / "release_history") == before


def test_a_disk_that_fills_in_the_middle(
    place: SmallFoundry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half the files are packed; nothing is left of them, and the next try succeeds."""
    put, packed = archive._put, []

    def full(path: Path, source: object) -> dict:
        packed.append(path)
        with durable.os_errors(path):
            if len(packed) == 10:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return put(path, source)

    monkeypatch.setattr(archive, "_put", full)
    assert make(place) == 6
    assert "full" in capsys.readouterr().err
    assert history(place) == []
    monkeypatch.setattr(archive, "_put", put)
    assert make(place) == 0


@pytest.mark.parametrize("name", ["foundry.key", "foundry.pub", "vault.pub"])
def test_a_key_that_is_missing(
    place: SmallFoundry, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.home / "keys" / name).unlink()
    assert make(place) == 1
    assert name in capsys.readouterr().err
    assert history(place) == []


def test_a_checkpoint_that_does_not_verify(
    place: SmallFoundry, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place.root / "model_zoo" / "ebdm_gen0001" / "checkpoint" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert make(place) == 5
    assert "ema.safetensors: its bytes are not those that were promoted" in capsys.readouterr().err
    assert history(place) == []


def test_a_checkpoint_that_was_rolled_back_is_not_released(place: SmallFoundry) -> None:
    """The week's only promotion was taken back: the one that stands is released."""
    promote(place, measured_run(place, number=2, champion_gain=5.0))
    zoo_of(place).rollback("ebdm_gen0001", "it drifts")
    assert make(place) == 0
    about = json.loads((place.root / "release_history/week-2026-11-16/RELEASE.json").read_text())
    assert about["generation"]["name"] == "ebdm_gen0001"


def test_a_shards_manifest_that_was_edited_by_hand(
    place: SmallFoundry, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = next((place.root / "fossil_vault" / "shards").rglob("*.manifest.json"))
    manifest.write_text(manifest.read_text().replace('"keyid"', '"keyid" '))
    manifest.write_text(manifest.read_text().replace('"payload": "ey', '"payload": "eY'))
    assert make(place) == 5
    assert history(place) == []


@pytest.mark.parametrize("edit", ["fossils", "signature"])
def test_a_releases_manifest_that_was_edited_by_hand_stops_the_chain(
    place: SmallFoundry, edit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also on a file system without permissions: what a release says of itself is signed."""
    made = release_week(place)
    name = {"fossils": "RELEASE.json", "signature": "RELEASE.dsse.json"}[edit]
    path = made.path / name
    path.chmod(0o644)
    text = path.read_text()
    path.write_text(
        text.replace('"fossils":40', '"fossils":41')
        if edit == "fossils"
        else text[:-9] + "AAAA" + text[-5:]
    )
    assert make(place, "--week", "2026-11-23") == 5
    assert "week-2026-11-16" in capsys.readouterr().err
    assert history(place) == ["week-2026-11-16"]
    assert scf_command(["release", "verify", str(made.path)]) == 5
    assert name in capsys.readouterr().out


def test_a_file_system_without_permissions_is_no_obstacle(
    place: SmallFoundry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT refuses chmod: the release is made, and a change is found by its digests."""

    def refused(self: Path, mode: int, **other: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", refused)
        assert make(place) == 0
    release = place.root / "release_history" / "week-2026-11-16"
    key = place.keys["foundry"].to_pem()
    assert verify_release(release, key).ok
    (release / "NOTES.md").chmod(0o644)
    (release / "NOTES.md").write_text("better numbers")
    assert [problem.file for problem in verify_release(release, key).problems] == ["NOTES.md"]


def test_the_tree_is_read_only(place: SmallFoundry) -> None:
    assert make(place) == 0
    release = place.root / "release_history" / "week-2026-11-16"
    assert {p.stat().st_mode & 0o222 for p in (release, *release.rglob("*"))} == {0}
