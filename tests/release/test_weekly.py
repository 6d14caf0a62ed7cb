"""A release is made once, whole, and names the one before it."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from scf.audit.check import check_log
from scf.core.errors import BudgetExceeded, DriveError, UsageError
from scf.release import contents
from scf.release.archive import ReleaseDamaged
from scf.release.verify_release import verify_release
from scf.release.weekly import (
    AlreadyReleased,
    ClockBehind,
    NothingToRelease,
    list_releases,
    release_name,
)
from scf.storage import failpoint
from scf.vault.shard import read_shard
from scf.zoo.entry import GenerationDamaged
from support.foundries import SmallFoundry, small_foundry, tree_bytes
from support.processes import python_env
from support.releases import promote, releasable, release_week, take_away, zoo_of
from support.runs import fill_vault, measured_run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundry that is ready to release, to be copied."""
    return releasable(tmp_path_factory.mktemp("template") / "foundry").base


@pytest.fixture
def place(template: Path, tmp_path: Path) -> SmallFoundry:
    from support.foundries import SteppingClock

    shutil.copytree(template, tmp_path / "foundry")
    clock = SteppingClock(datetime(2026, 11, 18, 13, tzinfo=UTC))
    return SmallFoundry(tmp_path / "foundry", clock)


def names(place: SmallFoundry) -> list[str]:
    return sorted(p.name for p in (place.root / "release_history").iterdir())


def test_a_release_holds_all_that_was_promised_and_verifies(place: SmallFoundry) -> None:
    result = release_week(place)

    assert result.name == "week-2026-11-16"
    assert result.path == place.root / "release_history" / "week-2026-11-16"
    found = set(tree_bytes(result.path))
    assert found >= {
        "RELEASE.json", "RELEASE.dsse.json", "SHA256SUMS", "MODEL_CARD.md", "NOTES.md", "VERIFY.md",
        "metrics.json", "plan.json", "proof.json", "verify_release.py", "plots/energies.png",
        "keys/foundry.pub", "keys/vault.pub", "evidence/fossils.txt", "model/digests.json",
        "model/model.safetensors", "model/ema.safetensors", "model/config.json", "model/state.json",
    }  # fmt: skip
    assert "model/optimizer.safetensors" not in found
    checked = verify_release(result.path, place.keys["foundry"].to_pem())
    assert checked.problems == []
    assert checked.facts["absent"].keys() == {"zk_proof", "student", "ledger", "atlas"}
    assert result.num_files == len(found)
    assert result.promotion
    assert all(not p.stat().st_mode & 0o222 for p in result.path.rglob("*") if p.is_file())


def test_the_release_is_logged(place: SmallFoundry) -> None:
    result = release_week(place)

    last = list(place.log().entries())[-1].entry
    assert (last.event, last.subject) == ("release.made", "week-2026-11-16")
    assert last.details["release_sha256"] == result.release_sha256
    assert check_log(place.audit_folder.path, place.keys["foundry"]).ok


def test_a_week_is_released_once(place: SmallFoundry) -> None:
    path = release_week(place).path
    before = tree_bytes(path)

    with pytest.raises(AlreadyReleased, match="released already") as caught:
        release_week(place)
    assert caught.value.exit_code == 3
    assert tree_bytes(path) == before
    assert place.log().tree_head().size == 2


def test_the_same_inputs_give_the_same_bytes(place: SmallFoundry, template: Path) -> None:
    """Two copies of one foundry, the same moment: identical releases, signatures included."""
    from support.foundries import SteppingClock

    other = SmallFoundry(place.base.parent / "other", SteppingClock(place.clock.moment))
    shutil.copytree(template, other.base)

    assert tree_bytes(release_week(place).path) == tree_bytes(release_week(other).path)


