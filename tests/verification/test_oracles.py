"""The oracle for smoothed densities, against closed forms and brute force."""

import numpy as np
import pytest

from scf.verification.oracles import smoothed
from scf.verification.reference_systems import GaussianField, GinzburgLandauChain, Phi4


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_a_free_field_has_its_closed_form(sigma: float) -> None:
    """At lambda 0 all is Gaussian: energy to rounding, score likewise."""
    free = Phi4(4, kappa=0.15, lam=0.0).with_log_z(np.random.default_rng(0), chains=4, levels=1)
    rng = np.random.default_rng(1)
    noisy = free.sample(20, rng) + sigma * rng.standard_normal((20, 4, 4))
    exact = GaussianField(1 / free.stiffness())
    found = smoothed(free, noisy, sigma, rng, draws=4)
    np.testing.assert_allclose(found.energy, exact.energy(noisy, sigma), rtol=1e-6)
    np.testing.assert_allclose(found.score, exact.score(noisy, sigma), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 2.0])
def test_two_by_two_sites_agree_with_a_grid(sigma: float) -> None:
    """A strong coupling, the integral (1) done by brute force; errors are honest."""
    system = Phi4(2, kappa=0.21, lam=0.2)
    rng = np.random.default_rng(2)
    noisy = system.sample(3, rng) + sigma * rng.standard_normal((3, 2, 2))
    axis = np.linspace(-1, 1, 31) * min(4.5, 7 * sigma)
    offsets = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), axis=-1).reshape(-1, 2, 2)
    cell = 4 * np.log((axis[1] - axis[0]) / (sigma * np.sqrt(2 * np.pi)))
    exact = []
    for y in noisy:
        grid = offsets + (y if sigma < 0.3 else 0.0)
        log_p = -system.action(grid) - ((grid - y) ** 2).sum(axis=(1, 2)) / (2 * sigma**2)
        exact.append(-(np.log(np.exp(log_p - log_p.max()).sum()) + log_p.max() + cell))
    found = smoothed(system, noisy, sigma, rng, draws=2000)
    assert np.abs(found.energy - exact).max() < max(5 * found.energy_error.max(), 0.02)


def test_the_score_is_the_gradient_of_the_energy() -> None:
    """On a chain of double wells, by finite differences with the same draws."""
    chain = GinzburgLandauChain(8)
    y = chain.sample(4, np.random.default_rng(3)) + 0.1
    direction = np.random.default_rng(4).standard_normal(y.shape)

    def energy(x: np.ndarray) -> np.ndarray:
        return smoothed(chain, x, 0.15, np.random.default_rng(5), draws=512).energy

    slope = (energy(y + 1e-4 * direction) - energy(y - 1e-4 * direction)) / 2e-4
    found = smoothed(chain, y, 0.15, np.random.default_rng(6), draws=4000)
    error = np.sqrt((found.score_error**2 * direction**2).sum(axis=1))
    np.testing.assert_allclose(slope, -(found.score * direction).sum(axis=1), atol=8 * error.max())
