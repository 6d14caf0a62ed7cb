"""Networks that give one number a record. Smooth activations only: energies are derived twice."""

import math

import torch
from torch import Tensor, nn

from scf.models.activation import silu
from scf.models.passes import Chain, Dense, Embedded, Passes, Residual, Side, Silu, Step

# Shapes: B minibatch, I inputs, E embedding, W width.


class ResidualMLP(nn.Module):
    """Inputs (B, I) and a noise embedding (B, E) give a scalar (B,); axes between are allowed.

    h <- h + W2 silu(W1 h + U e). The head starts at zero, so that a new model is its Gaussian base,
    exactly. No normalisation layers: they couple or rescale records and make double backward slow.

    Args:
        num_inputs: I.
        num_embedding: E.
        width: Units of a layer.
        depth: Residual blocks.
        gain: How much larger than usual the first layer's weights begin (`gain_for`).
    """

    def __init__(
        self, num_inputs: int, num_embedding: int, *, width: int, depth: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(num_inputs, width)
        self.enter_noise = nn.Linear(num_embedding, width, bias=False)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.inner_noise = nn.ModuleList(
            nn.Linear(num_embedding, width, bias=False) for _ in range(depth)
        )
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 1)
        for layer in self.outer:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.mul_(depth**-0.5)
        with torch.no_grad():
            self.enter.weight.mul_(gain)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs_BI: Tensor, noise_BE: Tensor) -> Tensor:
        h_BW = self.enter(inputs_BI) + self.enter_noise(noise_BE)
        for inner, inner_noise, outer in zip(self.inner, self.inner_noise, self.outer, strict=True):
            h_BW = h_BW + outer(silu(inner(silu(h_BW)) + inner_noise(noise_BE)))
        scalar_B1: Tensor = in_float32(self.head, silu(h_BW))
        return scalar_B1.squeeze(-1)

    def passes(self, noise: Embedded, num_sites: int) -> Passes:
        """The same, summed over sites, written for training (`models/passes.py`)."""
        side = Side(noise, num_sites)
        steps: list[Step] = [Dense(self.enter, self.enter_noise, side, is_first=True)]
        for inner, inner_noise, outer in zip(self.inner, self.inner_noise, self.outer, strict=True):
            assert isinstance(inner, nn.Linear)
            assert isinstance(inner_noise, nn.Linear)
            assert isinstance(outer, nn.Linear)
            block = Chain([Silu(), Dense(inner, inner_noise, side), Silu(), Dense(outer)])
            steps.append(Residual(block))
        return Passes(Chain(steps), side, self.head)


def in_float32(layer: nn.Linear, h: Tensor) -> Tensor:
    """A linear layer in float32, also where the layers before it are in bfloat16.

    An energy is a sum of many terms whose differences count: its head and its sum keep all digits.
    """
    if not torch.is_autocast_enabled(h.device.type):
        plain: Tensor = layer(h)
        return plain
    with torch.autocast(h.device.type, enabled=False):
        exact: Tensor = layer(h.float())
    return exact


def gain_for(num_inputs: int) -> float:
    """First-layer gain: 3 for up to 8 inputs, falling to 1 at 72.

    A few numbers can have modes that are narrow against their whole spread; units that bend there
    from the start halve the energy's error after 13 seconds (ring of eight Gaussians: divergence
    0.0035 against 0.0060; docs/LOG.md).
    """
    return min(3.0, max(1.0, 3.0 * math.sqrt(8 / num_inputs)))
