"""Draws under laws: exact where that can be known, and no cheat where it cannot."""

import numpy as np
import pytest
import torch

from scf.core.errors import UsageError
from scf.models.physics import PhysicsConstraint, forget, register
from scf.models.record import FieldLayout, RecordLayout
from scf.models.restraint import LawsNotKept
from scf.verification.reference_darcy import DarcyFlow
from scf.verification.science_darcy import LOG_K, PRESSURE, darcy_figures, darcy_law
from support.gaussian_records import COVARIANCE, MEAN, POINT, gaussian_points, record_energy

TAU = 0.2
SUM = PhysicsConstraint(
    name="sum_is_one", unit="m", needs=("x",), tolerance=TAU,
    residual=lambda fields: fields["x"].sum(dim=1) - 1.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def laws():
    names = [register(law).name for law in (SUM, darcy_law(8))]
    yield
    for name in names:
        forget(name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moves_draw_from_the_product_of_energy_and_law() -> None:
    """Gaussian records and a linear law: mean and covariance are those of the product, exactly known."""
    energy = record_energy(POINT, gaussian_points(20_000), width=4)
    none = np.zeros((1500, 0))
    start = gaussian_points(1500, seed=1)
    drawn = energy.restrain(start, none, ["sum_is_one"], sigma=1.5, moves=8, generator=generator())
    one = np.ones(2)
    covariance = np.linalg.inv(np.linalg.inv(COVARIANCE) + np.outer(one, one) / TAU**2)
    mean = covariance @ (np.linalg.solve(COVARIANCE, MEAN) + one * 1.0 / TAU**2)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.07)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.07)
    assert (drawn.sum(axis=1) - 1).std() == pytest.approx(TAU, rel=0.05)


def test_a_law_is_kept_to_its_tolerance_and_not_to_nothing() -> None:
    """The first draw alone: residuals are normal with the tolerance that was asked for."""
    energy = record_energy(POINT, gaussian_points(2000))
    start = gaussian_points(2000, seed=1)
    for tau in (0.05, 0.01):
        drawn = energy.restrain(
            start, np.zeros((2000, 0)), {"sum_is_one": tau}, sigma=1.0, generator=generator()
        )
        assert (drawn.sum(axis=1) - 1).std() == pytest.approx(tau, rel=0.1)


def test_numbers_that_are_held_stay() -> None:
    energy = record_energy(POINT, gaussian_points(2000))
    start = gaussian_points(50, seed=1)
    held = np.zeros((50, 2), dtype=bool)
    held[:, 0] = True
    drawn = energy.restrain(
        start, np.zeros((50, 0)), {"sum_is_one": 0.01}, sigma=2.0, moves=2, is_held_ND=held,
        generator=generator(),
    )  # fmt: skip
    np.testing.assert_array_equal(drawn[:, 0], start[:, 0])
    assert np.abs(drawn.sum(axis=1) - 1).max() < 0.06


def test_an_inequality_moves_only_records_that_break_it() -> None:
    register(
        PhysicsConstraint(
            name="above_minus_two", unit="m", needs=("x",), tolerance=0.01,
            residual=lambda fields: (-2.0 - fields["x"]).clamp(min=0),
        )
    )  # fmt: skip
    try:
        energy = record_energy(POINT, gaussian_points(2000))
        start = gaussian_points(400, seed=1)
        drawn = energy.restrain(
            start, np.zeros((400, 0)), ["above_minus_two"], generator=generator()
        )
    finally:
        forget("above_minus_two")
    broken = (start < -2).any(axis=1)
    np.testing.assert_allclose(drawn[~broken], start[~broken], atol=1e-5)
    assert (drawn[broken] < -2.05).sum() == 0


def test_darcy_records_are_brought_to_the_law_and_keep_their_amplitude() -> None:
    """Second differences, stiff: spoiled records keep the law again, solved anew and not tamed."""
    system = DarcyFlow(8)
    layout = RecordLayout.of(
        [FieldLayout(PRESSURE, "float64", (8, 8), "Pa"), FieldLayout(LOG_K, "float64", (8, 8), "1")]
    )
    rng = np.random.default_rng(0)
    true = system.sample(400, rng)

    def rows(x: np.ndarray) -> np.ndarray:
        return layout.pack_modelled({PRESSURE: x[:, 0], LOG_K: x[:, 1]})

    energy = record_energy(layout, rows(true))
    spoiled = true + 0.03 * true.std(axis=(0, 2, 3), keepdims=True) * rng.standard_normal(
        true.shape
    )
    kept = energy.restrain(
        rows(spoiled[:60]), np.zeros((60, 0)), {"darcy_pressure": 0.01}, generator=generator()
    )
    fields = layout.unpack(kept)
    drawn = np.stack([fields[PRESSURE], fields[LOG_K]], axis=1)
    before = darcy_figures(system, true, spoiled[:60], np.random.default_rng(1))
    after = darcy_figures(system, true, drawn, np.random.default_rng(1))
    assert before["residual_mae"] > 0.1
    assert after["residual_mae"] < 0.01
    assert after["resolve_error"] < 1.1 * after["resolve_floor"]
    for name in ("amplitude_pressure", "amplitude_log_k"):
        assert after[name] == pytest.approx(before[name], rel=0.03)
    assert after["sliced_wasserstein"] < 1.1 * before["sliced_wasserstein"]


def test_a_law_that_cannot_be_kept_is_an_error() -> None:
    """No number pretends that x^2 + 1 = 0."""
    register(
        PhysicsConstraint(
            name="impossible", unit="m2", needs=("x",), tolerance=0.01,
            residual=lambda fields: fields["x"].square() + 1,
        )
    )  # fmt: skip
    energy = record_energy(POINT, gaussian_points(200))
    try:
        with pytest.raises(LawsNotKept, match="5 of 5 samples"):
            energy.restrain(
                gaussian_points(5), np.zeros((5, 0)), ["impossible"], generator=generator()
            )
    finally:
        forget("impossible")


def test_unknown_laws_and_tolerances_are_named() -> None:
    energy = record_energy(POINT, gaussian_points(200))
    for asked, words in (({"closure": 1.0}, "closure"), ({"sum_is_one": 0.0}, "above 0")):
        with pytest.raises(UsageError, match=words):
            energy.restrain(gaussian_points(5), np.zeros((5, 0)), asked, generator=generator())
