import math

import pytest
import torch

from scf.models.noise import NoiseEmbedding, NoiseRange, loss_weight


def test_levels_stay_in_range_and_cover_it() -> None:
    """Each minibatch has levels near both ends, none outside."""
    noise = NoiseRange()
    sigma = noise.draw(256, torch.Generator().manual_seed(1))
    assert noise.sigma_min <= sigma.min() < 1.1 * noise.sigma_min
    assert 0.9 * noise.sigma_max < sigma.max() <= noise.sigma_max * (1 + 1e-6)


def test_levels_follow_from_the_generator_alone() -> None:
    """The same generator state gives the same levels; another one others."""
    noise = NoiseRange()
    first, again, other = (
        noise.draw(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uniform_half_is_uniform_in_the_logarithm() -> None:
    """With uniform_fraction 1 the mean of ln sigma is the middle of the range."""
    noise = NoiseRange(uniform_fraction=1.0)
    log_sigma = noise.draw(4096, torch.Generator().manual_seed(0)).log().mean()
    middle = (math.log(noise.sigma_min) + math.log(noise.sigma_max)) / 2
    assert float(log_sigma) == pytest.approx(middle, abs=0.01)


def test_steps_run_from_the_top_to_zero() -> None:
    """EDM's ladder begins at sigma_max, passes sigma_min and ends at 0, falling all the way."""
    noise = NoiseRange()
    steps = noise.steps(10)
    assert len(steps) == 11
    assert float(steps[0]) == pytest.approx(noise.sigma_max)
    assert float(steps[-2]) == pytest.approx(noise.sigma_min)
    assert steps[-1] == 0
    assert (steps.diff() < 0).all()


def test_weight_is_edm_s() -> None:
    """(sigma^2 + 1) / sigma^2 with sigma_data 1."""
    assert loss_weight(torch.tensor([1.0, 2.0])).tolist() == [2.0, 1.25]


def test_embedding_is_smooth_in_the_logarithm() -> None:
    """Its slope stays below pi for each wave, so that dE/d(ln sigma) is learnable."""
    embedding = NoiseEmbedding()
    log_sigma = torch.linspace(-5, 4, 200).requires_grad_()
    slope = torch.autograd.grad(embedding(log_sigma).sum(), log_sigma)[0]
    assert embedding(log_sigma).shape == (200, embedding.size)
    assert slope.abs().max() < math.pi * embedding.size
