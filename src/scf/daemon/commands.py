"""The operator's commands, obeyed once each: gear, pause, resume, stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scf.control.control_file import ACKS_KEPT, GEAR_FLOORS_S, Ack, Command, ControlFile
from scf.core.clock import Clock
from scf.runs.store import RunStore

GEAR = "operator.gear"
IS_PAUSED = "operator.is_paused"


class Operator:
    """What the operator has asked for.

    Gear and pause are remembered in `runs.db` and outlive a restart; a stop is for the daemon that
    reads it.

    Attributes:
        stopping: None, `drain` (let jobs end) or `now` (ask jobs to save and end).
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
        if [ack["id"] for ack in store.acks(limit=ACKS_KEPT)] != list(self._file.acks()):
            self._show_acks()

    @property
    def gear(self) -> str:
        """The gear in force: the operator's, else the configured one."""
        return str(self._store.get(GEAR, self._default_gear))

    @property
    def floor_s(self) -> float:
        """The pause between two looks."""
        return GEAR_FLOORS_S[self.gear]

    @property
    def is_paused(self) -> bool:
        return bool(self._store.get(IS_PAUSED, default=False))

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
        status, message = "done", ""
        if command.fault is not None:
            status, message = "error", command.fault
        elif command.name == "SHIFT_GEAR":
            gear = command.arguments["gear"]
            sets, message = {GEAR: gear}, f"gear {gear}: a look every {GEAR_FLOORS_S[gear]:g} s"
        elif command.name == "PAUSE":
            sets, message = {IS_PAUSED: True}, "nothing new is started; running jobs go on"
        elif command.name == "RESUME":
            sets, message = {IS_PAUSED: False}, "going on"
        elif command.name == "STOP":
            self.stopping = command.arguments["mode"]
            message = f"stopping ({self.stopping})"
        if self._store.acknowledge(command.id, status, message, sets=sets):
            self._log.info(
                "control.command", id=command.id, command=command.name, status=status, said=message
            )
            self._talk(f"{command.name}: {message}")

    def _show_acks(self) -> None:
        self._file.write_acks(Ack(**ack) for ack in self._store.acks(limit=ACKS_KEPT))
