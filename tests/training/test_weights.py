"""What changes in training: the step, the averages, and their way through a checkpoint."""

import numpy as np
import torch

from scf.training.distributed import ALONE
from scf.training.train_config import TrainConfig
from scf.training.weights import Weights
from support.gaussian_records import POINT, gaussian_points, record_energy

CONFIG = TrainConfig(device="cpu", gradient_norm_max=0.5, learning_rate=1e-2, warmup_steps=1)


def made(seed: int = 0) -> tuple[Weights, torch.Generator]:
    energy = record_energy(POINT, gaussian_points(100), noise=0.1)
    return Weights(energy, CONFIG, 0.0, ALONE), torch.Generator().manual_seed(seed)


def push(weights: Weights, generator: torch.Generator, step: int) -> None:
    """One step along gradients drawn at random."""
    for parameter in weights.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    weights.step(step)


def test_long_gradients_are_shortened() -> None:
    """All gradients together are no longer than gradient_norm_max when the step is taken."""
    weights, generator = made()
    push(weights, generator, 1)
    norm = torch.cat([parameter.grad.flatten() for parameter in weights.parameters]).norm()
    assert float(norm) <= 0.5 * 1.001


def test_adamw_is_fused_on_a_cpu() -> None:
    """One kernel for all parameters."""
    weights, _ = made()
    assert all(group["fused"] for group in weights._optimizer.param_groups)


def test_weights_that_are_not_finite_are_noticed() -> None:
    """One NaN among them is enough."""
    weights, _ = made()
    assert weights.are_finite()
    with torch.no_grad():
        weights.parameters[0].view(-1)[0] = float("nan")
    assert not weights.are_finite()


def test_a_snapshot_goes_on_bit_for_bit() -> None:
    """Weights, moments and averages taken back give the same next steps."""
    first, generator = made()
    for step in range(1, 6):
        push(first, generator, step)
    snapshot = first.snapshot()
    place = generator.get_state()
    for step in range(6, 10):
        push(first, generator, step)

    second, again = made()
    again.set_state(place)
    second.restore(snapshot)
    for step in range(6, 10):
        push(second, again, step)

    one, other = first.snapshot(), second.snapshot()
    for kind in ("weights", "running_average", "moments"):
        mine, its = getattr(one, kind), getattr(other, kind)
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value.detach().numpy(), its[name].detach().numpy())