def test_releases_are_chained(place: SmallFoundry) -> None:
    """The second names the first by digest; both verify; the notes tell what changed."""
    first = release_week(place)
    place.clock.moment = datetime(2026, 11, 25, 8, tzinfo=UTC)
    fill_vault(place, fossils=25, origin="second.csv")
    promote(place, measured_run(place, number=2, champion_gain=0.2))

    second = release_week(place)

    about = json.loads((second.path / "RELEASE.json").read_text())
    assert about["previous"] == {
        "name": "week-2026-11-16", "release_sha256": first.release_sha256,
    }  # fmt: skip
    for release in (first, second):
        assert verify_release(release.path, place.keys["foundry"].to_pem()).ok
    assert verify_release(second.path).previous == "fits"
    notes = (second.path / "NOTES.md").read_text()
    assert "ebdm_gen0002 replaces ebdm_gen0001" in notes
    assert "65 fossils (+25 since week-2026-11-16)" in notes
    assert "| second.csv | 25 | 25 |" in notes
    assert "| soup.csv | 40 | 0 |" in notes
    assert [r["release"] for r in list_releases(place.drive.folder("release_history"))] == [
        "week-2026-11-16", "week-2026-11-23",
    ]  # fmt: skip


def test_a_week_without_promotion_says_so(place: SmallFoundry) -> None:
    release_week(place)

    second = release_week(place, week=date(2026, 11, 23))

    assert not second.promotion
    assert "No promotion" in (second.path / "NOTES.md").read_text()
    assert verify_release(second.path).ok


def test_a_rollback_is_told_with_its_reason(place: SmallFoundry) -> None:
    promote(place, measured_run(place, number=2, champion_gain=0.2))
    release_week(place)
    zoo_of(place).rollback("ebdm_gen0001", "0002 drifts at night")

    second = release_week(place, week=date(2026, 11, 23))

    assert second.generation == "ebdm_gen0001"
    notes = (second.path / "NOTES.md").read_text()
    assert "Rolled back: ebdm_gen0001 stands again" in notes
    assert "0002 drifts at night" in notes


def test_a_previous_release_that_was_exchanged_is_noticed(place: SmallFoundry) -> None:
    first = release_week(place)
    second = release_week(place, week=date(2026, 11, 23))
    path = first.path / "RELEASE.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"promotion", b"promotioN"))

    checked = verify_release(second.path)

    assert not checked.ok
    assert "week-2026-11-16/RELEASE.json beside it" in checked.problems[0].what


def test_runs_that_came_to_nothing_are_told(place: SmallFoundry) -> None:
    """Whoever was away reads which runs failed, and why."""
    place.log().append(
        "run.REJECTED", "run-00000000000b", {"reason": "no better than the champion"}
    )
    place.log().append("run.PLANNED", "run-00000000000c", {"reason": "door local"})

    notes = (release_week(place).path / "NOTES.md").read_text()

    assert "run-00000000000b was rejected: no better than the champion" in notes
    assert "run-00000000000c" not in notes
    assert "| run.PLANNED | 1 |" in notes


def test_a_dry_run_writes_nothing(place: SmallFoundry) -> None:
    before = tree_bytes(place.root)

    result = release_week(place, dry_run=True)

    assert result.path is None
    assert result.generation == "ebdm_gen0001"
    assert result.size_bytes > 1000
    assert tree_bytes(place.root) == before
    assert release_week(place).num_files == result.num_files


# -- what cannot be released --------------------------------------------------------------------------


def test_an_empty_zoo_has_nothing_to_release(tmp_path: Path) -> None:
    with pytest.raises(NothingToRelease, match="zoo is empty") as caught:
        release_week(small_foundry(tmp_path))
    assert caught.value.exit_code == 3


def test_a_week_is_named_by_its_monday() -> None:
    assert release_name(date(2026, 11, 16)) == "week-2026-11-16"
    with pytest.raises(UsageError, match="2026-11-18 is a Wednesday") as caught:
        release_name(date(2026, 11, 18))
    assert "--week 2026-11-16" in str(caught.value.remedy)


def test_a_clock_before_the_last_release_is_refused(place: SmallFoundry) -> None:
    release_week(place)
    place.clock.moment = datetime(2026, 11, 3, tzinfo=UTC)

    with pytest.raises(ClockBehind, match="week-2026-11-16 was made at") as caught:
        release_week(place)
    assert caught.value.exit_code == 1
    assert names(place) == ["week-2026-11-16"]


def test_a_damaged_champion_is_not_released(place: SmallFoundry) -> None:
    weights = place.root / "model_zoo" / "ebdm_gen0001" / "checkpoint" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")

    with pytest.raises(GenerationDamaged, match=r"ema\.safetensors") as caught:
        release_week(place)
    assert caught.value.exit_code == 5
    assert names(place) == []


