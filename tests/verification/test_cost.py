"""Costs are measured by turns; a meter that is not there is null, never zero."""

from pathlib import Path

import numpy as np
import pytest

from scf.verification.cost import Rapl, measure_costs
from support.gaussian_records import POINT, gaussian_points, record_energy


def counter(folder: Path, value: int, wrap: int = 1_000_000) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
    return folder


def test_joules_are_the_sum_of_packages_across_a_wrap(tmp_path: Path) -> None:
    """One package goes on by 0.25 J, the other passes its end: 0.1 J before, 0.05 J after."""
    counter(tmp_path / "intel-rapl:0", 500_000)
    counter(tmp_path / "intel-rapl:1", 900_001)
    meter = Rapl.find(tmp_path)
    before = meter.read_uj()
    counter(tmp_path / "intel-rapl:0", 750_000)
    counter(tmp_path / "intel-rapl:1", 50_000)
    assert meter.joules_since(before) == pytest.approx(0.4)


def test_no_meter_is_none(tmp_path: Path) -> None:
    assert Rapl.find(tmp_path) is None


def test_a_smaller_model_has_fewer_parameters_and_energy_stays_unknown(tmp_path: Path) -> None:
    energy = record_energy(POINT, gaussian_points(200))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "optimizer.safetensors").write_bytes(b"x" * 900)
    x = gaussian_points(50)

    found = measure_costs({"cost": (energy, tmp_path)}, x, np.zeros((50, 0)), sigma=0.1, meter=None)

    assert found["cost"]["num_parameters"] == sum(p.numel() for p in energy.model.parameters())
    assert found["cost"]["size_bytes"] == 100
    assert found["cost"]["cpu_s_per_fossil"] > 0
    assert found["cost"]["energy_j_per_fossil"] is None
