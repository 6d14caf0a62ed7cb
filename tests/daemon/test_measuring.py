"""What a later candidate is measured against: the champion, earlier ones, the anchor set."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scf.core.identity import sha256_hex
from scf.dispatch.job import JobSpec
from scf.runs.state import State
from support.clocks import CalendarClock
from support.conducting import Works, tick_until


def test_a_third_candidate_meets_three_opponents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first generation stood for 13 weeks, the second since two days ago; then a third run."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"champion_gain": 5.0}))
    works = Works(tmp_path, {"min_fresh_fossils": 8, "settle_s": 0.0, "auto_release": False})
    clock = CalendarClock(datetime(2026, 8, 1, tzinfo=UTC))
    with works.conductor(clock) as (conductor, _):
        for number, pause in enumerate([timedelta(weeks=13), timedelta(days=2), timedelta()]):
            works.drop(f"{number}.ndjson", range(200 * number, 200 * number + 200), age_s=9e6)
            tick_until(
                conductor,
                lambda _, wanted=number + 1: (
                    conductor.store.counts().get(State.PROMOTED, 0) == wanted
                ),
            )
            tick_until(conductor, lambda tick: not tick.did)
            clock.today += pause
        second, third = conductor.store.runs()[1:]
        specs = [
            JobSpec.from_json(dict(conductor.store.attempts(run.run_id, "measure")[-1].spec))
            for run in (second, third)
        ]
        entries = [logged.entry for logged in conductor._errands.bench.rooms.audit.entries()]

    anchor = sha256_hex((works.root / "model_zoo" / "anchor.json").read_bytes())
    assert [given.name for given in specs[0].inputs] == [
        "plan.json",
        "anchor.json",
        "checkpoint",
        "champion",
    ]
    assert specs[1].input("champion").path.endswith("ebdm_gen0002/checkpoint")
    assert specs[1].input("earlier-13-ebdm_gen0001").path.endswith("ebdm_gen0001/checkpoint")
    assert {spec.input("anchor.json").sha256 for spec in specs} == {anchor}
    (frozen,) = [entry for entry in entries if entry.event == "anchor.frozen"]
    assert (frozen.subject, frozen.details["sha256"]) == ("ebdm_gen0001", anchor)


def test_looks_at_the_sealed_pool_are_counted_and_their_number_is_in_the_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first generation, one that is rejected, one that wins: the last was the second look."""
    works = Works(tmp_path, {"min_fresh_fossils": 8, "settle_s": 0.0, "auto_release": False})
    with works.conductor() as (conductor, _):
        for number, (gain, state) in enumerate(
            [(5.0, State.PROMOTED), (0.0, State.REJECTED), (5.0, State.PROMOTED)]
        ):
            monkeypatch.setenv("SCF_TINY", json.dumps({"champion_gain": gain}))
            works.drop(f"{number}.ndjson", range(200 * number, 200 * number + 200), age_s=9e6)
            tick_until(
                conductor,
                lambda _, n=number, s=state: (
                    len(conductor.store.runs()) > n and conductor.store.runs()[n].state is s
                ),
            )
            tick_until(conductor, lambda tick: not tick.did)
        looks = [run.facts["gate"]["trace"]["looks"] for run in conductor.store.runs()]
        champion = conductor._errands.bench.rooms.champion()

    assert looks[0] is None  # nothing stood: nothing was compared on the pool
    assert [(look["used"], look["budget"]) for look in looks[1:]] == [(0, 20), (1, 20)]
    envelope = json.loads((champion.path / "statement.json").read_text())["envelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["predicate"]["gate"]["trace"]["looks"] == looks[2]


@pytest.mark.parametrize("train_exit", [0, 1])
def test_a_control_is_trained_from_nothing_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_exit: int
) -> None:
    """Same plan and settings without the parent, measured beside. If it fails, nothing waits."""
    settings = {"settle_s": 0.0, "auto_release": False, "scratch_control": True}
    works = Works(tmp_path, {"min_fresh_fossils": 8, **settings})
    monkeypatch.setenv("SCF_TINY", json.dumps({"champion_gain": 5.0}))
    with works.conductor() as (conductor, _):
        works.drop("0.ndjson", range(200), age_s=9e6)
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))
        works.drop("1.ndjson", range(200, 400), age_s=9e6)
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.RETURNED})))
        if train_exit:
            monkeypatch.setenv("SCF_TINY", json.dumps({"champion_gain": 5.0, "train_exit": 1}))
        tick_until(conductor, lambda _: len(conductor.store.runs({State.PROMOTED})) == 2)
        first, second = conductor.store.runs()
        controls = [conductor.store.attempts(run.run_id, "control") for run in (first, second)]
        (trained,) = conductor.store.attempts(second.run_id, "train_ebdm")

    assert controls[0] == []  # a first generation has no parent
    (control,) = controls[1]
    inputs = [row["name"] for row in control.spec["inputs"]]
    assert inputs == ["plan.json", "train_config.json"]
    assert "parent" in [row["name"] for row in trained.spec["inputs"]]
    report = json.loads((works.root / "model_zoo" / "ebdm_gen0002" / "report.json").read_text())
    assert ("scratch" in report) == (train_exit == 0)
