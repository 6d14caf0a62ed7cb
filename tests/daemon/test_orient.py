"""Orient: what a run begins with."""

import json
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.daemon.rooms import Shelves
from scf.fertilization.batch_plan import TRAIN, BatchPlan, plan_fossils
from scf.runs.state import State
from scf.storage.partitions import Drive
from support.conducting import Works


def _trained_on(works: Works, generation: str) -> str:
    """The CID of a fossil that `generation` learned from."""
    folder = works.root / "model_zoo" / generation
    plan = BatchPlan.from_json(json.loads((folder / "plan.json").read_text()))
    return next(f.cid for f in plan_fossils(plan, works.root / "fossil_vault") if f.split == TRAIN)


def test_nobody_goes_on_from_weights_that_learned_from_what_was_taken_back(tmp_path: Path) -> None:
    works = Works(tmp_path, {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    works.until_idle()
    assert works.generations() == ["ebdm_gen0001"]
    cid = _trained_on(works, "ebdm_gen0001")
    assert works.cli("fossil", "retract", cid, "--reason", "the sensor was covered") == 0

    works.drop("b.ndjson", range(120, 320))
    works.until_idle()

    second = works.runs()[-1]
    assert second.state is State.PROMOTED, second.reason
    assert second.facts["parent"] is None
    assert second.facts["measured_against"] == "ebdm_gen0001"
    # The new champion is sound, so the next run begins with it.
    shelves = Shelves(works.config, Drive.open(works.root), SystemClock())
    champion = shelves.champion()
    assert champion is not None
    assert champion.name == "ebdm_gen0002"
    assert shelves.start_of(champion) == champion


def test_a_fossil_taken_back_while_a_run_is_under_way_marks_what_comes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    works = Works(tmp_path, {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        while not (works.runs() and works.runs()[-1].state is State.PROVEN):
            conductor.tick()
    ((plan_file),) = (works.root / "system_cache" / "jobs").glob("*train*/inputs/plan.json")
    plan = BatchPlan.from_json(json.loads(plan_file.read_text()))
    cid = next(f.cid for f in plan_fossils(plan, works.root / "fossil_vault") if f.split == TRAIN)
    assert works.cli("fossil", "retract", cid, "--reason", "the sensor was covered") == 0

    works.until_idle()

    assert works.generations() == ["ebdm_gen0001"]
    shelves = Shelves(works.config, Drive.open(works.root), SystemClock())
    assert shelves.start_of(shelves.champion()) is None
    capsys.readouterr()
    assert works.cli("audit", "check") == 0
    logged = capsys.readouterr().out
    assert "zoo.tainted" in logged
    assert "zoo.rollback_proposed" in logged
