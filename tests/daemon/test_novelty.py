"""A few fossils start a run when they are strange to the champion, and only then."""

import json
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.daemon.foresight import foresee
from scf.daemon.novelty import ASKED
from scf.runs.state import State
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    """A foundry with a champion whose report has energies, and 20 fossils that came since."""
    works = Works(tmp_path, {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    works.until_idle()
    report = works.root / "model_zoo" / "ebdm_gen0001" / "report.json"
    value = json.loads(report.read_text())
    value["energy"]["real"]["q95"], value["sigma"] = 3.0, 0.05
    report.chmod(0o644)
    report.write_text(json.dumps(value))
    with (works.home / "scf.toml").open("a") as file:
        file.write("\n[start]\nnovel_share = 0.5\nnovel_fossils_min = 16\n")
    works.drop("b.ndjson", range(120, 140))
    return works


def test_strange_fossils_start_a_run_and_the_reason_says_how_strange(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCF_TINY_NOVELTY", '{"asked": 20, "strange": 12}')
    works.until_idle()

    _, second = works.runs()
    assert second.state is State.PROMOTED
    reason = next(t.reason for t in works.transitions() if t.run_id == second.run_id)
    assert reason.startswith("12 of 20 are stranger to ebdm_gen0001 than 95 of 100 fossils")
    assert not list((works.root / "system_cache" / "jobs").glob("novelty-*"))


def test_familiar_fossils_wait_and_are_asked_about_again_once_they_are_twice_as_many(
    works: Works,
) -> None:
    works.until_idle()
    assert len(works.runs()) == 1
    (plan,) = foresee(works.config, SystemClock())
    assert "0 of 10 are stranger to ebdm_gen0001" in plan.why
    with works.conductor() as (conductor, _):
        assert conductor.store.get(ASKED)["fresh"] == 20
    works.drop("c.ndjson", range(140, 159))
    works.until_idle()
    with works.conductor() as (conductor, _):
        assert conductor.store.get(ASKED)["fresh"] == 20  # 39 are not twice 20
    works.drop("d.ndjson", range(159, 165))
    works.until_idle()
    with works.conductor() as (conductor, _):
        assert conductor.store.get(ASKED)["fresh"] == 45


@pytest.mark.parametrize("said", ["rubbish", '{"asked": 1}', "[]"])
def test_an_answer_that_is_none_starts_nothing_and_stops_nothing(
    works: Works, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("SCF_TINY_NOVELTY", said)
    works.until_idle()

    assert len(works.runs()) == 1
    with works.conductor() as (conductor, _):
        assert "cannot be used" in conductor.store.get(ASKED)["fault"]


def test_a_conductor_that_died_between_question_and_answer_finds_the_job(works: Works) -> None:
    """The question is on the medium before the door is asked."""
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: "job" in (conductor.store.get(ASKED) or {}))
    works.until_idle()
    with works.conductor() as (conductor, _):
        assert conductor.store.get(ASKED)["strange"] == 0


def test_it_is_off_by_default(tmp_path: Path) -> None:
    works = Works(tmp_path / "w", {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    works.until_idle()
    works.drop("b.ndjson", range(120, 140))
    works.until_idle()
    with works.conductor() as (conductor, _):
        assert conductor.store.get(ASKED) is None
