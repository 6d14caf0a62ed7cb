"""The truth must be true: each reference system against independent calculations."""

import numpy as np
import pytest

from scf.verification.reference_systems import (
    GaussianField,
    GaussianMixture,
    GinzburgLandauChain,
    Phi4,
    hmc,
)

SYSTEMS = {
    "field": (GaussianField.power_law(6), (0.0, 0.3)),
    "ring": (GaussianMixture.ring(), (0.0, 0.3)),
    "phi4": (Phi4(4), (0.0,)),
    "chain": (GinzburgLandauChain(8), (0.0,)),
}
CASES = [(name, sigma) for name, (_, sigmas) in SYSTEMS.items() for sigma in sigmas]


@pytest.mark.parametrize(("name", "sigma"), CASES)
def test_the_score_is_minus_the_gradient_of_the_energy(name: str, sigma: float) -> None:
    system = SYSTEMS[name][0]
    rng = np.random.default_rng(0)
    x = 0.7 * rng.standard_normal((3, *system.shape))
    direction = rng.standard_normal(system.shape)
    step = 1e-5

    slope = system.energy(x + step * direction, sigma) - system.energy(x - step * direction, sigma)
    axes = tuple(range(1, x.ndim))

    expected = -(system.score(x, sigma) * direction).sum(axis=axes)
    assert slope / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_mixture_integrates_to_one_at_every_sigma() -> None:
    system = GaussianMixture.ring()
    axis = np.linspace(-4, 4, 401)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    for sigma in (0.05, 0.5):
        mass = np.exp(-system.energy(points, sigma)).sum() * (axis[1] - axis[0]) ** 2
        assert mass == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("system", [GaussianField.power_law(8), GaussianMixture.ring()])
def test_samples_have_the_entropy_of_the_density(system) -> None:
    """E of -log p over samples of p, at sigma 0 and 0.3: two independent draws agree."""
    rng = np.random.default_rng(1)
    for sigma in (0.0, 0.3):
        a, b = (system.sample(4000, rng) for _ in range(2))
        a = a + sigma * rng.standard_normal(a.shape)
        b = b + sigma * rng.standard_normal(b.shape)
        ea, eb = system.energy(a, sigma), system.energy(b, sigma)
        error = np.hypot(ea.std(), eb.std()) / np.sqrt(4000)
        assert abs(ea.mean() - eb.mean()) < 4 * error
        # Stein: E[x . score] = -D for any density that vanishes at infinity.
        axes = tuple(range(1, a.ndim))
        product = (a * system.score(a, sigma)).sum(axis=axes)
        dim = np.prod(system.shape)
        assert product.mean() == pytest.approx(-dim, abs=4 * product.std() / np.sqrt(4000))


def test_the_field_has_its_spectrum() -> None:
    system = GaussianField.power_law(8)
    x = system.sample(20_000, np.random.default_rng(2))
    power = (np.abs(np.fft.fft2(x, norm="ortho")) ** 2).mean(axis=0)

    assert power == pytest.approx(system.power, rel=0.06)


def test_phi4_at_lambda_zero_is_a_gaussian_and_log_z_is_exact() -> None:
    free = Phi4(4, kappa=0.15, lam=0.0).with_log_z(np.random.default_rng(3), chains=200, levels=20)
    k = 2 * np.pi * np.arange(4) / 4
    stiffness = 1 - 0.3 * (np.cos(k)[:, None] + np.cos(k)[None, :])

    assert free.log_z == pytest.approx(0.5 * np.log(np.pi / stiffness).sum(), abs=1e-9)


def test_phi4_log_z_agrees_with_brute_force_on_two_by_two() -> None:
    """On 2 x 2 sites the integral can be done on a grid."""
    system = Phi4(2, kappa=0.21, lam=0.3)
    axis = np.linspace(-4, 4, 41)
    grid = np.stack(np.meshgrid(axis, axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 2, 2)
    exact = np.log(np.exp(-system.action(grid)).sum() * (axis[1] - axis[0]) ** 4)

    estimate = system.with_log_z(np.random.default_rng(4), chains=2000, levels=40).log_z
    assert estimate == pytest.approx(exact, abs=0.02)


def test_the_chain_has_the_same_z_on_a_finer_grid_and_by_brute_force() -> None:
    chain = GinzburgLandauChain(3)
    axis = np.linspace(-3.5, 3.5, 141)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    brute = np.log(np.exp(-chain.action(grid)).sum() * (axis[1] - axis[0]) ** 3)

    assert chain.log_z == pytest.approx(brute, abs=1e-8)


def test_hmc_accepts_and_keeps_the_distribution() -> None:
    """Stein's identity holds for the samples of phi^4: E[x . dS/dx] = D."""
    system = Phi4(4)
    x = system.sample(2000, np.random.default_rng(5))
    product = (x * system.action_gradient(x)).sum(axis=(1, 2))

    assert product.mean() == pytest.approx(16, abs=4 * product.std() / np.sqrt(2000))
    _, acceptance = hmc(
        system.action, system.action_gradient, x, np.random.default_rng(6), trajectories=5
    )
    assert 0.6 < acceptance < 1.0


def test_the_noisy_score_oracle_is_right_where_it_is_known() -> None:
    """At lambda 0 the smoothed density is Gaussian: mode k has variance 1 / (2 a_k) + sigma^2."""
    free = Phi4(4, kappa=0.15, lam=0.0)
    rng = np.random.default_rng(7)
    clean = free.sample(200, rng)
    noisy = clean + 0.5 * rng.standard_normal(clean.shape)
    k = 2 * np.pi * np.arange(4) / 4
    stiffness = 1 - 0.3 * (np.cos(k)[:, None] + np.cos(k)[None, :])
    exact = GaussianField(1 / (2 * stiffness)).score(noisy, 0.5)

    mean, error = free.noisy_score_oracle(clean, noisy, 0.5, rng, draws=100)

    # Draws are correlated: the stated error is a little small, never by a factor of two.
    assert np.sqrt(((mean - exact) ** 2).mean()) < 2 * np.sqrt((error**2).mean())
