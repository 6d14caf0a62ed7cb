"""What nobody needs goes; what somebody may need stays."""

import json
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.core.errors import UsageError
from scf.daemon.commands import LIMITS_SET
from scf.daemon.retention import clean
from scf.daemon.standing import limits
from scf.daemon.survey import Survey
from scf.runs.state import State
from scf.storage.partitions import Drive
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path, {"auto_release": False})


def bundles(works: Works) -> list[str]:
    jobs = works.root / "system_cache" / "jobs"
    return sorted(path.name for path in jobs.iterdir())


def make_generations(works: Works, number: int) -> None:
    for n in range(number):
        works.drop(f"{n}.ndjson", range(n * 120, (n + 1) * 120))
        works.until_idle()


def test_bundles_of_ended_runs_go_oldest_first(works: Works) -> None:
    """The newest stay; what a run under way has is never touched."""
    make_generations(works, 2)
    first, second = (run.run_id for run in works.runs())
    assert len(bundles(works)) == 4
    with works.conductor() as (conductor, _):
        conductor.open()
        rooms = conductor._errands.bench.rooms
        conductor.store.set(LIMITS_SET, {"jobs_kept": 2})
        removed = clean(rooms, conductor.store)
        assert [r.name for r in removed if r.name.startswith("jobs/")] == [
            f"jobs/{first}-measure-1", f"jobs/{first}-train-ebdm-1",
        ]  # fmt: skip
        assert all(name.startswith(second) for name in bundles(works))
        left = {path.stem for path in (works.home / "local_jobs").iterdir()}
        assert left == set(bundles(works))
        assert clean(rooms, conductor.store) == []


def test_a_run_under_way_keeps_everything(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_exit": 9}))
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.LOST})))
        conductor.store.set(LIMITS_SET, {"jobs_kept": 1})
        before = bundles(works)
        (works.root / "system_cache/jobs/run-ffffffffffff-measure-1").mkdir()
        (works.root / "system_cache/jobs/by-hand").mkdir()
        clean(conductor._errands.bench.rooms, conductor.store)
        assert bundles(works) == sorted([*before, "run-ffffffffffff-measure-1", "by-hand"])


def test_a_rejected_checkpoint_keeps_its_report(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may go, the report of why they were refused may not."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"gain": -0.2}))
    works.drop("a.ndjson", range(120))
    works.until_idle()
    (run,) = works.runs()
    assert run.state is State.REJECTED
    with works.conductor() as (conductor, _):
        conductor.open()
        rooms = conductor._errands.bench.rooms
        rooms.drive.set_budgets({"system_cache": 1})
        while not Survey(rooms.drive, rooms.clock).step():
            pass
        removed, *_ = clean(rooms, conductor.store)
    assert removed.reason == "system_cache is nearly full"
    assert bundles(works) == [f"{run.run_id}-measure-1"]


def test_the_zoo_keeps_released_recent_best_and_champion(works: Works) -> None:
    """Of five: the released first, the last, the champion; the audit log says what went."""
    works.set(auto_release=True)
    make_generations(works, 5)
    with works.conductor() as (conductor, _):
        conductor.open()
        rooms = conductor._errands.bench.rooms
        conductor.store.set(LIMITS_SET, {"generations_kept": 1})
        best = min(
            rooms.zoo().generations(),
            key=lambda g: json.loads((g.path / "report.json").read_text())["dsm_loss"]["mean"],
        ).name
        clean(rooms, conductor.store)
        events = [e.entry for e in rooms.audit.entries() if e.entry.event == "zoo.retired"]
    released = json.loads(
        next((works.root / "release_history").glob("week-*/RELEASE.json")).read_text()
    )["generation"]["name"]
    kept = {"ebdm_gen0004", "ebdm_gen0005", released, best}
    assert set(works.generations()) == kept
    assert {event.subject for event in events} == {f"ebdm_gen000{n}" for n in range(1, 6)} - kept
    works.drop("z.ndjson", range(2000, 2120))
    works.until_idle()
    assert works.generations()[-1] == "ebdm_gen0006"


def test_a_release_that_cannot_be_read_keeps_every_generation(works: Works) -> None:
    make_generations(works, 3)
    (works.root / "release_history" / "week-2026-01-05").mkdir()
    with works.conductor() as (conductor, _):
        conductor.open()
        conductor.store.set(LIMITS_SET, {"generations_kept": 1})
        clean(conductor._errands.bench.rooms, conductor.store)
    assert len(works.generations()) == 3


def test_a_full_vault_is_a_state_and_more_room_ends_it(works: Works) -> None:
    """The budget is checked before the ingest; `scf budget set` is what helps."""
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda tick: tick.is_idle)
        works.cli("budget", "set", "fossil_vault", "100")
        works.drop("a.ndjson", range(120))
        conductor._errands.pulse._next_scan = 0.0
        tick = tick_until(conductor, lambda tick: tick.trouble is not None)
        assert tick.state == "DISK_FULL"
        assert "fossil_vault holds" in str(tick.trouble)
        works.cli("budget", "set", "fossil_vault", "1 GB")
        conductor._errands._not_before.clear()
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))


def test_budgets_are_shown_with_what_is_used(
    works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    works.cli("budget", "set", "usd_month", "40")
    assert works.cli("budget", "set", "moon", "1") == 2
    make_generations(works, 1)
    capsys.readouterr()
    assert works.cli("budget") == 0
    text = capsys.readouterr().out
    assert "usd_month: 40.00 USD (0.00 spent)" in text
    assert "fossil_vault: " in text
    assert works.cli("budget", "show", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["partition"] for row in told["storage"]} >= {"fossil_vault", "zk_proofs"}
    assert told["limits"]["usd_month"]["limit"] == 40.0
    works.cli("status")
    assert "gear        STANDARD" in capsys.readouterr().out


def test_limits_of_the_settings_hold_until_the_operator_sets_others(tmp_path: Path) -> None:
    """Room and what is kept stand in scf.toml; `scf budget set` goes before it, and stays."""
    works = Works(tmp_path / "limits", {"auto_release": False})
    text = (works.home / "scf.toml").read_text()
    keep = '\n[keep]\ngenerations = 2\nfossil_vault = "3 GB"\n'
    (works.home / "scf.toml").write_text(text + keep)
    works.until_idle()
    assert Drive.open(works.root).budgets_bytes["fossil_vault"] == 3 * 10**9
    found = limits(works.config, SystemClock())
    assert found["limits"]["generations_kept"]["limit"] == 2

    works.cli("budget", "set", "fossil_vault", "5 GB")
    works.cli("budget", "set", "generations_kept", "7")
    works.until_idle()
    works.until_idle()
    assert Drive.open(works.root).budgets_bytes["fossil_vault"] == 5 * 10**9
    assert limits(works.config, SystemClock())["limits"]["generations_kept"]["limit"] == 7

    (works.home / "scf.toml").write_text(text + keep.replace("3 GB", "much"))
    with pytest.raises(UsageError, match="fossil_vault = 'much' must be a size"):
        works.until_idle()
