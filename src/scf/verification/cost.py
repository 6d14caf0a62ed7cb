"""What a model takes to run: parameters, bytes, CPU seconds and, where a meter is, joules a fossil.

Candidate and champion score the same records by turns and the median of each is taken, so that
other work on the machine falls on both. The meter is the processor's own (RAPL, through Linux's
powercap); it counts the whole package, so what else runs there is in it: a comparison of two, by
turns, not a bill. Where it cannot be read (it needs a permission), energy is not known, never zero.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.models.record import Floats
from scf.models.record_energy import RecordEnergy

POWERCAP = Path("/sys/class/powercap")
_ROUNDS = 5
_FOSSILS_MAX = 256


@dataclass(frozen=True)
class Rapl:
    """The energy counters of the processor packages.

    Attributes:
        packages: Their folders.
    """

    packages: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path = POWERCAP) -> "Rapl | None":
        """The counters that can be read here; None where there are none."""
        found = []
        for package in sorted(folder.glob("intel-rapl:?")):
            try:
                int((package / "energy_uj").read_text())
                int((package / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                continue
            found.append(package)
        return cls(tuple(found)) if found else None

    def read_uj(self) -> list[int]:
        """Each counter, in microjoules."""
        return [int((package / "energy_uj").read_text()) for package in self.packages]

    def joules_since(self, before_uj: list[int]) -> float:
        """Since a reading of less than one wrap-around ago (minutes, at the least)."""
        total_uj = 0
        for package, before, now in zip(self.packages, before_uj, self.read_uj(), strict=True):
            wrap = int((package / "max_energy_range_uj").read_text()) + 1
            total_uj += (now - before) % wrap
        return total_uj / 1e6


def measure_costs(
    models: Mapping[str, tuple[RecordEnergy, Path]],
    x_ND: Floats,
    c_NK: Floats,
    *,
    sigma: float,
    meter: Rapl | None,
) -> dict[str, dict[str, Any]]:
    """Cost of scoring one record with each model, by the names given.

    Args:
        models: Each with the folder of its checkpoint.
        x_ND: Records; at most 256 are scored.
        c_NK: Their given numbers.
        sigma: Noise level at which they are scored.
        meter: Of electrical energy; None where there is none.
    """
    x_ND, c_NK = x_ND[:_FOSSILS_MAX], c_NK[:_FOSSILS_MAX]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    joules: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(_ROUNDS + 1):
        for name, (energy, _) in models.items():
            before_uj = meter.read_uj() if meter else []
            began = time.process_time()
            energy.energy(x_ND, sigma, c_NK)
            if round_:  # the first warms up
                seconds[name].append((time.process_time() - began) / len(x_ND))
                if meter:
                    joules[name].append(meter.joules_since(before_uj) / len(x_ND))
    return {
        name: {
            "num_parameters": sum(p.numel() for p in energy.model.parameters()),
            "size_bytes": sum(file.stat().st_size for file in _weights(folder)),
            "cpu_s_per_fossil": statistics.median(seconds[name]),
            "energy_j_per_fossil": statistics.median(joules[name]) if meter else None,
            "meter": "RAPL packages" if meter else None,
        }
        for name, (energy, folder) in models.items()
    }


def _weights(checkpoint: Path) -> list[Path]:
    """What a release would carry of the weights."""
    files = sorted(checkpoint.glob("*.safetensors"))
    return [path for path in files if path.name != "optimizer.safetensors"]
