"""The operator's commands, obeyed once each."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scf.control.budget import LIMITS, check_limit
from scf.control.control_file import (
    ACKS_KEPT,
    AUTO_GEAR,
    CONTROL_NAME,
    GEAR_FLOORS_S,
    Ack,
    Command,
    ControlFile,
    read_commands,
)
from scf.core.clock import Clock
from scf.core.errors import UsageError
from scf.daemon.gears import GearBox
from scf.runs.state import ACTIVE
from scf.runs.store import RunStore

GEAR = "operator.gear"
IS_PAUSED = "operator.is_paused"
RUN_NOW = "operator.run_now"
# {run: who asked}, until each has come to its end.
CANCELS = "operator.cancels"
# {name: value}: limits that are not the drive's; {partition: bytes} that the drive does not know.
LIMITS_SET = "operator.limits"
ROOM_PENDING = "operator.room_pending"
# {partition: bytes} of scf.toml, as they were written to the drive.
ROOM_CONFIGURED = "room.configured"


class Operator:
    """What the operator has asked for.

    Everything but a stop is remembered in `runs.db` and outlives a restart; a stop is for the
    daemon that reads it.

    Attributes:
        stopping: None, `drain` (let jobs end) or `now` (ask jobs to save and end).
        hurdle: Says what would hold a run back that is asked for now; None where nothing does.
        box: The automatic gear, in force while the operator has asked for AUTO.
    """

    def __init__(
        self,
        home: Path,
        store: RunStore,
        clock: Clock,
        *,
        default_gear: str,
        log: Any,
        talk: Callable[[str], None],
    ) -> None:
        self._file = ControlFile(home)
        self._store = store
        self._clock = clock
        self._default_gear = default_gear
        self._log = log
        self._talk = talk
        self._told_fault: str | None = None
        self.stopping: str | None = None
        self.hurdle: Callable[[], str | None] = lambda: None
        self.box = GearBox()
        self._acts: Mapping[str, Callable[[Command], tuple[str, dict[str, Any]]]] = {
            "SHIFT_GEAR": self._shift_gear,
            "PAUSE": self._pause,
            "RESUME": self._resume,
            "STOP": self._stop,
            "RUN_NOW": self._run_now,
            "CANCEL": self._cancel,
            "SET_BUDGET": self._set_budget,
        }
        if [ack["id"] for ack in store.acks(limit=ACKS_KEPT)] != list(self._file.acks()):
            self._show_acks()

    @property
    def gear(self) -> str:
        """The gear in force: what the operator chose, else the configured one, else the box's."""
        asked = str(self._store.get(GEAR, self._default_gear))
        return self.box.gear if asked == AUTO_GEAR else asked

    @property
    def is_auto(self) -> bool:
        """Whether the conductor shifts by itself."""
        return bool(self._store.get(GEAR, self._default_gear) == AUTO_GEAR)

    @property
    def floor_s(self) -> float:
        """The pause between two looks."""
        return GEAR_FLOORS_S[self.gear]

    @property
    def is_paused(self) -> bool:
        return bool(self._store.get(IS_PAUSED, default=False))

    def feel(self, backlog: int) -> None:
        """Let the automatic gear follow the backlog. A gear chosen by hand is never touched."""
        if self.box.shift(backlog, self._clock.monotonic()) and self.is_auto:
            self._log.info("gear.shifted", gear=self.box.gear, backlog=backlog)
            self._talk(f"gear {self.box.gear}: {backlog} waiting")

    def obey(self) -> bool:
        """Read `control.json` if it changed, act on what is new, answer. True if anything was."""
        reading = self._file.read_if_changed()
        if reading is None:
            return False
        if reading.fault is not None:
            # Half written, perhaps: left alone until it is whole, and said once.
            if reading.fault != self._told_fault:
                self._told_fault = reading.fault
                self._log.warning("control.not_whole", fault=reading.fault)
                self._talk(f"control.json is left alone until it is whole: {reading.fault}")
            return False
        self._told_fault = None
        fresh = [command for command in reading.commands if not self._store.has_ack(command.id)]
        for command in fresh:
            self._act(command)
        if fresh:
            self._show_acks()
        return bool(fresh)

    def _act(self, command: Command) -> None:
        sets: dict[str, Any] = {}
        status = "done"
        try:
            if command.fault is not None:
                raise UsageError(command.fault)
            message, sets = self._acts[command.name](command)
        except UsageError as refused:
            status, message = "error", " ".join(filter(None, (str(refused), refused.remedy)))
        if self._store.acknowledge(command.id, status, message, sets=sets):
            self._log.info(
                "control.command", id=command.id, command=command.name, status=status, said=message
            )
            self._talk(f"{command.name}: {message}")

    def _shift_gear(self, command: Command) -> tuple[str, dict[str, Any]]:
        gear = command.arguments["gear"]
        if gear == AUTO_GEAR:
            return "gear AUTO: shifts by what waits", {GEAR: gear}
        return f"gear {gear}: a look every {GEAR_FLOORS_S[gear]:g} s", {GEAR: gear}

    def _pause(self, command: Command) -> tuple[str, dict[str, Any]]:
        return "nothing new is started; running jobs go on", {IS_PAUSED: True}

    def _resume(self, command: Command) -> tuple[str, dict[str, Any]]:
        return "going on", {IS_PAUSED: False}

    def _stop(self, command: Command) -> tuple[str, dict[str, Any]]:
        self.stopping = command.arguments["mode"]
        return f"stopping ({self.stopping})", {}

    def _run_now(self, command: Command) -> tuple[str, dict[str, Any]]:
        active = self._store.runs(ACTIVE)
        after = f", once {active[0].run_id} is through" if active else ""
        hurdle = self.hurdle()
        but = f"; but {hurdle}" if hurdle else ""
        return f"planning on what the vault holds now{after}{but}", {RUN_NOW: command.id}

    def _cancel(self, command: Command) -> tuple[str, dict[str, Any]]:
        run = self._store.run(command.arguments["run"])
        if run.state not in ACTIVE:
            raise UsageError(f"{run.run_id} has come to its end already: {run.state}")
        asked = {**self._store.get(CANCELS, {}), run.run_id: command.id}
        return f"{run.run_id} is being cancelled; its job may save its state", {CANCELS: asked}

    def _set_budget(self, command: Command) -> tuple[str, dict[str, Any]]:
        limit, value = check_limit(command.arguments["budget"], command.arguments["limit"])
        key = ROOM_PENDING if limit.is_partition else LIMITS_SET
        return f"{limit.name}: {limit.show(value)}", {
            key: {**self._store.get(key, {}), limit.name: value}
        }

    def _show_acks(self) -> None:
        self._file.write_acks(Ack(**ack) for ack in self._store.acks(limit=ACKS_KEPT))


def limit_of(store: RunStore, name: str, configured: float | None = None) -> float:
    """A limit that is not the drive's: what the operator set, else what scf.toml says."""
    default = LIMITS[name].default if configured is None else configured
    assert default is not None, f"{name} is kept by the drive"
    return float(store.get(LIMITS_SET, {}).get(name, default))


def limits_asked_for(home: Path, store: RunStore | None) -> dict[str, float]:
    """Limits in `control.json` that no daemon has obeyed yet: none may have been running since."""
    asked: dict[str, float] = {}
    for command in read_commands(home / CONTROL_NAME).commands:
        is_new = store is None or not store.has_ack(command.id)
        if command.name == "SET_BUDGET" and command.fault is None and is_new:
            with contextlib.suppress(UsageError):  # the daemon will say so
                limit, value = check_limit(command.arguments["budget"], command.arguments["limit"])
                asked[limit.name] = value
    return asked
