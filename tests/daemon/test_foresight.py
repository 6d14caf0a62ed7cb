"""`scf daemon plan` says what a daemon then does, and does nothing itself."""

import json
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.daemon.foresight import Intention, foresee
from scf.runs.state import State
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path)


def foreseen(works: Works) -> list[Intention]:
    return foresee(works.config, SystemClock())


def everything(works: Works) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for folder in (works.root, works.home)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("vault_index.db", "runs.db"))
    }


def test_a_new_foundry_has_nothing_to_do(works: Works) -> None:
    (intention,) = foreseen(works)

    assert (intention.what, intention.why) == ("nothing", "nothing is left to do")
    assert not (works.home / "runs.db").exists()


def test_it_names_the_run_that_a_daemon_then_makes(works: Works) -> None:
    """The same situation is the same intent: the name is known before the run is."""
    works.drop("a.ndjson", range(120))
    (ingest,) = foreseen(works)
    assert (ingest.what, ingest.subject, ingest.now) == ("ingest", "drop/a.ndjson", True)
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.origin("drop/a.ndjson")))
    works.set(settle_s=0.0)
    before = everything(works)

    (plan,) = foreseen(works)

    assert everything(works) == before
    assert (plan.what, plan.now) == ("plan", True)
    assert (
        "120 fresh fossils, a run starts at 64; 120 fossils, begins from random weights" in plan.why
    )
    works.until_idle()
    (run,) = works.runs()
    assert run.run_id == plan.subject
    assert [i.what for i in foreseen(works)] == ["nothing"]


def test_it_says_what_a_run_waits_for(works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PLANNED})))
        (advance,) = [i for i in foreseen(works) if i.what == "advance"]
        assert advance.now
        assert advance.why.startswith("PLANNED: start its training job")
    works.cli("pause")
    works.cli("lock", "--reason", "test")
    assert works.cli("daemon", "plan") == 0
    assert "emergency lock" in capsys.readouterr().out
    (works.home / "EMERGENCY_LOCK").unlink()
    assert works.cli("daemon", "plan", "--json") == 0
    told = json.loads(capsys.readouterr().out)["intentions"]
    assert [i["subject"].split()[0] for i in told if i["what"] == "obey"] == ["PAUSE"]


def test_a_missing_drive_is_a_reason(works: Works, tmp_path: Path) -> None:
    works.root.rename(tmp_path / "pulled")
    (intention,) = foreseen(works)

    assert intention.what == "nothing"
    assert "marker" in intention.why
    assert not works.root.exists()
