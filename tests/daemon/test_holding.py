"""No run is begun that is known to come to nothing: it waits, and says for what."""

import json
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from scf.control.control_file import ControlFile
from scf.daemon.conductor import Conductor
from scf.daemon.foresight import Intention, foresee
from scf.daemon.holding import LOOK_EVERY_S
from scf.dispatch.dispatcher import Dispatcher
from scf.runs.state import State
from scf.storage.partitions import Folder
from support.clocks import ManualClock
from support.conducting import Works
from support.file_door import FileDoor
from support.waiting import wait_for


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path, {"settle_s": 0.0, "min_fresh_fossils": 8, "auto_release": False})
    with (works.home / "scf.toml").open("a") as settings:
        settings.write("\n[gate]\nlooks = 1\n")
    return works


@contextmanager
def conducting(works: Works, clock: ManualClock):
    """A conductor whose jobs end at once, by a clock moved by hand."""

    def open_door(jobs: Folder, home: Path) -> Dispatcher:
        return FileDoor(jobs, home)

    with works.conductor(clock, is_hasty=False, open_door=open_door) as (conductor, talk):
        yield conductor, talk


def rest(conductor: Conductor, clock: ManualClock) -> list[State]:
    """Tick until nothing is left to do; how the runs stand then."""
    for _ in range(500):
        clock.advance(LOOK_EVERY_S)
        if conductor.tick().is_idle:
            return [run.state for run in conductor.store.runs()]
    raise AssertionError("it did not come to rest")


def plan_foreseen(works: Works, clock: ManualClock) -> Intention:
    (plan,) = [i for i in foresee(works.config, clock) if i.what == "plan"]
    return plan


def drop(works: Works, number: int, count: int = 200) -> None:
    works.drop(f"{number}.ndjson", range(200 * number, 200 * number + count), age_s=9e6)


def test_a_run_whose_result_could_not_be_judged_waits_until_a_look_is_free(works: Works) -> None:
    """Two generations take the one look there is; the third run waits for 28 days, and is made."""
    clock = ManualClock()
    with conducting(works, clock) as (conductor, talk):
        drop(works, 0)
        rest(conductor, clock)
        drop(works, 1)
        assert rest(conductor, clock) == [State.PROMOTED, State.PROMOTED]
        judged_at = clock.now()
        drop(works, 2)
        assert rest(conductor, clock) == [State.PROMOTED, State.PROMOTED]
        held = json.loads((works.home / "daemon.json").read_text())["held"]
        foreseen = plan_foreseen(works, clock)
        free = judged_at + timedelta(days=28)
        clock.advance(27.9 * 86_400)
        assert len(rest(conductor, clock)) == 2
        clock.advance(86_400)
        assert rest(conductor, clock) == [State.PROMOTED] * 3

    assert f"the next is free at {free:%Y-%m-%d}" in held["reason"]
    assert held["until"].startswith(f"{free:%Y-%m-%d}")
    assert not foreseen.now
    assert held["reason"] in foreseen.why
    assert len([line for line in talk if held["reason"] in line]) == 1


def test_an_operator_who_asks_for_a_run_is_told_that_it_cannot_be_judged(works: Works) -> None:
    """It is made and rejected for want of a look, which spends none of the next month's."""
    clock = ManualClock()
    with conducting(works, clock) as (conductor, _):
        for number in range(3):
            drop(works, number)
            rest(conductor, clock)
        ControlFile(works.home).put("RUN_NOW", {}, now=clock.now())
        assert rest(conductor, clock) == [State.PROMOTED, State.PROMOTED, State.REJECTED]
        run = conductor.store.runs()[-1]
        asked = conductor.store.transitions(run.run_id)[0].reason
        looks = conductor._errands.bench.rooms.seen_looks.all()
        (answer,) = conductor.store.acks(limit=1)

    assert "; but its result could not be judged: all 1 looks" in answer["message"]
    assert asked.startswith("the operator asked, ")
    assert "but its result could not be judged: all 1 looks" in asked
    assert "1 are allowed ([gate] looks)" in run.reason
    assert len(looks) == 1


def test_fossils_that_cannot_be_split_wait_for_more(works: Works) -> None:
    """One block of one family makes no run, however it is asked for; the next drop makes one."""
    clock = ManualClock()
    with conducting(works, clock) as (conductor, talk):
        drop(works, 0, count=64)
        assert rest(conductor, clock) == []
        foreseen = plan_foreseen(works, clock)
        ControlFile(works.home).put("RUN_NOW", {}, now=clock.now())
        assert rest(conductor, clock) == []
        (answer,) = conductor.store.acks(limit=1)
        drop(works, 1)
        assert rest(conductor, clock) == [State.PROMOTED]

    assert "; but the vault's 64 fossils are one family" in answer["message"]
    assert not foreseen.now
    assert "held back: the vault's 64 fossils are one family within one block" in foreseen.why
    assert any(line.startswith("run-now: not possible: the vault's 64 fossils") for line in talk)


def test_status_and_runs_say_what_the_next_run_waits_for(
    works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*command: str) -> str | None:
        works.cli(*command)
        told = capsys.readouterr().out
        return told if "the vault's 64 fossils are one family" in told else None

    drop(works, 0, count=64)
    with works.process():
        status = wait_for(lambda: said("status"), what="a run that is held back")
        runs = wait_for(lambda: said("runs", "--json"), what="the same among the runs")

    assert "held back   the next run: " in status
    assert json.loads(runs)["held"]["until"] is None
    assert said("status") is None  # nobody holds anything back any more
