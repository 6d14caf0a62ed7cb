"""Every loss has its optimum in closed form on Gaussian data: right sign, right size.

torchebm trained energies upside down until 2026-09 because no such test stood (research, ebdm).
"""

import numpy as np
import pytest
import torch

from scf.models.energy_model import Derivatives
from scf.models.losses import denoising_and_dual, expected_noise
from support.gaussian_records import POINT, gaussian_points, record_energy

SIZE = 6


class ScaledGaussian:
    """E = k |z|^2 / (2 v) + m (D/2) ln(2 pi v) with v = 1 + sigma^2; the truth is k = m = 1."""

    def __init__(self, k: float, m: float = 1.0) -> None:
        self.k, self.m = k, m

    def derivatives(self, z, sigma, c, *, create_graph):
        v = 1 + sigma.square()
        squares = z.square().sum(dim=1)
        slope = sigma.square() / v * (self.m * SIZE - self.k * squares / v)
        energy = self.k * squares / (2 * v) + self.m * SIZE / 2 * torch.log(2 * torch.pi * v)
        return Derivatives(energy, self.k * z / v[:, None], slope)


def losses_of(model, sigma: float, num: int = 40_000):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(num, SIZE, generator=generator) for _ in range(2))
    found = denoising_and_dual(
        model, clean, noise, torch.full((num,), sigma), torch.zeros(num, 0), create_graph=False
    )
    return float(found.denoising_B.mean()), float(found.dual_B.mean())


