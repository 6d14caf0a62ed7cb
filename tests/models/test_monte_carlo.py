"""Samplers against densities that are integrated on a grid: each must find exp(-E), not the data."""

import numpy as np
import pytest
import torch

from scf.models.completion import complete
from scf.models.descent import geometric_levels
from scf.models.monte_carlo import annealed_langevin, hmc, log_z_between, smc
from support.gaussian_records import POINT, gaussian_points, record_energy

NUM = 4000


@pytest.fixture(scope="module")
def bent():
    """An energy that is far from its Gaussian: random weights."""
    return record_energy(POINT, gaussian_points(500), noise=0.7)


def grid_moments(energy, sigma: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and covariance of exp(-E) over the plane, and ln Z."""
    line = torch.linspace(-7, 7, 401)
    plane = torch.cartesian_prod(line, line)
    with torch.no_grad():
        e = energy.model.energy(plane, torch.full((len(plane),), sigma), torch.zeros(len(plane), 0))
    log_z = (-e.double()).logsumexp(0)
    p = (-e.double() - log_z).exp()[:, None]
    mean = (p * plane).sum(0)
    centred = plane - mean
    cell = 2 * torch.log((line[1] - line[0]).double())
    return mean, (p * centred).T @ centred, float(log_z + cell)


def agrees(z: torch.Tensor, energy, sigma: float, *, smoothing: float = 0.0) -> None:
    mean, covariance, _ = grid_moments(energy, sigma)
    torch.testing.assert_close(z.double().mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(torch.cov(z.double().T), covariance, atol=0.12, rtol=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hmc_finds_its_density_from_elsewhere(bent) -> None:
    moved = hmc(
        bent.model, torch.zeros(NUM, 2), 0.5, torch.zeros(NUM, 0), trajectories=25,
        step_size=0.2, leaps=6, generator=generator(),
    )  # fmt: skip
    assert 0.7 < moved.acceptance <= 1.0
    agrees(moved.z_BD, bent, 0.5)


def test_weighted_particles_follow_the_energy(bent) -> None:
    """SMC down to sigma_min; its ln Z is the grid's."""
    found = smc(bent.model, bent.noise, torch.zeros(NUM, 0), levels=24, generator=generator())
    agrees(found.z_BD, bent, bent.noise.sigma_min)
    assert found.log_z == pytest.approx(grid_moments(bent, bent.noise.sigma_min)[2], abs=0.1)
    assert 0 < found.effective_share <= 1


def test_annealed_langevin_comes_near() -> None:
    """Its bias is of the order of the step, here a twentieth, on a mildly bent density."""
    mild = record_energy(POINT, gaussian_points(500), noise=0.2)
    z = annealed_langevin(
        mild.model, mild.noise, torch.zeros(NUM, 0), levels=16, moves=12, generator=generator()
    )
    mean, covariance, _ = grid_moments(mild, mild.noise.sigma_min)
    torch.testing.assert_close(z.double().mean(0), mean, atol=0.15, rtol=0)
    assert torch.cov(z.double().T).trace() == pytest.approx(float(covariance.trace()), rel=0.15)


def test_annealed_importance_sampling_measures_the_normaliser(bent) -> None:
    """Between two levels, without resampling, with an error that says how sure it is."""
    found, error = log_z_between(
        bent.model, torch.zeros(1024, 0), 30.0, 0.3, levels=32, generator=generator()
    )
    assert found == pytest.approx(grid_moments(bent, 0.3)[2], abs=max(5 * error, 0.05))


def test_a_gaussian_is_completed_exactly() -> None:
    """x1 given x0: the regression line and what is left around it."""
    x = gaussian_points(3000)
    energy = record_energy(POINT, x)
    z, c = energy.to_model(np.repeat(x[:1], NUM, axis=0), np.zeros((NUM, 0)))
    known = torch.tensor([True, False])
    done = complete(energy.model, energy.noise, z, known, c, levels=4, moves=1,
                    generator=generator())  # fmt: skip
    torch.testing.assert_close(done[:, 0], z[:, 0])
    base = energy.model.base
    covariance = (base.vectors_DD * base.variance_D) @ base.vectors_DD.T
    slope = covariance[1, 0] / covariance[0, 0]
    left = covariance[1, 1] - slope * covariance[0, 1]
    assert float(done[:, 1].mean()) == pytest.approx(float(slope * z[0, 0]), abs=0.05)
    assert float(done[:, 1].var()) == pytest.approx(float(left), rel=0.1)


def test_a_bent_density_is_completed_from_its_energy(bent) -> None:
    """Mean and spread of the unknown number along a line of the plane, against the grid."""
    z = torch.full((NUM, 2), 0.6)
    done = complete(bent.model, bent.noise, z, torch.tensor([True, False]), torch.zeros(NUM, 0),
                    levels=12, moves=6, generator=generator())  # fmt: skip
    line = torch.linspace(-7, 7, 2001)
    with torch.no_grad():
        at = torch.stack([torch.full_like(line, 0.6), line], dim=1)
        sigma = torch.full((len(line),), bent.noise.sigma_min)
        p = (-bent.model.energy(at, sigma, torch.zeros(len(line), 0))).softmax(0)
    mean = float((p * line).sum())
    assert float(done[:, 1].mean()) == pytest.approx(mean, abs=0.06)
    assert float(done[:, 1].var()) == pytest.approx(float((p * (line - mean) ** 2).sum()), rel=0.15)


def test_levels_are_even_in_their_logarithm() -> None:
    np.testing.assert_allclose(geometric_levels(8, 1, 4), [8, 4, 2, 1])
