"""Shift gears by what waits, with hysteresis: up soon, down late, one gear at a time. Pure.

A gear says how often the conductor looks. While much waits a late look is lost time; while nothing
waits an early look is lost energy. Shifting down late keeps a stream of files that comes in bursts
from shifting at every burst.
"""

from scf.control.control_file import GEAR_FLOORS_S

GEARS = tuple(GEAR_FLOORS_S)

# Backlog (files to ingest, runs with something to do, a plan that is due) that asks for each gear.
WANTED_FROM = {"STANDARD": 0, "ACCELERATED": 1, "HYPER": 4, "SINGULARITY": 32}
# What asks for a higher gear must have lasted so long, and for a lower one so long.
UP_AFTER_S = 1.0
DOWN_AFTER_S = 60.0


def wanted_gear(backlog: int) -> str:
    """The gear that so much waiting work asks for."""
    return [gear for gear in GEARS if backlog >= WANTED_FROM[gear]][-1]


class GearBox:
    """The automatic gear.

    Attributes:
        gear: The gear it is in.
    """

    def __init__(self) -> None:
        self.gear = GEARS[0]
        self._direction = 0
        self._since = 0.0

    def shift(self, backlog: int, now_s: float) -> bool:
        """Look at the backlog at monotonic time `now_s`; returns whether the gear was shifted."""
        here, there = GEARS.index(self.gear), GEARS.index(wanted_gear(backlog))
        direction = (there > here) - (there < here)
        if direction != self._direction:
            self._direction, self._since = direction, now_s
        patience_s = UP_AFTER_S if direction > 0 else DOWN_AFTER_S
        if direction == 0 or now_s - self._since < patience_s:
            return False
        # Up at one go, since work waits; down step by step.
        self.gear = GEARS[there if direction > 0 else here - 1]
        self._since = now_s
        return True
