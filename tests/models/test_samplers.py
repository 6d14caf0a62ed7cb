import numpy as np
import pytest
import torch

from scf.models.samplers import heun, mala
from support.gaussian_records import COVARIANCE, MEAN, POINT, gaussian_points, record_energy


def test_gaussian_data_are_sampled_exactly_in_two_steps() -> None:
    """The solver's coordinates stand still for a Gaussian: no step is needed, so no error is made."""
    x = gaussian_points(5000)
    energy = record_energy(POINT, x)
    generator = torch.Generator().manual_seed(0)
    sampled = energy.sample(np.zeros((20_000, 0)), steps=2, generator=generator)
    np.testing.assert_allclose(sampled.mean(0), MEAN, atol=0.06)
    np.testing.assert_allclose(np.cov(sampled.T), COVARIANCE, atol=0.12)


def test_the_same_seed_gives_the_same_records() -> None:
    """A sample is a function of model, seed and steps."""
    energy = record_energy(POINT, gaussian_points(200), noise=0.5)
    first, again = (
        energy.sample(np.zeros((10, 0)), steps=5, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_heun_stops_at_a_noise_level_when_asked() -> None:
    """With sigma_end the records are draws of the smoothed density: variance grows by sigma^2."""
    energy = record_energy(POINT, gaussian_points(2000))
    generator = torch.Generator().manual_seed(0)
    z = heun(
        energy.model, energy.noise, torch.zeros(20_000, 0), steps=4, generator=generator,
        sigma_end=2.0,
    )  # fmt: skip
    expected = np.trace(np.diag(energy.model.base.variance_D)) + 2 * 4.0
    assert float(z.var(dim=0).sum()) == pytest.approx(expected, rel=0.03)


def test_mala_leaves_its_density_as_it_is() -> None:
    """Exact draws of exp(-E) stay exact draws: mean and covariance do not drift."""
    energy = record_energy(POINT, gaussian_points(2000))
    base = energy.model.base
    sigma = 0.5
    generator = torch.Generator().manual_seed(0)
    spread = (base.variance_D + sigma**2).sqrt()
    start = torch.randn(8000, 2, generator=generator) * spread
    c = torch.zeros(8000, 0)
    moved = mala(
        energy.model, base.rotate_back(start, c), sigma, c, steps=20, step_size=1.0,
        generator=generator,
    )  # fmt: skip
    w = base.rotate(moved.z_BD, c)
    assert 0.6 < moved.acceptance < 1.0
    torch.testing.assert_close(w.var(dim=0), spread.square(), rtol=0.06, atol=0)
    assert not torch.allclose(w, start)


def test_mala_finds_its_density_from_elsewhere() -> None:
    """Started in one point, it spreads to the right variance."""
    energy = record_energy(POINT, gaussian_points(2000))
    c = torch.zeros(4000, 0)
    generator = torch.Generator().manual_seed(0)
    moved = mala(
        energy.model, torch.zeros(4000, 2), 0.3, c, steps=60, step_size=1.0, generator=generator
    )
    expected = energy.model.base.variance_D + 0.09
    w = energy.model.base.rotate(moved.z_BD, c)
    torch.testing.assert_close(w.var(dim=0), expected, rtol=0.1, atol=0)
