"""What a running job says and hears: progress to people and programs, and the signal to stop."""

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.units import format_duration
from scf.storage.durable import os_errors
from scf.training.checkpoint import Progress
from scf.training.train_config import TrainConfig

# How often a person and a program hear of progress.
_TALK_S = 5.0
_NOTE_S = 0.5


@dataclass
class Notes:
    """Where progress is told: stderr for people, NDJSON for programs.

    Attributes:
        path: The NDJSON file.
        every_step: Note each step there, not one in half a second.
        talk: Takes lines for people.
    """

    path: Path | None = None
    every_step: bool = False
    talk: Callable[[str], object] = sys.stderr.write
    _next_talk: float = 0.0
    _next_note: float = 0.0

    def write(self, **note: Any) -> None:
        """Append one line to the progress file."""
        if self.path is not None:
            line = json.dumps(note, sort_keys=True, allow_nan=False)
            with os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def step(self, config: TrainConfig, progress: Progress, losses: Sequence[float]) -> None:
        """Tell where the run stands, at most so often."""
        now = time.monotonic()
        if now < min(self._next_note, self._next_talk) and not self.every_step:
            return
        rate = progress.step / max(progress.seconds, 1e-9)
        left_s = min(
            config.max_seconds - progress.seconds, (config.max_steps - progress.step) / rate
        )
        total, denoising, dual = losses
        if now >= self._next_note or self.every_step:
            self._next_note = now + _NOTE_S
            self.write(
                event="step",
                step=progress.step,
                loss=total,
                denoising=denoising,
                dual=dual,
                steps_per_s=round(rate, 2),
                elapsed_s=round(progress.seconds, 2),
                eta_s=round(max(left_s, 0.0), 1),
                validation=progress.validation[-1][1] if progress.validation else None,
                energy_gap_nats=progress.energy_gap_nats,
                score_error=progress.score_error,
            )
        if now >= self._next_talk:
            self._next_talk = now + _TALK_S
            self.talk(
                f"step {progress.step:6d}  loss {total:.4f}  {rate:.0f} steps/s  "
                f"at most {format_duration(max(left_s, 0.0))} left\n"
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


@dataclass
class StopSignal:
    """SIGTERM and SIGINT, remembered until the step is done."""

    is_set: bool = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: object) -> None:
        self.is_set = True
