"""A state database that is damaged or lost is refused, and made again from what is signed."""

import json
import random
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.core.errors import OperatorError
from scf.daemon.rebuild import Rebuilt, rebuild_state
from scf.daemon.scf_daemon import main
from scf.runs.record import Run
from scf.runs.state import State
from scf.runs.store import StateDamaged
from scf.storage.instance_lock import AlreadyRunning
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path, {"auto_release": False, "settle_s": 0.0})


def lose(works: Works) -> None:
    for path in works.home.glob("runs.db*"):
        path.unlink()


def rebuilt(works: Works) -> Rebuilt:
    return rebuild_state(works.config, SystemClock())


def about(run: Run) -> tuple[object, ...]:
    return (run.run_id, run.state, run.reason, run.intent, run.facts["plan_id"],
            run.facts.get("generation"))  # fmt: skip


def test_what_stood_stands_again_and_nothing_is_done_twice(works: Works) -> None:
    """Runs, plans, transitions with their places in the log; the next daemon finds no work."""
    works.set(auto_release=True, settle_s=0.0)
    works.drop("a.ndjson", range(120))
    works.until_idle()
    works.drop("b.ndjson", range(120, 240))
    works.until_idle()
    before = [about(run) for run in works.runs()]
    moves = [(t.run_id, t.to_state, t.audit_index) for t in works.transitions()]
    lose(works)

    found = rebuilt(works)

    assert [about(run) for run in works.runs()] == before
    assert [(t.run_id, t.to_state, t.audit_index) for t in works.transitions()] == moves
    assert (found.attempts, found.without_plan, found.set_aside) == (4, (), None)
    works.until_idle()
    assert [about(run) for run in works.runs()] == before
    works.drop("c.ndjson", range(240, 360))
    works.until_idle()
    assert works.runs()[-1].facts["generation"] == "ebdm_gen0003"


@pytest.mark.parametrize(
    "state", [State.VALIDATED, State.PLANNED, State.SUBMITTED, State.RETURNED, State.VERIFIED,
              State.PROVEN],
)  # fmt: skip
def test_a_run_under_way_goes_on_from_where_it_stood(works: Works, state: State) -> None:
    """Lost in the middle, rebuilt, finished: one generation, no job started twice."""
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({state})))
        conductor._errands.log_transitions()
        (run,) = conductor.store.runs()
    lose(works)
    rebuilt(works)
    works.until_idle()

    (again,) = works.runs()
    assert (again.run_id, again.state) == (run.run_id, State.PROMOTED)
    assert works.generations() == ["ebdm_gen0001"]
    for tries in (works.root / "system_cache/jobs").glob("*/outputs/tries"):
        assert tries.read_text() == "one\n"


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_database_is_refused_with_what_helps(
    works: Works, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Garbage over the file: exit code 1 and one sentence; the rebuilt one has all of it."""
    works.drop("a.ndjson", range(120))
    works.until_idle()
    before = [about(run) for run in works.runs()]
    path = works.home / "runs.db"
    data = bytearray(path.read_bytes())
    dice = random.Random(seed)
    start = 0 if seed == 0 else dice.randrange(4096, len(data) - 20_000)
    for offset in range(start, start + 16_384):
        data[offset] = dice.randrange(256)
    path.write_bytes(data if seed != 1 else data[: len(data) // 2])

    assert main(["--home", str(works.home), "--until-idle"]) == 1
    said = capsys.readouterr().err
    assert "the state database is damaged" in said
    assert "scf daemon rebuild-state" in said
    assert works.cli("daemon", "rebuild-state", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == {"PROMOTED": 1}
    assert Path(told["set_aside"]).read_bytes() == (
        bytes(data) if seed != 1 else bytes(data[: len(data) // 2])
    )
    assert [about(run) for run in works.runs()] == before
    assert works.until_idle() == 0


def test_beginning_from_nothing_on_a_drive_with_a_history_is_refused(works: Works) -> None:
    """A lost database is noticed, not replaced by an empty one that trains everything again."""
    works.drop("a.ndjson", range(120))
    works.until_idle()
    lose(works)

    with pytest.raises(OperatorError, match="it was lost") as refused:
        works.until_idle()
    assert "rebuild-state" in str(refused.value.remedy)


def test_commands_that_were_answered_are_not_obeyed_again(works: Works) -> None:
    works.cli("gear", "hyper")
    works.cli("pause")
    works.until_idle()
    lose(works)
    rebuilt(works)
    with works.conductor() as (conductor, talk):
        conductor.tick()
        assert conductor.operator.is_paused or "PAUSE" not in " ".join(talk)
        assert conductor.operator.gear == "HYPER"
        assert not [line for line in talk if "SHIFT_GEAR" in line]


def test_a_run_whose_plan_is_nowhere_is_planned_again(works: Works) -> None:
    """The same situation is the same run."""
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.VALIDATED})))
        conductor._errands.log_transitions()
        (run,) = conductor.store.runs()
    lose(works)

    assert rebuilt(works).left_out == (run.run_id,)

    assert works.runs() == []
    works.until_idle()
    assert works.runs()[0].run_id == run.run_id


def test_not_while_a_daemon_runs(works: Works) -> None:
    with works.process() as _:
        works.wait_until_running()
        with pytest.raises(AlreadyRunning):
            rebuilt(works)


def test_the_refusal_names_the_file(tmp_path: Path) -> None:
    error = StateDamaged(tmp_path / "runs.db", "malformed")
    assert str(tmp_path / "runs.db") in str(error)
