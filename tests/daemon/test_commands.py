"""control.json is obeyed once per command, and rubbish in it changes nothing."""

import json
from pathlib import Path

import pytest

from scf.daemon.heartbeat import DaemonState
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.job import JobStatus
from scf.runs.state import State
from scf.storage.partitions import Folder
from support.clocks import ManualClock
from support.conducting import Works, open_tiny_door, tick_until
from support.waiting import wait_for


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path, {"auto_release": False, "settle_s": 0.1})


def order(works: Works, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (works.home / "control.json").write_text(text)


def acks(works: Works) -> list[tuple[str, str]]:
    shown = json.loads((works.home / "control.ack.json").read_text())["acks"]
    return [(ack["id"], ack["status"]) for ack in shown]


def test_a_gear_is_shifted_once_and_kept_over_a_restart(works: Works) -> None:
    """The same file, read again by the next daemon, is not obeyed again."""
    order(works, {"id": "g1", "command": "SHIFT_GEAR", "gear": "HYPER"})
    with works.conductor() as (conductor, _):
        conductor.tick()
        assert (conductor.operator.gear, conductor.operator.floor_s) == ("HYPER", 0.1)
    order(works, {"id": "g2", "command": "SHIFT_GEAR", "gear": "SINGULARITY"})
    with works.conductor() as (conductor, talk):
        conductor.tick()
        order(works, {"id": "g1", "command": "SHIFT_GEAR", "gear": "HYPER"})
        conductor.tick()
        assert conductor.operator.gear == "SINGULARITY"
        assert len([line for line in talk if "SHIFT_GEAR" in line]) == 1
    assert acks(works) == [("g1", "done"), ("g2", "done")]


def test_a_command_that_is_not_understood_is_answered_and_changes_nothing(works: Works) -> None:
    commands = [
        {"id": "a", "command": "SHIFT_GEAR", "gear": "HYPER"},
        {"id": "b", "command": "SHIFT_GEAR", "gear": "WARP"},
        {"id": "c", "command": "FLY"},
    ]
    order(works, {"commands": commands})
    with works.conductor() as (conductor, _):
        conductor.tick()
        assert conductor.operator.gear == "HYPER"

    assert acks(works) == [("a", "done"), ("b", "error"), ("c", "error")]


@pytest.mark.parametrize("text", ["", "{", '{"id": "x", "command": "PAU', "\x00\x00", "[1]", "3"])
def test_a_malformed_file_is_said_once_and_obeyed_once_it_is_whole(works: Works, text: str) -> None:
    """The last good state is kept meanwhile."""
    order(works, {"id": "g1", "command": "SHIFT_GEAR", "gear": "HYPER"})
    with works.conductor() as (conductor, talk):
        conductor.tick()
        order(works, text)
        for _ in range(3):
            conductor.tick()
        assert len([line for line in talk if "left alone" in line]) == 1
        assert conductor.operator.gear == "HYPER"
        order(works, {"id": "p1", "command": "PAUSE"})
        conductor.tick()
        assert conductor.operator.is_paused


def test_answers_are_shown_again_after_a_crash_that_lost_them(works: Works) -> None:
    """Killed between the record and the file: the next daemon writes the file."""
    order(works, {"id": "g1", "command": "SHIFT_GEAR", "gear": "HYPER"})
    with works.conductor() as (conductor, _):
        conductor.tick()
    (works.home / "control.ack.json").unlink()
    with works.conductor():
        assert acks(works) == [("g1", "done")]


def test_paused_starts_nothing_but_records_what_ends(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running job goes on and its end is noted; the next stage waits for `resume`."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_sleep_s": 0.3}))
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        order(works, {"id": "p", "command": "PAUSE"})
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.RETURNED})))
        works.drop("b.ndjson", range(120, 240))
        for _ in range(20):
            assert conductor.tick().state is DaemonState.PAUSED
        (run,) = conductor.store.runs()
        assert conductor.store.attempts(run.run_id, "measure") == []
        order(works, {"id": "r", "command": "RESUME"})
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))


def test_stop_drains_and_stop_now_asks_the_job_to_end(works: Works) -> None:
    """Either way the daemon ends with 0 and the next one goes on."""
    works.drop("a.ndjson", range(120))
    go = works.base / "go"
    with works.process(SCF_TINY=json.dumps({"train_until": str(go)})) as daemon:
        works.wait_for_state(State.SUBMITTED)
        assert works.cli("stop") == 0
        go.touch()
        assert daemon.wait(timeout=240) == 0
    assert works.runs()[0].state is State.RETURNED

    works.drop("b.ndjson", range(120, 240))
    works.until_idle()
    works.drop("c.ndjson", range(240, 360))
    with works.process(SCF_TINY=json.dumps({"train_sleep_s": 240})) as daemon:
        works.wait_for_state(State.SUBMITTED)
        assert works.cli("stop", "--mode", "now") == 0
        assert daemon.wait(timeout=240) == 0
    run = works.runs()[-1]
    assert (run.state, run.tries) == (State.LOST, 0)
    assert works.cli("stop") == 3


