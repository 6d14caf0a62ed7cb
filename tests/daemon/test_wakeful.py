"""The machine is kept awake while a rented one is paid for, and no longer."""

import os
from pathlib import Path

import pytest

from scf.daemon.wakeful import Wakeful
from scf.runs.state import State
from support.conducting import Works, tick_until
from support.waiting import wait_for


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Stands in for caffeinate: notes how it was called, and holds on."""
    path = tmp_path / "caffeinate"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexec sleep 60\n')
    path.chmod(0o755)
    return path


def test_held_once_and_let_go_once(program: Path) -> None:
    wakeful = Wakeful(str(program))
    for _ in range(3):
        wakeful.keep(is_needed=True)
    called = program.with_name("called")
    wait_for(lambda: called.exists() and called.read_text(), what="the program to start")
    assert wakeful.is_held
    for _ in range(2):
        wakeful.keep(is_needed=False)

    assert not wakeful.is_held
    assert called.read_text() == f"-i -w {os.getpid()}\n"


def test_only_while_a_rented_machine_is_paid_for(program: Path, tmp_path: Path) -> None:
    """A job of this machine's own keeps nobody awake."""
    works = Works(tmp_path / "w", {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        conductor._wakeful = Wakeful(str(program))
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        assert not conductor._wakeful.is_held
        run = conductor.store.runs()[0]
        conductor.store.open_attempt(run.run_id, "control", "runpod", lambda name: {"job_id": name})
        assert conductor._is_paid_for()
        conductor._wakeful.keep(is_needed=conductor._is_paid_for())
        assert conductor._wakeful.is_held
    assert not conductor._wakeful.is_held
