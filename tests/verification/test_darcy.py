"""Darcy flow: two solvers that share nothing agree, and the figures see what they should."""

import dataclasses

import numpy as np
import pytest
import torch

from scf.models.physics import forget
from scf.verification import science_figures
from scf.verification.distances import beside_floor, sliced_wasserstein
from scf.verification.reference_darcy import DarcyFlow
from scf.verification.science_cases import case_named
from scf.verification.science_darcy import LOG_K, PRESSURE, darcy_figures, darcy_law
from scf.verification.verify_science import train_case

SYSTEM = DarcyFlow(8)


def records(num: int, seed: int = 0) -> np.ndarray:
    return SYSTEM.sample(num, np.random.default_rng(seed))


def test_records_obey_the_law_to_rounding() -> None:
    x = records(20)
    fields = {PRESSURE: torch.from_numpy(x[:, 0]), LOG_K: torch.from_numpy(x[:, 1])}
    assert float(darcy_law(8).residual(fields).abs().max()) < 1e-9


def test_finite_elements_find_the_same_pressure() -> None:
    """For K = 1 the centre of the square has 0.0736713; both converge to it from the grid's side."""
    fine = DarcyFlow(24)
    flat = np.zeros((1, 24, 24))
    for pressure in (fine.solve(flat), fine.resolve(flat)):
        assert pressure[0, 11:13, 11:13].mean() == pytest.approx(0.0736713, rel=0.01)
    x = records(20)
    apart = np.abs(SYSTEM.resolve(x[:, 1]) - x[:, 0]).mean() / x[:, 0].mean()
    assert apart < 0.12  # 8 cells a side: the two discretisations differ by that much


def test_true_records_have_perfect_figures() -> None:
    rng = np.random.default_rng(0)
    figures = darcy_figures(SYSTEM, records(600), records(600, seed=1), rng)
    assert figures["residual_mae"] < 1e-9
    assert figures["resolve_error"] == pytest.approx(figures["resolve_floor"], rel=0.2)
    assert figures["sliced_wasserstein_ratio"] < 1.6
    assert figures["amplitude_error"] < 0.06


def test_a_small_amplitude_does_not_hide_behind_its_residual() -> None:
    """Records of half the spread in ln K, solved: the residual is zero and two figures say no."""
    tame = DarcyFlow(8, spread=0.35).sample(600, np.random.default_rng(1))
    figures = darcy_figures(SYSTEM, records(600), tame, np.random.default_rng(0))
    assert figures["residual_mae"] < 1e-9
    assert figures["amplitude_error"] > 0.3
    assert figures["sliced_wasserstein_ratio"] > 3


def test_pressure_of_another_record_is_found_by_solving_anew() -> None:
    x = records(200)
    mixed = np.stack([np.roll(x[:, 0], 1, axis=0), x[:, 1]], axis=1)
    figures = darcy_figures(SYSTEM, records(200, seed=2), mixed, np.random.default_rng(0))
    assert figures["resolve_error"] > 0.3
    assert figures["residual_mae"] > 1


def test_samples_are_measured_before_and_after_they_keep_the_law(monkeypatch) -> None:
    """A model of some steps: its samples break the law, and keep it to what was asked for."""
    monkeypatch.setattr(science_figures, "_DARCY_SAMPLES", 24)
    monkeypatch.setattr(science_figures, "_SAMPLES", 64)
    case = dataclasses.replace(
        case_named("darcy"), make=lambda _: SYSTEM, num=400, laws=(darcy_law(8),),
        settings={"max_steps": 10, "calibration_particles": 0, "preset": "tiny"},
    )  # fmt: skip
    try:
        model, system, _ = train_case(case, seconds=60.0, seed=0)
        figures = science_figures.measure_case(model, case, system, seed=0).figures
    finally:
        forget(darcy_law(8).name)
    assert figures["drawn_residual_mae"] > 0.1
    assert figures["residual_mae"] < 0.01
    assert 0 < figures["moved_pressure"] < 0.5
    assert 0 < figures["moved_log_k"] < 0.5


def test_sliced_wasserstein_of_a_shift_and_its_floor() -> None:
    """Shifted by s along one of D axes: s times the mean |component| of a unit vector."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 3))
    shift = np.array([2.0, 0.0, 0.0])
    found = sliced_wasserstein(x, x + shift, np.random.default_rng(1), projections=4000)
    assert found == pytest.approx(1.0, rel=0.05)  # E|u_1| = 1/2 on the sphere
    apart, floor = beside_floor(x, rng.standard_normal((2000, 3)), rng)
    assert apart < 2 * floor
    assert floor < 0.05
