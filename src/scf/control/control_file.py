"""`control.json`: what the operator asks of the conductor, and `control.ack.json`: what came of it.

The file holds one command, `{"id": "...", "command": "SHIFT_GEAR", "gear": "HYPER"}`, or several,
`{"commands": [...]}`. Each command has an id of the writer's choosing and is acted on once, however
long it stays in the file and however often the conductor restarts. A file that is not whole JSON is
left alone until it is; a command that is not understood is answered with an error, and everything
stays as it was.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scf.control.budget import check_limit
from scf.core.canonical import parse_json
from scf.core.clock import utc_text
from scf.core.errors import InputError, UsageError
from scf.storage import durable
from scf.storage.instance_lock import instance_lock

CONTROL_NAME = "control.json"
ACK_NAME = "control.ack.json"
_WRITERS_LOCK_NAME = "control.lock"

GEAR_FLOORS_S: Mapping[str, float] = MappingProxyType(
    {"STANDARD": 5.0, "ACCELERATED": 1.0, "HYPER": 0.1, "SINGULARITY": 0.05}
)
# The conductor shifts by itself: up when work waits, down when it has been quiet.
AUTO_GEAR = "AUTO"
STOP_MODES = ("drain", "now")

SIZE_MAX_BYTES = 2**20
COMMANDS_MAX = 256
ID_MAX_CHARS = 128
TEXT_MAX_CHARS = 200
# How many acknowledgements the file keeps; the state database keeps them all.
ACKS_KEPT = 256
WRITER_WAIT_S = 5.0

_RUN_ID = re.compile(r"run-[0-9a-f]{12}")


@dataclass(frozen=True)
class _Argument:
    """What a command takes: a check that gives the text to keep, and a default if it may be absent.

    The check raises UsageError with a sentence that begins with the value.
    """

    check: Callable[[Any], str]
    default: str | None = None


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise UsageError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return check


def _run_id(value: Any) -> str:
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value):
        raise UsageError(f"{value!r} is not the name of a run, such as run-0123456789ab")
    return value


def _some_text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX_CHARS:
        raise UsageError(f"{value!r} is not a text of 1 to {TEXT_MAX_CHARS} characters")
    return value


# What each command takes besides `id` and `command`.
_COMMANDS: Mapping[str, Mapping[str, _Argument]] = MappingProxyType(
    {
        "SHIFT_GEAR": {"gear": _Argument(_one_of(*GEAR_FLOORS_S, AUTO_GEAR))},
        "PAUSE": {},
        "RESUME": {},
        "STOP": {"mode": _Argument(_one_of(*STOP_MODES), "drain")},
        "RUN_NOW": {},
        "CANCEL": {"run": _Argument(_run_id)},
        "SET_BUDGET": {"budget": _Argument(_some_text), "limit": _Argument(_some_text)},
    }
)
# For people; kept, not acted on.
_REMARKS = frozenset({"reason", "at"})


@dataclass(frozen=True)
class Command:
    """One thing asked for.

    Attributes:
        id: The writer's name for this request.
        name: One of the names in `docs/formats/control.md`, such as `SHIFT_GEAR`.
        arguments: Checked arguments, defaults filled in.
        fault: Why it cannot be acted on; None for a command that is understood.
    """

    id: str
    name: str
    arguments: Mapping[str, str]
    fault: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a look at the file gave.

    Attributes:
        commands: In the order of the file; empty when there is no file.
        fault: Why the file as a whole cannot be used now; then `commands` is empty.
    """

    commands: tuple[Command, ...] = ()
    fault: str | None = None


@dataclass(frozen=True)
class Ack:
    """The answer to one command: `status` is `done` or `error`."""

    id: str
    status: str
    message: str
    at: str

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "status": self.status, "message": self.message, "at": self.at}


