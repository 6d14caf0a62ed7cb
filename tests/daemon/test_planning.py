"""An intent names a beginning of the vault; its plan is made later, and is about just that."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core.canonical import canonical_json
from scf.daemon import planning
from scf.fertilization.batch_plan import BatchPlan
from scf.runs.state import State
from support.conducting import Works, tick_until
from support.processes import python_env


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path, {"auto_release": False})
    works.drop("a.ndjson", range(120))
    return works


def test_an_intent_names_shards_and_root_and_lists_nothing(works: Works) -> None:
    """Its size does not depend on the vault's."""
    works.until_idle()
    (run,) = works.runs()

    assert run.intent["schema"] == "scf.intent/2"
    assert run.intent["vault"]["shards"] == 1
    assert len(run.intent["vault"]["root"]) == 64
    assert run.intent["budget"] == {"usd": 0.0, "seconds": 21600.0, "joules": 0.0}
    assert len(canonical_json(dict(run.intent))) < 1000


def test_what_came_after_the_intent_is_not_in_its_plan(works: Works) -> None:
    """Shards that are committed between intent and plan wait for the next run."""
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.origin("drop/a.ndjson")))
        errands = conductor._errands
        errands.pulse.look(is_hasty=True)
        errands.plan("test")
        (run,) = conductor.store.runs()
        assert conductor.store.plan(run.run_id) == {}
        errands.bench.rooms.ingest(works.drop("b.ndjson", range(120, 240)), lambda _: None)
        plan = planning.plan_for(errands.bench.rooms, run.intent, run.facts)
        tick_until(conductor, lambda tick: tick.is_idle)
        first, second = conductor.store.runs()

    assert plan.fossils == 120
    assert first.facts["plan_id"] == plan.plan_id
    assert second.facts["fossils"] == 240
    assert second.intent["vault"]["shards"] == 2


def test_a_conductor_that_plans_does_without_numpy(works: Works) -> None:
    """It would be 11 MB larger from then on, of the 60 that it may take."""
    dropped = works.root / "fossil_vault" / "drop" / "a.ndjson"
    works.cli("ingest", str(dropped.rename(works.base / "a.ndjson")))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from scf.config import load_config\n"
        "from scf.core.clock import SystemClock\n"
        "from scf.daemon.conductor import Conductor\n"
        "config = load_config(Path(sys.argv[1]), environment={})\n"
        "conductor = Conductor(config, clock=SystemClock(), is_hasty=True)\n"
        "while 'VALIDATED' not in conductor.store.counts():\n"
        "    conductor.tick()\n"
        "print([name for name in ('numpy', 'torch', 'pyarrow') if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(works.home)],
        env=python_env(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (said.stdout, said.stderr) == ("[]\n", "")


def test_a_large_plan_is_made_by_a_process_of_its_own(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same plan; the conductor goes on meanwhile; nothing of the making is left."""
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs()))
        (run,) = conductor.store.runs()
        here = planning.plan_for(conductor._rooms, run.intent, run.facts)
    works.base.joinpath("again").mkdir()
    monkeypatch.setattr(planning, "FOSSILS_HERE_MAX", 0)
    again = Works(works.base / "again", {"auto_release": False})
    again.drop("a.ndjson", range(120))
    with again.conductor() as (conductor, _):
        waited = []
        tick_until(
            conductor,
            lambda tick: waited.append(tick.is_idle) or bool(
                conductor.store.runs({State.VALIDATED, State.PLANNED, State.SUBMITTED})),
        )  # fmt: skip
        (made,) = conductor.store.runs()
        assert BatchPlan.from_json(conductor.store.plan(made.run_id)) == here
    assert made.run_id == run.run_id
    assert not any(waited)
    assert list((again.home / "plans").iterdir()) == []


def test_a_conductor_that_died_while_planning_finds_the_plan_or_makes_it_again(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "FOSSILS_HERE_MAX", 0)
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor._errands.bench.planner._children))
    assert works.runs()[0].state is State.DISCOVERED
    works.until_idle()

    (run,) = works.runs()
    assert run.state is State.PROMOTED
    assert run.tries == 0


def test_a_planning_process_that_dies_is_a_failed_try_that_says_where_to_look(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "FOSSILS_HERE_MAX", 0)
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor._errands.bench.planner._children))
        planner = conductor._errands.bench.planner
        ((child, _),) = planner._children.values()
        child.kill()
        child.wait()
        tick_until(conductor, lambda _: conductor.store.runs()[0].tries == 1)
        (run,) = conductor.store.runs()

    assert run.state is State.DISCOVERED
    assert "the planning process ended with code -9" in run.reason


@pytest.mark.parametrize("here_max", [0, 10**6])
def test_another_journal_under_the_intent_quarantines_the_run(
    works: Works, monkeypatch: pytest.MonkeyPatch, here_max: int
) -> None:
    """The root says so: no plan is made over other shards than those that were meant."""
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.origin("drop/a.ndjson")))
        conductor._errands.pulse.look(is_hasty=True)
        conductor._errands.plan("test")
    other = Works(works.base / "other", {"auto_release": False})
    other.drop("c.ndjson", range(500, 620))
    other.set(auto_release=False, min_fresh_fossils=10**6)
    other.until_idle()
    for name in ("shards", "journal.log"):
        place, found = works.root / "fossil_vault" / name, other.root / "fossil_vault" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.copytree(found, place) if found.is_dir() else shutil.copy(found, place)
    (works.home / "vault_index.db").unlink()
    works.set(auto_release=False, min_fresh_fossils=10**6)
    monkeypatch.setattr(planning, "FOSSILS_HERE_MAX", here_max)
    works.until_idle()

    (run,) = works.runs()
    assert run.state is State.QUARANTINED
    assert "another journal lies there" in run.reason


def test_one_family_within_one_block_is_said_and_later_fossils_are_planned(works: Works) -> None:
    works.set(auto_release=False, min_fresh_fossils=1)
    (works.root / "fossil_vault" / "drop" / "a.ndjson").unlink()
    works.drop("few.ndjson", range(10))
    said: list[str] = []
    assert works.until_idle(said.append) == 0
    assert works.runs() == []
    assert "nothing can be held out" in " ".join(said)

    works.drop("more.ndjson", range(10, 130))
    works.until_idle()
    assert [run.state for run in works.runs()] == [State.PROMOTED]


def test_many_shards_are_checked_a_part_at_a_time(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tick does a bounded part; a stop between two loses only that."""
    from scf.daemon import pipeline

    monkeypatch.setattr(pipeline, "SHARDS_PER_LOOK", 1)
    works.set(auto_release=False, min_fresh_fossils=300)
    for number in range(1, 3):
        works.drop(f"{number}.ndjson", range(120 * number, 120 * number + 120))
    with works.conductor() as (conductor, talk):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.VALIDATED})))
        assert "shards as their manifests say: 3" in " ".join(talk)


def test_the_program_reads_an_intent_and_writes_a_plan(
    works: Works, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    works.until_idle()
    (run,) = works.runs()
    asked = json.dumps({"intent": dict(run.intent), "facts": dict(run.facts)})
    arguments = ["--home", str(works.home), "--root", str(works.root), "--run", run.run_id]
    (works.home / "plans").mkdir(exist_ok=True)
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    assert planning.main(arguments) == 0
    made = json.loads((works.home / "plans" / f"{run.run_id}.json").read_text())
    assert BatchPlan.from_json(made["plan"]).plan_id == run.facts["plan_id"]

    works.root.rename(works.base / "pulled")
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    assert planning.main(arguments) == 7
    assert "marker" in capsys.readouterr().err
