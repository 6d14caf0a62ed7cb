"""The fault table, a few points of each line; `python -m benchmarks faults` runs all of them."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from scf.core.errors import DoorUnavailable
from scf.daemon.doors import Doors
from scf.runs.state import State
from support import faults
from support.clocks import ManualClock
from support.conducting import Works, tick_until

pytestmark = pytest.mark.crash

Point = Callable[[], tuple[bool, list[str]]]


def require_no_loss(point: Point) -> None:
    struck, wrong = point()
    assert wrong == []
    assert struck, "the harm was not met: the test would show nothing"


@pytest.fixture(scope="module")
def boundaries() -> tuple[int, int]:
    return faults.num_passages("*"), faults.num_passages("durable.*")


def test_there_are_boundaries_enough(boundaries: tuple[int, int]) -> None:
    """Of any kind, and of durable writes."""
    assert boundaries[0] >= 200
    assert boundaries[1] >= 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("tenth", range(1, 10))
def test_sigkill_anywhere_loses_and_repeats_nothing(
    boundaries: tuple[int, int], tenth: int
) -> None:
    require_no_loss(lambda: faults.kill_at(boundaries[0] * tenth // 10))


@pytest.mark.parametrize("how", ["enospc", "error"])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_write_that_fails_anywhere_loses_and_repeats_nothing(
    boundaries: tuple[int, int], how: str, quarter: int
) -> None:
    require_no_loss(lambda: faults.fail_write_at(boundaries[1] * quarter // 4, how))


@pytest.mark.parametrize("fault", ["lies", "stalls", "flaps", "loses", "answer"])
def test_a_bad_door_costs_a_try_and_nothing_else(fault: str) -> None:
    require_no_loss(lambda: faults.bad_door(fault))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_wall_clock_that_jumps_by_days_changes_nothing(seed: int) -> None:
    require_no_loss(lambda: faults.clock_jump(seed))


@pytest.mark.parametrize("seed", [1, 2])
def test_garbage_over_the_state_is_refused_and_rebuilt(seed: int) -> None:
    require_no_loss(lambda: faults.damaged_state(seed))


def test_two_daemons_are_one() -> None:
    require_no_loss(faults.two_daemons)


@pytest.mark.skipif(not faults.IS_ROOT, reason="mounts file systems")
@pytest.mark.parametrize(
    "point",
    [lambda: faults.full_drive(30), lambda: faults.full_drive(145),
     lambda: faults.read_only_drive(5), lambda: faults.unplugged_drive(5)],
    ids=["full", "full in a job", "read-only", "unplugged"],
)  # fmt: skip
def test_a_drive_that_fails_stops_the_work_and_nothing_lands_elsewhere(point: Point) -> None:
    require_no_loss(point)


def test_a_loss_is_seen() -> None:
    """A table that could not show one would show nothing."""
    with faults.scratch() as base:
        works = faults.foundry(base)
        assert "an intent was lost: runs are about 0 fossils" in faults.losses(works)


def test_a_job_that_found_the_disk_full_loses_no_try(tmp_path, monkeypatch) -> None:
    """It waits for room, and comes through when there is some; a real worker's words are known."""
    works = Works(tmp_path, {"auto_release": False, "settle_s": 0.0, "max_attempts": 1})
    works.drop("a.ndjson", range(120))
    clock = ManualClock(datetime.now(UTC))
    with works.conductor(clock) as (conductor, _):
        monkeypatch.setenv("SCF_TINY", json.dumps({"full": True}))
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.LOST})))
        (run,) = conductor.store.runs()
        assert "No space left on device" in run.reason
        assert run.tries == 0
        monkeypatch.delenv("SCF_TINY")
        clock.advance(301.0)
        tick_until(conductor, lambda tick: tick.is_idle)
    assert works.runs()[0].state is State.PROMOTED


def test_a_stop_that_one_door_did_not_take_is_passed_on_again(tmp_path) -> None:
    """A door that does not answer for a moment keeps no job running for long."""
    works = Works(tmp_path, {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        real, deaf = Doors.get, [True, True]

        def get(self, name):
            if deaf and deaf.pop():
                raise DoorUnavailable("busy")
            return real(self, name)

        Doors.get = get  # type: ignore[method-assign]
        try:
            assert not conductor._end_jobs(at_once=False)
            deaf.clear()
            assert conductor._end_jobs(at_once=False)
        finally:
            Doors.get = real  # type: ignore[method-assign]
        tick_until(conductor, lambda tick: tick.is_idle)
