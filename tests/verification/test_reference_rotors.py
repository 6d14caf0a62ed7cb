import numpy as np
import pytest

from scf.verification.reference_rotors import RotorRing
from scf.verification.reference_systems import GaussianMixture


def test_neighbours_agree_as_the_transfer_matrix_says() -> None:
    """<cos(theta_i - theta_j)> of samples, against d ln Z / d beta per rotor."""
    ring, step = RotorRing(8, 1.5), 1e-4

    def log_z(beta: float) -> float:
        return float(np.log((RotorRing(8, beta)._spectrum() ** 8).sum()))

    exact = (log_z(1.5 + step) - log_z(1.5 - step)) / (2 * step) / 8
    x = ring.sample(4000, np.random.default_rng(0))
    found = (x * np.roll(x, 1, axis=2)).sum(axis=1).mean()
    assert found == pytest.approx(exact, abs=0.01)


def test_smoothed_energy_is_the_integral_over_all_angles() -> None:
    """Four rotors, two million random rings: the same number within Monte Carlo error."""
    rng = np.random.default_rng(0)
    ring = RotorRing(4, 1.0)
    theta = rng.uniform(-np.pi, np.pi, size=(400_000, 4))
    weight = np.exp(np.cos(theta - np.roll(theta, 1, axis=1)).sum(axis=1))
    unit = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    y = ring.sample(3, rng) + 0.5 * rng.standard_normal((3, 2, 4))
    for record, energy in zip(y, ring.energy(y, 0.5), strict=True):
        near = np.exp(-((record - unit) ** 2).sum(axis=(1, 2)) / 0.5) / (np.pi * 0.5) ** 4
        assert energy == pytest.approx(-np.log((weight * near).mean() / weight.mean()), abs=0.03)


def test_score_is_the_slope_of_the_energy() -> None:
    ring, rng = RotorRing(6, 1.5), np.random.default_rng(1)
    y = ring.sample(5, rng) + 0.2 * rng.standard_normal((5, 2, 6))
    score, step = ring.score(y, 0.2), 1e-5
    for channel, site in ((0, 0), (1, 0), (0, 5), (1, 3)):
        move = np.zeros((2, 6))
        move[channel, site] = step
        slope = (ring.energy(y - move, 0.2) - ring.energy(y + move, 0.2)) / (2 * step)
        np.testing.assert_allclose(score[:, channel, site], slope, rtol=1e-5, atol=1e-6)


def test_on_the_circle_there_is_no_density() -> None:
    with pytest.raises(ValueError, match="circle"):
        RotorRing(4).energy(np.zeros((1, 2, 4)), 0.0)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_mixtures_in_many_dimensions_have_separate_modes(size: int) -> None:
    """Each mode is told from the others, and every number moves about as much as the next."""
    system = GaussianMixture.cloud(size)
    x = system.sample(4000, np.random.default_rng(0))
    share = np.bincount(system.likeliest(x), minlength=6) / len(x)
    np.testing.assert_allclose(share, system.weights, atol=0.08 if size == 2 else 0.03)
    assert 0.4 < x.std(axis=0).mean() < 2.0
