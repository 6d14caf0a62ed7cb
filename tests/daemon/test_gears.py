"""Gears follow the backlog with hysteresis, and never against a hand."""

import json
from pathlib import Path

import pytest

from scf.daemon.gears import DOWN_AFTER_S, UP_AFTER_S, GearBox, wanted_gear
from support.conducting import Works


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path, {"auto_release": False})


def test_more_backlog_wants_a_higher_gear() -> None:
    assert [wanted_gear(n) for n in (0, 1, 3, 4, 31, 32, 10_000)] == [
        "STANDARD", "ACCELERATED", "ACCELERATED", "HYPER", "HYPER", "SINGULARITY", "SINGULARITY",
    ]  # fmt: skip


def test_up_at_one_go_down_step_by_step() -> None:
    box = GearBox()
    assert not box.shift(40, 0.0)
    assert box.shift(40, UP_AFTER_S)
    assert box.gear == "SINGULARITY"
    seen = []
    for second in range(1, 200):
        box.shift(0, UP_AFTER_S + second)
        seen.append(box.gear)

    assert list(dict.fromkeys(seen)) == ["SINGULARITY", "HYPER", "ACCELERATED", "STANDARD"]
    assert seen.count("HYPER") == DOWN_AFTER_S


def test_bursts_do_not_shift_at_every_burst() -> None:
    """A file every ten seconds for an hour: up once, and there it stays."""
    box = GearBox()
    shifts = sum(box.shift(4 if tick % 100 < 20 else 0, tick * 0.1) for tick in range(36_000))

    assert shifts == 1
    assert box.gear == "HYPER"


def test_a_blink_shifts_nothing() -> None:
    box = GearBox()
    assert not any(box.shift(100 if tick % 2 else 0, tick * 0.5) for tick in range(1000))


def test_the_conductor_shifts_by_itself_until_a_gear_is_named(works: Works) -> None:
    """AUTO follows the backlog; a gear chosen by hand stays, whatever waits."""

    def order(gear: str) -> None:
        text = json.dumps({"id": gear, "command": "SHIFT_GEAR", "gear": gear})
        (works.home / "control.json").write_text(text)

    order("AUTO")
    with works.conductor() as (conductor, _):
        conductor.tick()
        assert (conductor.operator.gear, conductor.operator.is_auto) == ("STANDARD", True)
        conductor.operator.box.shift(50, 0.0)
        conductor.operator.box.shift(50, 5.0)
        assert conductor.operator.gear == "SINGULARITY"
        order("ACCELERATED")
        conductor.tick()
        assert (conductor.operator.gear, conductor.operator.is_auto) == ("ACCELERATED", False)
        conductor.operator.box.shift(50, 50.0)
        assert conductor.operator.floor_s == 1.0


def test_the_automatic_gear_can_be_the_configured_one(tmp_path: Path) -> None:
    """In scf.toml as by command; a gear named by hand still wins."""
    works = Works(tmp_path, {"gear": "AUTO"})
    with works.conductor() as (conductor, _):
        conductor.tick()
        assert conductor.operator.is_auto
        assert conductor.operator.gear == "STANDARD"
    works.cli("gear", "hyper")
    with works.conductor() as (conductor, _):
        conductor.tick()
        assert not conductor.operator.is_auto
        assert conductor.operator.gear == "HYPER"
