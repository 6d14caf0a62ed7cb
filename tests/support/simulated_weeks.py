"""A whole foundry lives through weeks: real training and measuring on a system whose truth is known.

Fossils are drawn from a mixture of Gaussians in eight dimensions, in families of five. Every week
fresh ones are dropped into the vault; the conductor, its door, its worker, the training and the
measuring program, the gate, zoo and release are the real ones. Only the calendar is simulated.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from scf.daemon.conductor import Conductor
from scf.daemon.rooms import open_local_door
from scf.runs.record import Run
from scf.runs.state import ACTIVE
from scf.verification.reference_systems import GaussianMixture
from support.clocks import CalendarClock
from support.conducting import Works, tick_until
from support.fossils import fossil_object

SIZE, MODES, FAMILY = 8, 12, 5
FIRST_DAY = datetime(2026, 9, 2, 12, tzinfo=UTC)  # a Wednesday
LIMIT_S = 600.0


def mixture() -> GaussianMixture:
    """The truth: twelve modes of various widths in eight dimensions."""
    rng = np.random.default_rng(0)
    means = 2 * rng.standard_normal((MODES, SIZE))
    return GaussianMixture(means, rng.uniform(0.2, 0.6, MODES), np.full(MODES, 1 / MODES))


@dataclass
class SimulatedWeeks:
    """The foundry and its calendar.

    Attributes:
        base: Home and drive lie here.
        max_steps: Of one training run.
        scratch_control: Whether each later run is also trained from nothing.
        folder: `release_history`.
    """

    base: Path
    max_steps: int = 300
    scratch_control: bool = True
    talk: Callable[[str], None] = lambda line: None
    truth: GaussianMixture = field(default_factory=mixture)
    clock: CalendarClock = field(default_factory=lambda: CalendarClock(FIRST_DAY))
    _week: int = 0

    def __post_init__(self) -> None:
        self.works = Works(self.base)
        self._rng = np.random.default_rng(1)
        (self.works.home / "scf.toml").write_text(
            f'root = "{self.works.root}"\n'
            "[daemon]\nmin_fresh_fossils = 20\nsettle_s = 0.0\n"
            f"scratch_control = {json.dumps(self.scratch_control)}\n"
            f'[training]\npreset = "tiny"\nmax_seconds = 600.0\nmax_steps = {self.max_steps}\n'
            'device = "cpu"\nheld_out_fraction = 0.25\n'
        )

    @property
    def folder(self) -> Path:
        return self.works.root / "release_history"

    def drop(self, num: int) -> list[str]:
        """Fresh fossils, drawn from the truth; returns their CIDs."""
        points = self.truth.sample(num, self._rng)
        name = f"week-{self._week:02d}"
        path = self.works.root / "fossil_vault" / "drop" / f"{name}.ndjson"
        path.parent.mkdir(parents=True, exist_ok=True)
        objects = [_fossil(name, index, point) for index, point in enumerate(points)]
        path.write_text("".join(json.dumps(obj) + "\n" for obj in objects))
        return [str(obj["cid"]) for obj in objects]

    def live(self, num_fresh: int) -> tuple[Run | None, Path]:
        """One week: fresh fossils, what the foundry makes of them, Monday's release.

        Returns:
            The week's run, None where there was none; and the release.
        """
        self._week += 1
        if num_fresh:
            self.drop(num_fresh)
        with self.works.conductor(self.clock, open_door=open_local_door) as (conductor, _):
            before = len(conductor.store.runs())
            if num_fresh:
                tick_until(
                    conductor, lambda _: len(conductor.store.runs()) > before, limit_s=LIMIT_S
                )
            tick_until(
                conductor, lambda tick: not tick.did and not _busy(conductor), limit_s=LIMIT_S
            )
            self._to_monday()
            release = self.folder / f"week-{self.clock.now().date()}"
            tick_until(conductor, lambda _: release.is_dir(), limit_s=300)
            tick_until(conductor, lambda tick: not tick.did, limit_s=300)
            runs = conductor.store.runs()
            self._to_wednesday()
        return (runs[-1] if len(runs) > before else None), release

    def _to_monday(self) -> None:
        day = self.clock.now()
        monday = (day + timedelta(days=7 - day.weekday())).replace(hour=6, minute=0)
        self.clock.today += monday - day

    def _to_wednesday(self) -> None:
        self.clock.today += timedelta(days=2, hours=6)


def _busy(conductor: Conductor) -> bool:
    return bool(conductor.store.runs(ACTIVE))


def _fossil(name: str, index: int, point: np.ndarray) -> dict[str, object]:
    plain = fossil_object(index)
    values = {"dtype": "float64", "shape": [SIZE], "unit": "m", "values": point.tolist()}
    family = f"{name}/{index // FAMILY:04d}"
    return fossil_object(
        index,
        source="a mixture of Gaussians",
        fields={"x": values},
        params={},
        provenance={**plain["provenance"], "origin": f"{name}.csv", "family": family},
    )