def test_a_vault_that_lost_a_shard_is_not_released(place: SmallFoundry) -> None:
    """What the model was trained on must still be there, as it was."""
    shard = next((place.root / "fossil_vault" / "shards").glob("*/*.ndjson"))
    text = shard.read_bytes()
    shard.write_bytes(b"".join(text.splitlines(keepends=True)[1:]))
    with pytest.raises(Exception, match="not those of the plan"):
        release_week(place)
    shard.unlink()
    with pytest.raises(Exception, match=shard.name):
        release_week(place)
    assert names(place) == []


def test_the_list_of_fossils_is_proven_by_the_manifests_not_by_reading_shards(
    place: SmallFoundry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index gives it, and is not believed: what does not lead to a signed root is read anew."""
    read: list[str] = []

    def noting(path: Path, **about: bool):
        read.append(path.name)
        return read_shard(path, **about)

    monkeypatch.setattr(contents, "read_shard", noting)
    released = release_week(place)
    assert read == []

    with contextlib.closing(sqlite3.connect(place.home / "vault_index.db")) as index, index:
        index.execute("UPDATE fossils SET verdict = 'FAIL' WHERE line = 1")
    told = (released.path / "evidence" / "fossils.txt").read_bytes()
    take_away(released.path)
    again = release_week(place)

    assert (again.path / "evidence" / "fossils.txt").read_bytes() == told
    shards = (place.root / "fossil_vault" / "shards").glob("*/*.ndjson")
    assert sorted(read) == sorted(path.name for path in shards)


def test_an_earlier_release_that_cannot_be_read_stops_the_chain(place: SmallFoundry) -> None:
    path = release_week(place).path / "RELEASE.json"
    path.chmod(0o644)
    path.write_text("{")

    with pytest.raises(ReleaseDamaged, match=r"week-2026-11-16.RELEASE\.json"):
        release_week(place, week=date(2026, 11, 23))


# -- crashes ---------------------------------------------------------------------------------------

CRASH = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from support.foundries import SmallFoundry, SteppingClock
from support.releases import release_week
clock = SteppingClock(datetime(2026, 11, 18, 13, tzinfo=UTC))
release_week(SmallFoundry(Path(sys.argv[1]), clock))
"""


@pytest.mark.crash
@pytest.mark.parametrize(
    ("point", "is_there"),
    [
        ("release.packed", False),
        ("durable.folder.before_rename", False),
        ("durable.folder.after_rename", True),
        ("audit.staged", True),
        ("audit.committed", True),
    ],
)
def test_a_kill_at_any_moment_leaves_no_half_release(
    place: SmallFoundry, point: str, is_there: bool
) -> None:
    """The release is there, whole, or not; doing it again leaves one, logged once."""
    child = subprocess.run(
        [sys.executable, "-c", CRASH, str(place.base)],
        env=python_env(SCF_FAIL=f"{point}:kill", PYTHONPATH=str(Path(__file__).parents[1])),
        check=False,
        timeout=300,
    )
    assert child.returncode == -9
    visible = [name for name in names(place) if not name.startswith(".")]
    assert visible == (["week-2026-11-16"] if is_there else [])

    if is_there:
        with pytest.raises(AlreadyReleased):
            release_week(place)
    else:
        release_week(place)

    assert names(place) == ["week-2026-11-16"]
    assert verify_release(place.root / "release_history" / "week-2026-11-16").ok
    events = [logged.entry.event for logged in place.log().entries()]
    assert events.count("release.made") == 1


@pytest.mark.parametrize(("how", "error"), [("enospc", BudgetExceeded), ("error", DriveError)])
@pytest.mark.parametrize("point", ["release.packed", "durable.folder.before_rename"])
def test_a_full_or_failing_disk_leaves_nothing(
    place: SmallFoundry, point: str, how: str, error: type[Exception], monkeypatch
) -> None:
    monkeypatch.setattr(failpoint, "_passages", {})
    monkeypatch.setenv("SCF_FAIL", f"{point}:{how}")
    with pytest.raises(error):
        release_week(place)
    monkeypatch.delenv("SCF_FAIL")

    assert names(place) == []
    assert release_week(place).path is not None
