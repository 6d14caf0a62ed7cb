"""What networks read of a noisy record, with the way back from its derivatives to the record's.

By autograd for whatever the encoder does; by hand where it does the least: a record read along the
eigenvectors and nothing else. There the networks are small, and a dozen kernels fewer in each of
four passes are a fifth of a step.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scf.models.activation import BOUND
from scf.models.gaussian_base import GaussianBase

# Shapes: B minibatch, D modelled numbers, K given numbers, I inputs, S sites, J features of a site.

Made = tuple[Tensor | None, Sequence[Tensor]]


class Inputs(Protocol):
    """Inputs of the networks at one minibatch.

    Attributes:
        read: For each network what it reads, (B, I) or (B, S, J), without a graph.
        known_B: Nats that need no network; None where there are none.
    """

    read: list[Tensor]
    known_B: Tensor | None

    def pulled(self, gradients: Sequence[Tensor], fading_B: Tensor) -> tuple[Tensor, Tensor]:
        """dF/dz (B, D) and dF/d(ln sigma) (B,) through the inputs, of fading times the networks.

        Args:
            gradients: Of each network by what it reads.
            fading_B: The factor.
        """


class DerivedInputs:
    """Any inputs, derived by autograd.

    Args:
        make: (z, ln sigma) -> known nats and the inputs.
        z_BD: The record.
        log_sigma_B: The noise level.
    """

    def __init__(
        self, make: Callable[[Tensor, Tensor], Made], z_BD: Tensor, log_sigma_B: Tensor
    ) -> None:
        with torch.enable_grad():
            self._by = z_BD.detach().requires_grad_(), log_sigma_B.detach().requires_grad_()
            self._known_B, self._made = make(*self._by)
        self.read = [made.detach() for made in self._made]
        self.known_B = None if self._known_B is None else self._known_B.detach()

    def pulled(self, gradients: Sequence[Tensor], fading_B: Tensor) -> tuple[Tensor, Tensor]:
        outputs = list(self._made)
        seeds = [
            gradient * fading_B.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients
        ]
        if self._known_B is not None:
            outputs.append(self._known_B)
            seeds.append(torch.ones_like(self._known_B))
        is_trained = torch.is_grad_enabled()
        by_z_BD, by_log_sigma_B = torch.autograd.grad(
            outputs, self._by, seeds, create_graph=is_trained
        )
        return by_z_BD, by_log_sigma_B


class FlatInputs:
    """bounded(w f) and bounded(c), w = Q^T (z - B c), f = sqrt(lambda) / (lambda + sigma^2).

    As `PhysicsEncoder.forward` gives them without sites, residuals or bounds.
    """

    known_B: Tensor | None = None

    def __init__(self, base: GaussianBase, z_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor) -> None:
        self._base = base
        noise_B1 = (2 * log_sigma_B).exp()[:, None]
        total_BD = base.variance_D + noise_B1
        fading_BD = base.variance_D.sqrt() / total_BD
        whitened_BD = base.rotate(z_BD, c_BK) * fading_BD
        inputs_BI = torch.cat([whitened_BD, c_BK], dim=1) if c_BK.shape[1] else whitened_BD
        # bounded(x) = x r, r = (1 + x^2/25)^(-1/2), with the derivative r^3.
        root_BI = (1 + inputs_BI.square() / BOUND**2).rsqrt_()
        self.read = [inputs_BI * root_BI]
        slope_BD = root_BI[:, : len(base.variance_D)].pow(3)
        self._by_w_BD = slope_BD * fading_BD
        # df/d(ln sigma) = -2 sigma^2 f / (lambda + sigma^2).
        self._by_noise_BD = slope_BD * whitened_BD * (-2 * noise_B1 / total_BD)

    def pulled(self, gradients: Sequence[Tensor], fading_B: Tensor) -> tuple[Tensor, Tensor]:
        by_read_BD = gradients[0][:, : len(self._base.variance_D)] * fading_B[:, None]
        by_z_BD = self._base.turn_back(by_read_BD * self._by_w_BD)
        return by_z_BD, (by_read_BD * self._by_noise_BD).sum(dim=1)