def best(values, of) -> float:
    """Where a parabola through three points has its minimum."""
    a, b, c = (of(value) for value in values)
    step = values[1] - values[0]
    return values[1] + step * (a - c) / (2 * (a - 2 * b + c))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_denoising_is_least_at_the_true_score(sigma: float) -> None:
    """The loss is a parabola in k with its minimum at k = 1, not at -1 or 1/D."""
    k = best([0.5, 1.0, 1.5], lambda k: losses_of(ScaledGaussian(k), sigma)[0])
    assert k == pytest.approx(1.0, abs=0.05 / sigma**0.5 * 0.5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_denoising_at_the_optimum_is_one(sigma: float) -> None:
    """EDM's weight makes the least loss of unit Gaussian data 1 at every noise level."""
    assert losses_of(ScaledGaussian(1.0), sigma)[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_dual_is_least_at_the_true_slope_in_k(sigma: float) -> None:
    """Scaling the quadratic part away from the truth costs."""
    k = best([0.5, 1.0, 1.5], lambda k: losses_of(ScaledGaussian(k), sigma)[1])
    assert k == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_dual_is_least_at_the_true_normaliser(sigma: float) -> None:
    """It pins (D/2) ln(2 pi v): the part that no score can see."""
    m = best([0.5, 1.0, 1.5], lambda m: losses_of(ScaledGaussian(1.0, m), sigma)[1])
    assert m == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_dual_s_floor_is_the_posterior_variance(sigma: float) -> None:
    """At the truth: variance of |n|^2 given z, (2 + 4 sigma^2) / v^2 a number."""
    v = 1 + sigma**2
    expected = (2 + 4 * sigma**2) / v**2
    assert losses_of(ScaledGaussian(1.0), sigma)[1] == pytest.approx(expected, rel=0.03)


def test_with_the_true_score_gaussian_targets_do_not_fluctuate() -> None:
    """The Gaussian model on its own data: both targets keep their mean, the first its value too."""
    x = gaussian_points(4000)
    energy = record_energy(POINT, x)
    base = energy.model.base
    z, c = energy.to_model(x, np.zeros((4000, 0)))
    w = base.rotate(z, c)
    true_score = -base.turn_back(w / base.variance_D)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape, generator=generator)
    for sigma in (0.05, 0.5, 3.0):
        sigma_B = torch.full((len(z),), sigma)
        found = denoising_and_dual(
            energy.model, z, noise, sigma_B, c, true_score_BD=true_score, create_graph=False
        )
        plain = denoising_and_dual(energy.model, z, noise, sigma_B, c, create_graph=False)
        assert float(found.denoising_B.detach().max()) < 1e-6
        assert float(found.dual_B.detach().mean()) < float(plain.dual_B.detach().mean())


def test_the_mixed_slope_target_has_the_right_mean() -> None:
    """Least at the true slope: shifting it either way costs shift^2 / D, nothing to first order."""
    x = gaussian_points(40_000)
    energy = record_energy(POINT, x)
    base = energy.model.base
    z, c = energy.to_model(x, np.zeros((len(x), 0)))
    true_score = -base.turn_back(base.rotate(z, c) / base.variance_D)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.full((len(z),), 0.7)
    found = denoising_and_dual(energy.model, z, noise, sigma, c, true_score_BD=true_score).dual_B
    slope = energy.model.derivatives(z + 0.7 * noise, sigma, c).noise_slope_B
    n = base.turn_gradient(noise)
    gap = base.variance_D / base.total_variance(sigma)
    target = (1 - n**2 + gap * (n * (n + 0.7 * base.turn_gradient(true_score)) - 1)).sum(1)
    torch.testing.assert_close(found, (slope - target) ** 2 / 2, rtol=1e-3, atol=1e-4)
    error = (slope - target).detach()
    assert abs(float(error.mean())) < 4 * float(error.std()) / len(error) ** 0.5


def some_points(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Records of two far modes of unequal weight, noises, and levels from small to large."""
    generator = torch.Generator().manual_seed(3)
    side = torch.where(torch.rand(num, generator=generator) < 0.3, -4.0, 4.0)
    x = side[:, None] + 0.3 * torch.randn(num, 2, generator=generator)
    sigma = torch.logspace(-2, 1.3, num)[torch.randperm(num, generator=generator)]
    return x, torch.randn(num, 2, generator=generator), sigma


def test_the_expected_noise_is_the_mean_over_where_a_point_may_have_come_from() -> None:
    """Against the definition, one row at a time in float64; the largest set is itself."""
    x, noise, sigma = some_points(40)
    found = expected_noise(x, noise, sigma, among_MD=x)
    for row in range(40):
        z = x[row].double() + sigma[row].double() * noise[row].double()
        n_MD = (z - x.double()) / sigma[row].double()
        share_M = torch.softmax(-0.5 * n_MD.square().sum(1), dim=0)
        wanted = (share_M[:, None] * n_MD).sum(0)
        torch.testing.assert_close(found.noise_BD[row].double(), wanted, rtol=1e-4, atol=1e-5)
        square = (share_M * n_MD.square().sum(1)).sum()
        torch.testing.assert_close(found.square_B[row].double(), square, rtol=1e-4, atol=1e-5)


def test_points_far_apart_keep_their_own_noise() -> None:
    x = torch.arange(12.0).view(6, 2) * 10
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    found = expected_noise(x, noise, torch.full((6,), 0.01), among_MD=x)
    torch.testing.assert_close(found.noise_BD, noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.square_B, noise.square().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sigma", "share"), [(0.1, 0.9), (0.7, 0.2), (3.0, 0.1)])
def test_shared_targets_have_the_same_mean_and_fluctuate_less(sigma: float, share: float) -> None:
    """Unit Gaussian data in the plane: E[n | z] = sigma z / v and E[|n|^2 | z] are known.

    What the targets have beyond that goes along with no function of z (tried: 1, z, |z|^2), so the
    optimum is the same; of its mean square at most `share` is left with 64 records.
    """
    generator = torch.Generator().manual_seed(5)
    v = 1 + sigma**2
    moments, left = [], []
    for _ in range(150):
        x, noise = (torch.randn(64, 2, generator=generator) for _ in range(2))
        found = expected_noise(x, noise, torch.full((64,), sigma), among_MD=x)
        z = x + sigma * noise
        mean_n, mean_square = sigma * z / v, 2 / v + sigma**2 * z.square().sum(1) / v**2
        gap_n, gap_square = found.noise_BD - mean_n, found.square_B - mean_square
        own = noise - mean_n, noise.square().sum(1) - mean_square
        moments.append(
            [gap_n.mean(), (gap_n * z).mean(), (gap_n * z * z.square().sum(1)[:, None]).mean(),
             gap_square.mean(), (gap_square * z.square().sum(1)).mean()]
        )  # fmt: skip
        left.append([gap_n.square().mean() / own[0].square().mean(),
                     gap_square.square().mean() / own[1].square().mean()])  # fmt: skip
    table = torch.tensor(moments)
    assert (table.mean(0).abs() < 4 * table.std(0) / len(table) ** 0.5).all()
    assert (torch.tensor(left).mean(0) < share).all()
