"""Commands are read when whole, understood or refused, and answered."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scf.control.control_file import Ack, ControlFile, check_arguments, read_commands
from scf.core.errors import UsageError

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def write(home: Path, value: object) -> None:
    (home / "control.json").write_text(value if isinstance(value, str) else json.dumps(value))


def test_one_command_and_a_list_of_commands_read_alike(tmp_path: Path) -> None:
    """Both shapes are understood; defaults are filled in."""
    write(tmp_path, {"id": "a", "command": "SHIFT_GEAR", "gear": "HYPER"})
    (one,) = read_commands(tmp_path / "control.json").commands
    write(tmp_path, {"commands": [{"id": "b", "command": "PAUSE"}, {"id": "c", "command": "STOP"}]})
    pause, stop = read_commands(tmp_path / "control.json").commands

    assert (one.name, one.arguments, one.fault) == ("SHIFT_GEAR", {"gear": "HYPER"}, None)
    assert (pause.name, stop.name, stop.arguments) == ("PAUSE", "STOP", {"mode": "drain"})


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ({"id": "a", "command": "FLY"}, "unknown command 'FLY'"),
        ({"id": "a"}, "unknown command"),
        ({"id": "a", "command": "SHIFT_GEAR"}, "gear = None is not one of"),
        ({"id": "a", "command": "SHIFT_GEAR", "gear": "WARP"}, "gear = 'WARP' is not one of"),
        ({"id": "a", "command": "SHIFT_GEAR", "gear": ["HYPER"]}, "is not one of"),
        ({"id": "a", "command": "PAUSE", "now": True}, "PAUSE has no argument 'now'"),
        ({"id": "a", "command": "CANCEL"}, "run = None is not the name of a run"),
        ({"id": "a", "command": "CANCEL", "run": "../x"}, "is not the name of a run"),
        ({"id": "a", "command": "RUN_NOW", "run": "run-1"}, "RUN_NOW has no argument 'run'"),
        ({"id": "a", "command": "SET_BUDGET", "budget": "moon", "limit": "1"}, "no budget 'moon'"),
        (
            {"id": "a", "command": "SET_BUDGET", "budget": "usd_month", "limit": "lots"},
            "US dollars",
        ),
        ({"id": "a", "command": "SET_BUDGET", "budget": "zk_proofs", "limit": 3}, "is not a text"),
    ],
)
def test_a_command_that_is_not_understood_carries_its_fault(
    tmp_path: Path, command: dict[str, object], fault: str
) -> None:
    """It is refused by itself; the others in the file are not touched."""
    write(tmp_path, {"commands": [command, {"id": "z", "command": "RESUME"}]})

    refused, good = read_commands(tmp_path / "control.json").commands

    assert refused.fault is not None
    assert fault in refused.fault
    assert good.fault is None


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"id": "a", "command": "PAU', "[]", "3", '{"commands": 3}', '{"commands": [3]}',
     '{"command": "PAUSE"}', '{"id": "", "command": "PAUSE"}', '{"id": 3, "command": "PAUSE"}',
     '{"id": "a", "id": "b"}', "\x00" * 100, "[" * 100_000, " " * (2**20 + 1)],
)  # fmt: skip
def test_a_file_that_is_not_whole_gives_no_command(tmp_path: Path, text: str) -> None:
    """Half-written, wrong or huge: no command, and a fault that names the file."""
    write(tmp_path, text)

    reading = read_commands(tmp_path / "control.json")

    assert reading.commands == ()
    assert reading.fault is not None
    assert "control.json" in reading.fault


@given(cut=st.integers(min_value=0, max_value=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_beginning_of_a_command_is_taken_for_one(tmp_path: Path, cut: int) -> None:
    """However little of the file has been written, nothing is read out of it."""
    whole = json.dumps({"id": "a", "command": "SHIFT_GEAR", "gear": "HYPER"})
    write(tmp_path, whole[: min(cut, len(whole) - 1)])

    assert read_commands(tmp_path / "control.json").commands == ()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """One reading for one content; a file with a fault is looked at again."""
    control = ControlFile(tmp_path)
    assert control.read_if_changed() is None
    write(tmp_path, "{")
    assert control.read_if_changed() is not None
    assert control.read_if_changed() is not None
    write(tmp_path, {"id": "a", "command": "PAUSE"})
    reading = control.read_if_changed()

    assert reading is not None
    assert [c.id for c in reading.commands] == ["a"]
    assert control.read_if_changed() is None


def test_put_keeps_what_is_not_answered_yet(tmp_path: Path) -> None:
    """A second request does not push out the first; answered ones leave."""
    control = ControlFile(tmp_path)
    first = control.put("PAUSE", {}, now=NOW)
    second = control.put("SHIFT_GEAR", {"gear": "HYPER"}, now=NOW)
    assert [c.id for c in read_commands(control.path).commands] == [first, second]

    control.write_acks([Ack(first, "done", "paused", "2026-11-23T06:00:01Z")])
    third = control.put("RESUME", {}, now=NOW)

    assert [c.id for c in read_commands(control.path).commands] == [second, third]
    assert [c.fault for c in read_commands(control.path).commands] == [None, None]


def test_put_sets_an_unreadable_file_aside(tmp_path: Path) -> None:
    """`scf stop` works although somebody left rubbish in control.json, and the rubbish is kept."""
    write(tmp_path, "{ rubbish")
    control = ControlFile(tmp_path)

    asked = control.put("STOP", {"mode": "now"}, now=NOW)

    assert [c.id for c in read_commands(control.path).commands] == [asked]
    assert (tmp_path / "control.json.unreadable").read_text() == "{ rubbish"


def test_acks_come_back_by_id(tmp_path: Path) -> None:
    """What was answered can be looked up; no file means no answers."""
    control = ControlFile(tmp_path)
    assert control.acks() == {}
    ack = Ack("a", "error", "unknown command 'FLY'", "2026-11-23T06:00:00Z")

    control.write_acks([ack])

    assert control.acks() == {"a": ack}


def test_wrong_arguments_are_refused_by_name() -> None:
    """The message lists what is allowed."""
    with pytest.raises(UsageError, match="STANDARD, ACCELERATED, HYPER, SINGULARITY"):
        check_arguments("SHIFT_GEAR", {"gear": "FAST"})
