"""What a running job says and hears: progress to people and programs, and the signal to stop."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.units import format_duration
from scf.storage.durable import os_errors
from scf.training.checkpoint import Progress
from scf.training.gradients import Means
from scf.training.tensorboard import Board
from scf.training.train_config import TrainConfig

# How often a person and a program hear of progress.
_TALK_S = 5.0
_NOTE_S = 0.5


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


@dataclass
class Notes:
    """Where progress is told: stderr for people, NDJSON for programs.

    Attributes:
        path: The NDJSON file.
        every_step: Note each step there, not one in half a second.
        talk: Takes lines for people, without the line's end: `print`, say.
        board: Draws the same curves for TensorBoard.
    """

    path: Path | None = None
    every_step: bool = False
    talk: Callable[[str], object] = _say
    board: Board | None = None
    _next_talk: float = 0.0
    _next_note: float = 0.0

    def write(self, **note: Any) -> None:
        """Append one line to the progress file."""
        if self.path is not None:
            line = json.dumps(note, sort_keys=True, allow_nan=False)
            with os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def step(self, config: TrainConfig, progress: Progress, losses: Means) -> None:
        """Tell where the run stands, at most so often."""
        now = time.monotonic()
        if now < min(self._next_note, self._next_talk) and not self.every_step:
            return
        rate = progress.step / max(progress.seconds, 1e-9)
        left_s = min(
            config.max_seconds - progress.seconds, (config.max_steps - progress.step) / rate
        )
        if now >= self._next_note or self.every_step:
            self._next_note = now + _NOTE_S
            curves = {
                "loss": losses.total,
                "denoising": losses.denoising,
                "dual": losses.dual,
                "steps_per_s": round(rate, 2),
                "learning_rate": config.learning_rate_at(progress.step),
                "validation": progress.validation[-1][1] if progress.validation else None,
                "energy_gap_nats": progress.energy_gap_nats,
                "score_error": progress.score_error,
            }
            self.write(
                event="step",
                step=progress.step,
                elapsed_s=round(progress.seconds, 2),
                eta_s=round(max(left_s, 0.0), 1),
                **curves,
            )
            if self.board is not None:
                self.board.draw(progress.step, curves)
        if now >= self._next_talk:
            self._next_talk = now + _TALK_S
            looked = ""
            if progress.score_error is not None and progress.energy_gap_nats is not None:
                looked = (
                    f"score error {progress.score_error:.3f} of the Gaussian's  "
                    f"energy {progress.energy_gap_nats:+.2f} nats below it  "
                )
            self.talk(
                f"step {progress.step:6d}  loss {losses.total:.4f}  {looked}"
                f"{rate:.{0 if rate >= 10 else 2}f} steps/s  "
                f"at most {format_duration(max(left_s, 0.0))} left"
            )

    def finished(self, progress: Progress) -> None:
        """The last line of a run that ended in order."""
        self.write(
            event="finished",
            status=progress.status,
            reason=progress.stop_reason,
            step=progress.step,
            elapsed_s=round(progress.seconds, 2),
        )
        if self.board is not None:
            self.board.close()


class Interrupted(Exception):
    """A signal to stop came during work that may be left half done."""


@dataclass
class StopSignal:
    """SIGTERM and SIGINT, remembered until the step is done.

    Attributes:
        file: Stands for a signal in a thread, which hears none: set once this file is there. It
            ends no work in its middle.
    """

    file: Path | None = None
    _was_heard: bool = False
    _may_interrupt: bool = False

    @property
    def is_set(self) -> bool:
        return self._was_heard or (self.file is not None and self.file.exists())

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Work that takes long and whose result can be done without: a signal ends it at once.

        Raises:
            Interrupted: In the middle of it, or before its first line where the signal came before.
        """
        self._may_interrupt = True
        try:
            if self.is_set:
                raise Interrupted
            yield
        finally:
            self._may_interrupt = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: object) -> None:
        self._was_heard = True
        if self._may_interrupt:
            self._may_interrupt = False
            raise Interrupted
