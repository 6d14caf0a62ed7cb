"""Stages, each by itself: what they say when things are not as they should be, and when done twice."""

from pathlib import Path

import pytest

from scf.core.canonical import canonical_json
from scf.daemon import pipeline
from scf.daemon.stage import Bench, Move, Retry, Wait
from scf.dispatch.job import JobPhase
from scf.runs.record import Run
from scf.runs.state import MOVES, State
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path, {"auto_release": False})
    works.drop("a.ndjson", range(120))
    return works


def bench_at(conductor, state: State) -> tuple[Bench, Run]:
    """Tick until the run has been through `state`; then hand it over as it stood there."""
    tick_until(conductor, lambda tick: bool(conductor.store.runs()))
    (run,) = conductor.store.runs()
    if run.state is not state:
        tick_until(conductor, lambda tick: conductor.store.runs()[0].state is state)
    return conductor._errands.bench, conductor.store.runs()[0]


def test_every_active_state_has_a_stage_and_its_moves_are_in_the_table() -> None:
    assert set(pipeline.STAGES) == {s for s in State if MOVES[s]} - {State.PROMOTED}


@pytest.mark.parametrize("harm", ["missing", "shorter", "manifest"])
def test_a_shard_that_is_not_what_it_was_quarantines_the_run(works: Works, harm: str) -> None:
    """Before anything is trained on it; the reason names the shard."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.VALIDATED)
        (shard,) = (works.root / "fossil_vault" / "shards").glob("??/*.ndjson")
        assert isinstance(pipeline.validate(run, bench), Move)
        if harm == "missing":
            shard.unlink()
        elif harm == "shorter":
            shard.write_bytes(shard.read_bytes()[:-1])
        else:
            manifest = shard.with_name(f"{shard.name}.manifest.json")
            manifest.write_text(manifest.read_text().replace('"payload": "', '"payload": "AAAA'))
        step = pipeline.validate(run, bench)

    assert isinstance(step, Move)
    assert step.to is State.QUARANTINED
    assert shard.name in step.reason


def test_submitting_twice_is_one_attempt_and_one_job(works: Works) -> None:
    """After a crash between the door's answer and its record, the same job is found."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.PLANNED)
        first = pipeline.submit(run, bench)
        second = pipeline.submit(run, bench)
        assert isinstance(first, Move)
        assert first == second
        assert len(bench.store.attempts(run.run_id)) == 1
        tick_until(conductor, lambda tick: tick.is_idle)
        tries = works.root / f"system_cache/jobs/{run.run_id}-train-ebdm-1/outputs/tries"
        assert tries.read_text() == "one\n"


def test_one_job_at_a_time_on_this_machine(works: Works) -> None:
    """Who comes second waits, and is told for whom."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.PLANNED)
        other, _ = bench.store.add_run({"other": 1}, bench.store.plan(run.run_id), facts={})
        bench.store.open_attempt(other.run_id, "train_ebdm", "local", lambda name: {"job_id": name})
        step = pipeline.submit(run, bench)

    assert isinstance(step, Wait)
    assert other.run_id in step.reason


def test_a_bundle_that_was_changed_is_not_collected(works: Works) -> None:
    """What came back is not what the exit record says: the attempt is lost, the run tries again."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.SUBMITTED)
        (attempt,) = bench.store.attempts(run.run_id)
        while bench.rooms.door.poll(attempt.attempt_id).phase is not JobPhase.ENDED:
            pass
        weights = bench.rooms.jobs.path / attempt.attempt_id / "outputs/checkpoint/config.json"
        weights.write_text("{}")
        step = pipeline.watch(run, bench)

    assert isinstance(step, Move)
    assert step.to is State.LOST
    assert step.counts
    assert "config.json" in step.reason


def test_a_checkpoint_that_is_none_is_rejected(works: Works) -> None:
    """It is not measured at all."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.RETURNED)
        bundle = bench.rooms.jobs.path / run.facts["train_attempt"]
        (bundle / "outputs/checkpoint/model.safetensors").write_bytes(b"not safetensors")
        step = pipeline.verify(run, bench)

    assert isinstance(step, Move)
    assert step.to is State.REJECTED
    assert "model.safetensors" in step.reason


def test_a_run_measured_against_another_champion_is_measured_again(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gate and proof, somebody else was promoted."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.VERIFIED)
        stale = dict(run.facts, measured_against="ebdm_gen0007")
        step = pipeline.prove(Run(**{**vars(run), "facts": stale}), bench)

    assert isinstance(step, Move)
    assert step.to is State.RETURNED
    assert "ebdm_gen0007" in step.reason


def test_proof_and_promotion_twice_are_once(works: Works) -> None:
    """The same record, the same generation."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.VERIFIED)
        assert pipeline.prove(run, bench) == pipeline.prove(run, bench)
        proven = bench.store.move(
            run, State.PROVEN, "", facts={"proof": f"proof-{run.run_id}.json"}
        )
        assert pipeline.promote(proven, bench) == pipeline.promote(proven, bench)

    assert works.generations() == ["ebdm_gen0001"]
    assert len(works.history()) == 1
    assert len(list((works.root / "zk_proofs").glob("proof-*.json"))) == 1


def test_a_lost_measure_bundle_is_submitted_again(works: Works) -> None:
    """A crash between noting the intent and asking the door: the door has never heard of it."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.RETURNED)
        door = bench.rooms.door
        asked = []
        real_submit = door.submit
        door.submit = lambda *a, **k: asked.append(a)  # type: ignore[method-assign]
        assert isinstance(pipeline.verify(run, bench), Wait)
        door.submit = real_submit  # type: ignore[method-assign]
        assert isinstance(pipeline.verify(run, bench), Wait)
        tick_until(conductor, lambda tick: tick.is_idle)
        assert len(bench.store.attempts(run.run_id, "measure")) == 1

    assert works.runs()[0].state is State.PROMOTED


def test_a_report_that_cannot_be_used_is_a_failed_try(works: Works) -> None:
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.RETURNED)
        pipeline.verify(run, bench)
        (attempt,) = bench.store.attempts(run.run_id, "measure")
        while bench.rooms.door.poll(attempt.attempt_id).phase is not JobPhase.ENDED:
            pass
        report = bench.rooms.jobs.path / attempt.attempt_id / "outputs/report/report.json"
        report.write_text("{}")
        step = pipeline.verify(run, bench)

    assert isinstance(step, Retry)
    assert step.counts
    assert step.ends is not None


def test_the_job_gets_the_plan_that_the_run_has(works: Works) -> None:
    """Plan and settings travel in the bundle, byte for byte."""
    with works.conductor() as (conductor, _):
        bench, run = bench_at(conductor, State.SUBMITTED)
        inputs = bench.rooms.jobs.path / f"{run.run_id}-train-ebdm-1" / "inputs"
        plan = (inputs / "plan.json").read_bytes()

        assert plan == canonical_json(bench.store.plan(run.run_id))
        tick_until(conductor, lambda tick: tick.is_idle)
