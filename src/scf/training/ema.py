"""An average of the weights over the last part of a run, however long the run is.

Power-function average (EDM2, Karras et al. 2024, arXiv 2312.02696 eq. 8): after step t

    average <- beta_t average + (1 - beta_t) weights,    beta_t = (1 - 1/t)^(gamma + 1)

Its width is a fixed share of t, so there is nothing to tune to the length of a run and no need to
know when it ends.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class PowerAverage:
    """The running average. `weights` are its own tensors, in the order of the parameters."""

    def __init__(self, parameters: Iterable[Tensor], *, gamma: float) -> None:
        self.weights = [parameter.detach().clone() for parameter in parameters]
        self.gamma = gamma

    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        beta = (1 - 1 / step) ** (self.gamma + 1)
        current = [parameter.detach() for parameter in parameters]
        torch._foreach_lerp_(self.weights, current, 1 - beta)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average over `parameters`."""
        for parameter, weight in zip(parameters, self.weights, strict=True):
            parameter.copy_(weight)