class EndsBetweenLooks:
    """A door whose answers are one look old: a job's end falls between two looks in one tick."""

    def __init__(self, door: Dispatcher) -> None:
        self._door = door
        self._last: dict[str, JobStatus] = {}

    def poll(self, job_id: str) -> JobStatus:
        now = self._door.poll(job_id)
        before = self._last.get(job_id, now)
        self._last[job_id] = now
        return before

    def __getattr__(self, name: str) -> object:
        return getattr(self._door, name)


def test_no_end_is_left_unrecorded_by_a_stop(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever look sees it first: the daemon leaves when the end is noted, not before."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_sleep_s": 240}))
    works.drop("a.ndjson", range(120))
    looks: list[Dispatcher] = []

    def open_late(jobs: Folder, home: Path) -> Dispatcher:
        looks.append(EndsBetweenLooks(open_tiny_door(jobs, home)))
        return looks[-1]

    with works.conductor(open_door=open_late) as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        (attempt,) = conductor.store.open_attempts()
        conductor.tick()  # so that the last answer is of a running job
        order(works, {"id": "s", "command": "STOP", "mode": "drain"})
        conductor.tick()
        door = open_tiny_door(looks[0].jobs, works.home)
        door.cancel(attempt.attempt_id)
        wait_for(lambda: door.poll(attempt.attempt_id).exit, what="the job to end")
        tick_until(conductor, lambda tick: tick.is_idle)

        (run,) = conductor.store.runs()
        assert run.state is State.LOST


def test_a_day_in_every_gear_costs_no_time_of_ours(works: Works) -> None:
    """Time is passed in: a tick does not depend on the wall."""
    clock = ManualClock()
    with works.conductor(clock, is_hasty=False) as (conductor, _):
        for _ in range(200):
            clock.advance(86_400 / 200)
            assert conductor.tick().is_idle


def test_run_now_plans_on_what_is_there_and_once(works: Works) -> None:
    """Too few fresh fossils for a run of its own: the operator's word is enough, once."""
    works.set(auto_release=False, min_fresh_fossils=1000)
    works.drop("a.ndjson", range(120))
    works.until_idle()
    assert works.runs() == []

    assert works.cli("run-now") == 0
    works.until_idle()
    assert [run.state for run in works.runs()] == [State.PROMOTED]

    works.cli("run-now")
    works.until_idle()
    _, second = works.runs()  # the champion changed, so this is another situation
    assert second.facts["parent"]["generation"] == "ebdm_gen0001"
    with works.conductor() as (conductor, _):
        assert conductor.tick().is_idle


def test_run_now_on_an_empty_vault_is_said_and_done_with(works: Works) -> None:
    works.cli("run-now")
    lines: list[str] = []
    works.until_idle(lines.append)

    assert any(line.startswith("run-now: not possible") for line in lines)
    assert works.runs() == []


def test_a_cancelled_run_ends_its_job_and_is_not_made_again(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the job ends, then the run; the same fossils start no second one."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_sleep_s": 240}))
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        (run,) = conductor.store.runs()
        order(works, {"id": "c", "command": "CANCEL", "run": run.run_id})
        order_again = {"id": "d", "command": "CANCEL", "run": run.run_id}
        tick_until(conductor, lambda tick: tick.is_idle)
        (attempt,) = conductor.store.attempts(run.run_id)
        assert attempt.exit_reason == "cancelled"
        assert conductor.store.run(run.run_id).state is State.CANCELLED
        order(works, order_again)
        conductor.tick()
    assert acks(works) == [("c", "done"), ("d", "error")]
    works.cli("run-now")
    works.until_idle()
    assert [run.state for run in works.runs()] == [State.CANCELLED]


def test_a_run_that_waits_for_its_retry_is_cancelled_at_once_even_when_paused(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_exit": 9}))
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.LOST})))
        (run,) = conductor.store.runs()
        order(
            works,
            {
                "commands": [
                    {"id": "p", "command": "PAUSE"},
                    {"id": "c", "command": "CANCEL", "run": run.run_id},
                    {"id": "x", "command": "CANCEL", "run": "run-0123456789ab"},
                ]
            },
        )
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.CANCELLED})))
    assert acks(works) == [("p", "done"), ("c", "done"), ("x", "error")]
