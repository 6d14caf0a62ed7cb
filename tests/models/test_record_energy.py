import numpy as np
import pytest
import torch

from scf.models.record import FieldLayout, RecordLayout
from scf.models.record_energy import as_fields
from support.gaussian_records import POINT, exact_energy, gaussian_points, record_energy

NO_GIVEN = np.zeros((50, 0))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_energy_is_minus_log_density_in_the_data_s_own_units(scale: float) -> None:
    """For Gaussian data E(x, sigma) = -ln N(x; mu, C + sigma^2), the Jacobian included."""
    energy = record_energy(POINT, scale * gaussian_points(50_000))
    x = scale * gaussian_points(50, seed=1)
    sigma = 0.7 * scale
    truth = exact_energy(x / scale, 0.7) + 2 * np.log(scale)
    np.testing.assert_allclose(energy.energy(x, sigma, NO_GIVEN), truth, atol=0.08)


def test_score_is_in_the_data_s_own_units() -> None:
    """-dE/dx by finite differences in x."""
    energy = record_energy(POINT, 10 * gaussian_points(500), noise=0.5)
    x = 10 * gaussian_points(50, seed=1)
    step = np.array([0.05, -0.02])
    up, down = (energy.energy(x + s * step, 3.0, NO_GIVEN) for s in (1, -1))
    score = energy.score(x, 3.0, NO_GIVEN)
    np.testing.assert_allclose(up - down, -2 * score @ step, atol=2e-3)
    norms = energy.scored(x, 3.0, NO_GIVEN).score_norm_N
    np.testing.assert_allclose(norms, np.linalg.norm(score, axis=1), rtol=1e-4)


def test_with_several_units_sigma_counts_in_scales() -> None:
    """One number cannot be W/m2 and degC at once: sigma is in multiples of each group's scale."""
    layout = RecordLayout.of(
        [FieldLayout("a", "float64", (), "W/m2"), FieldLayout("b", "float64", (), "degC")]
    )
    x = np.random.default_rng(0).normal(size=(5000, 2)) * [100.0, 2.0]
    energy = record_energy(layout, x)
    assert energy.sigma_unit == "scale of each unit group"
    covariance = np.diag([100.0**2, 2.0**2]) * (1 + 0.5**2)
    truth = exact_energy(x[:50], 0.0, np.zeros(2), covariance)
    np.testing.assert_allclose(energy.energy(x[:50], 0.5, NO_GIVEN), truth, atol=0.15)


def test_denoising_is_the_posterior_mean() -> None:
    """Gaussian data: E[x0 | x] = mu + C (C + sigma^2)^-1 (x - mu)."""
    energy = record_energy(POINT, gaussian_points(20_000))
    x = gaussian_points(50, seed=1)
    from support.gaussian_records import COVARIANCE, MEAN

    gain = COVARIANCE @ np.linalg.inv(COVARIANCE + np.eye(2))
    np.testing.assert_allclose(
        energy.denoise(x, 1.0, NO_GIVEN), MEAN + (x - MEAN) @ gain.T, atol=0.06
    )


def test_samples_come_back_by_field_in_their_dtype() -> None:
    """Arrays by name, [N, *shape], original units and dtype."""
    layout = RecordLayout.of([FieldLayout("n", "int32", (2,), "counts")])
    x = np.random.default_rng(0).normal(100, 10, size=(200, 2))
    energy = record_energy(layout, x)
    sampled = energy.sample(np.zeros((30, 0)), steps=3, generator=torch.Generator().manual_seed(0))
    arrays = as_fields(energy, sampled, np.zeros((30, 0)))
    assert arrays["n"].dtype == np.int32
    assert arrays["n"].shape == (30, 2)
    assert 60 < arrays["n"].mean() < 140


def test_langevin_steps_keep_the_samples_in_place() -> None:
    """A correction by MALA at the smallest noise does not move the moments."""
    energy = record_energy(POINT, gaussian_points(2000))
    sampled = energy.sample(
        np.zeros((4000, 0)), steps=3, generator=torch.Generator().manual_seed(0), langevin_steps=5
    )
    np.testing.assert_allclose(np.cov(sampled.T), np.cov(gaussian_points(2000).T), atol=0.2)
