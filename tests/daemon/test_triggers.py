"""What starts a run, each rule with its reason; and the reason is kept with the run."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scf.config import StartSettings
from scf.daemon.foresight import foresee
from scf.daemon.triggers import Moment, Novelty, is_it_time
from support.clocks import ManualClock
from support.conducting import Works, tick_until

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def moment(**changes: object) -> Moment:
    given = {"now": NOW, "fresh_fossils": 10, "fresh_since": NOW - timedelta(hours=5),
             "last_run_at": NOW - timedelta(days=3), "novelty": None, "is_asked": False}  # fmt: skip
    return Moment(**{**given, **changes})  # type: ignore[arg-type]


STRANGE = Novelty(asked=10, strange=4, champion="ebdm_gen0001")
EVERYTHING = StartSettings(fresh_age_h=6, novel_share=0.5, schedule="every 7 days")


@pytest.mark.parametrize(
    ("changes", "start", "is_time", "reason"),
    [
        ({}, StartSettings(), False, "10 fresh fossils, a run starts at 64"),
        ({"fresh_fossils": 64}, StartSettings(), True, "64 fresh fossils, a run starts at 64"),
        ({}, StartSettings(fresh_age_h=5), True, "the oldest has waited 5 h 00 min of 5 h 00 min"),
        ({"fresh_since": NOW + timedelta(days=9)}, StartSettings(fresh_age_h=5), False, "waited 0.0 s"),
        ({"novelty": STRANGE}, StartSettings(novel_share=0.4), True,
         "4 of 10 are stranger to ebdm_gen0001 than 95 of 100 fossils it was measured on"),
        ({"novelty": STRANGE}, StartSettings(novel_share=0.41), False, "a run starts at 41 %"),
        ({}, StartSettings(novel_share=0.4), False, "novelty is not known"),
        ({}, StartSettings(schedule="every 3 days"), True, "last run was noted 2026-11-20 12:00 UTC"),
        ({}, StartSettings(schedule="every 4 days"), False, "schedule 'every 4 days'"),
        ({"last_run_at": None}, StartSettings(schedule="0 3 * * *"), True, "no run was noted yet"),
        ({"is_asked": True, "fresh_fossils": 0}, StartSettings(), True, "the operator asked"),
        ({"fresh_fossils": 0, "fresh_since": None}, EVERYTHING, False, "nothing is fresh"),
    ],
)  # fmt: skip
def test_a_rule_says_yes_or_what_it_waits_for(
    changes: dict[str, object], start: StartSettings, is_time: bool, reason: str
) -> None:
    because = is_it_time(moment(**changes), min_fresh=64, start=start)

    assert because.is_time is is_time
    assert reason in because.reason


def test_all_that_is_waited_for_is_said() -> None:
    because = is_it_time(moment(), min_fresh=64, start=EVERYTHING)

    assert not because.is_time
    assert because.reason.count(";") == 3


def test_a_few_fossils_that_have_waited_start_a_run_with_that_reason(tmp_path: Path) -> None:
    """`scf daemon plan` says it before; transition and audit log keep it."""
    works = Works(tmp_path, {"auto_release": False, "min_fresh_fossils": 1000})
    works.drop("a.ndjson", range(120))
    works.until_idle()
    assert works.runs() == []
    with (works.home / "scf.toml").open("a") as file:
        file.write("\n[start]\nfresh_age_h = 2.0\n")
    clock = ManualClock(datetime.now(UTC) + timedelta(hours=1))
    (plan,) = foresee(works.config, clock)
    assert (plan.what, plan.now) == ("plan", False)
    assert "120 fresh fossils, a run starts at 1000; the oldest has waited" in plan.why

    clock.advance(3600.0)
    with works.conductor(clock) as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs()))
        conductor.tick()
        (run,) = conductor.store.runs()
        first = conductor.store.transitions(run.run_id)[0]
        entries = [e.entry for e in conductor._rooms.audit.entries()]
    assert first.reason.startswith("the oldest has waited 2 h")
    (noted,) = [e for e in entries if e.event == "run.DISCOVERED"]
    assert noted.details["reason"] == first.reason
    assert noted.details["details"]["intent"] == json.loads(json.dumps(dict(run.intent)))