class ControlFile:
    """Reads the commands of one home, and writes the answers."""

    def __init__(self, home: Path) -> None:
        self.path = home / CONTROL_NAME
        self.ack_path = home / ACK_NAME
        self._seen: tuple[int, int, int] | None = None

    def read_if_changed(self) -> Reading | None:
        """The file's commands, or None when it is as it was at the last whole reading.

        One `stat` when nothing changed. A file with a fault is read again each time, since it may
        be half written.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            if self._seen is None:
                return None
            self._seen = None
            return Reading()
        except OSError as error:
            return Reading(fault=f"{self.path}: cannot be read: {error.strerror}")
        identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if identity == self._seen:
            return None
        reading = read_commands(self.path)
        if reading.fault is None:
            self._seen = identity
        return reading

    def write_acks(self, acks: Iterable[Ack]) -> None:
        """Show the answers; the latest `ACKS_KEPT` stay."""
        kept = list(acks)[-ACKS_KEPT:]
        durable.write_json(self.ack_path, {"acks": [ack.to_json() for ack in kept]})

    def acks(self) -> dict[str, Ack]:
        """The answers shown so far, by command id."""
        try:
            value = durable.read_json(self.ack_path)
            return {row["id"]: Ack(**row) for row in value["acks"]}
        except (InputError, KeyError, TypeError):
            return {}

    def put(self, name: str, arguments: Mapping[str, str], *, now: datetime) -> str:
        """Ask for something; returns the command's id.

        Commands that are not answered yet stay in the file. A file that is not understood is set
        aside as `control.json.unreadable`, never lost.
        """
        command_id = f"{name.lower().replace('_', '-')}-{secrets.token_hex(6)}"
        asked = {"id": command_id, "command": name, "at": utc_text(now), **arguments}
        with instance_lock(
            self.path.with_name(_WRITERS_LOCK_NAME), holder="scf control", wait_s=WRITER_WAIT_S
        ):
            waiting = self._unanswered(set(self.acks()))
            durable.write_json(self.path, {"commands": [*waiting, asked]})
        return command_id

    def _unanswered(self, answered: Collection[str]) -> list[Any]:
        try:
            items = _items(parse_json(_read_bounded(self.path)))
        except FileNotFoundError:
            return []
        except InputError:
            self.path.replace(self.path.with_name(f"{CONTROL_NAME}.unreadable"))
            return []
        return [item for item in items if item["id"] not in answered]


def read_commands(path: Path) -> Reading:
    """Read a control file once. Never raises: what is wrong is in `fault`."""
    try:
        items = _items(parse_json(_read_bounded(path)))
    except FileNotFoundError:
        return Reading()
    except OSError as error:
        return Reading(fault=f"{path}: cannot be read: {error.strerror}")
    except InputError as error:
        return Reading(fault=f"{path}: {error}")
    return Reading(commands=tuple(_command(item) for item in items))


def check_arguments(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of a command with defaults filled in.

    Raises:
        UsageError: Unknown command, unknown argument, or a value that is not allowed.
    """
    if name not in _COMMANDS:
        raise UsageError(f"unknown command {name!r}; known: {', '.join(_COMMANDS)}")
    known = _COMMANDS[name]
    for key in given:
        if key not in known:
            allowed = ", ".join(known) or "none"
            raise UsageError(f"{name} has no argument {key!r}; known: {allowed}")
    arguments: dict[str, str] = {}
    for key, argument in known.items():
        value = given.get(key, argument.default)
        try:
            arguments[key] = argument.check(value)
        except UsageError as error:
            raise UsageError(f"{name}: {key} = {error}") from error
    if name == "SET_BUDGET":
        check_limit(arguments["budget"], arguments["limit"])
    return arguments


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(SIZE_MAX_BYTES + 1)
    if len(data) > SIZE_MAX_BYTES:
        raise InputError(f"larger than {SIZE_MAX_BYTES} bytes, refused")
    return data


def _items(value: Any) -> list[dict[str, Any]]:
    items = value.get("commands", [value]) if isinstance(value, dict) else None
    if not isinstance(items, list) or len(items) > COMMANDS_MAX:
        raise InputError(f"not a command and not a list of at most {COMMANDS_MAX} commands")
    for item in items:
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= ID_MAX_CHARS:
            raise InputError(f"a command needs an `id`, a text of 1 to {ID_MAX_CHARS} characters")
    return items


def _command(item: Mapping[str, Any]) -> Command:
    given = {k: v for k, v in item.items() if k not in {"id", "command"} and k not in _REMARKS}
    name = str(item.get("command"))
    try:
        return Command(item["id"], name, check_arguments(name, given))
    except UsageError as error:
        return Command(item["id"], name, {}, fault=str(error))
