"""The Gaussian that a model departs from: mean linear in given numbers, covariance in three forms.

A full matrix of eigenvectors, waves of a periodic grid, or each number alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scf.models.frame import LinearGaussian

# Shapes: B minibatch, D modelled numbers, K given numbers, S sites, C channels (fields).


class GaussianBase(nn.Module):
    """The Gaussian z | c ~ N(B c, C + sigma^2): its energy and derivatives, exactly.

    Args:
        size: D.
        given_size: K.
        is_full: The eigenvectors of C are a matrix; else they are the unit matrix, or waves.
        waves: The periodic grid (its shape) whose waves they are: for fields on it that are the
            same everywhere. At each wave vector the channels have a small matrix of their own.
    """

    def __init__(
        self, size: int, given_size: int, *, is_full: bool, waves: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.waves = waves
        sites = math.prod(waves) if waves is not None else 0
        channels = size // sites if sites else 0
        self.mixing_SCC: Tensor | None
        self.register_buffer(
            "mixing_SCC", torch.eye(channels).repeat(sites, 1, 1) if sites else None
        )
        self.slope_DK: Tensor
        self.vectors_DD: Tensor | None
        self.variance_D: Tensor
        self.register_buffer("slope_DK", torch.zeros(size, given_size))
        self.register_buffer("vectors_DD", torch.eye(size) if is_full else None)
        self.register_buffer("variance_D", torch.ones(size))
        # Of the true score, where it is known: 1 / its mean square along each eigenvector. For a
        # Gaussian that is the variance; elsewhere it is less.
        self.certain_D: Tensor
        self.register_buffer("certain_D", torch.ones(size))

    def load(self, fitted: LinearGaussian) -> None:
        """Take over a fitted Gaussian."""
        self.slope_DK.copy_(torch.from_numpy(fitted.slope_DK))
        self.variance_D.copy_(torch.from_numpy(fitted.variance_D))
        self.certain_D.copy_(self.variance_D)
        if self.vectors_DD is not None:
            assert fitted.vectors_DD is not None
            self.vectors_DD.copy_(torch.from_numpy(fitted.vectors_DD))
        if self.mixing_SCC is not None:
            assert fitted.mixing_SCC is not None
            self.mixing_SCC.copy_(torch.from_numpy(fitted.mixing_SCC))

    def load_true_score(self, true_score_ND: Tensor) -> None:
        """Measure how far the true score can be trusted along each eigenvector."""
        square_D = self.turn_gradient(true_score_ND).square().mean(dim=0)
        self.certain_D.copy_(torch.minimum(1 / square_D.clamp(min=1e-12), self.variance_D))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Checkpoints of before know no `certain_D`.
        state.setdefault(prefix + "certain_D", state[prefix + "variance_D"])
        super()._load_from_state_dict(state, prefix, *rest)

    def rotate(self, z_BD: Tensor, c_BK: Tensor) -> Tensor:
        """Give w = Q^T (z - B c): centred, along the eigenvectors."""
        return self.turn_gradient(z_BD - c_BK @ self.slope_DK.T)

    def rotate_back(self, w_BD: Tensor, c_BK: Tensor) -> Tensor:
        """Give z = Q w + B c."""
        return self.turn_back(w_BD) + c_BK @ self.slope_DK.T

    def turn_gradient(self, gradient_BD: Tensor) -> Tensor:
        """Give d/dw from d/dz: the rotation without the shift."""
        if self.mixing_SCC is not None:
            waves_BCS = self._transform(
                gradient_BD.view(len(gradient_BD), -1, len(self.mixing_SCC))
            )
            return torch.einsum("bcs,scd->bsd", waves_BCS, self.mixing_SCC).flatten(1)
        return gradient_BD if self.vectors_DD is None else gradient_BD @ self.vectors_DD

    def turn_back(self, w_BD: Tensor) -> Tensor:
        """Give Q w: back from the eigenvectors, without the shift."""
        if self.mixing_SCC is not None:
            w_BSC = w_BD.view(len(w_BD), len(self.mixing_SCC), -1)
            waves_BCS = torch.einsum("bsd,scd->bcs", w_BSC, self.mixing_SCC)
            return self._transform(waves_BCS).flatten(1)
        return w_BD if self.vectors_DD is None else w_BD @ self.vectors_DD.T

    def _transform(self, h_BCS: Tensor) -> Tensor:
        """Hartley's transform over the grid: orthogonal, and its own inverse."""
        assert self.waves is not None
        axes = tuple(range(2, 2 + len(self.waves)))
        modes = torch.fft.fftn(h_BCS.reshape(*h_BCS.shape[:2], *self.waves), dim=axes, norm="ortho")
        waves_BCS: Tensor = (modes.real - modes.imag).flatten(2)
        return waves_BCS

    def spread_of(self, variance_BD: Tensor) -> Tensor:
        """Variance of each number (B, D) from variances along the eigenvectors (B, D)."""
        if self.mixing_SCC is not None:
            # The same at all sites: the mean over wave vectors.
            sites = len(self.mixing_SCC)
            variance_BSC = variance_BD.view(len(variance_BD), sites, -1)
            mean_BC = torch.einsum("bsd,scd->bc", variance_BSC, self.mixing_SCC.square()) / sites
            return mean_BC.repeat_interleave(sites, dim=1)
        if self.vectors_DD is None:
            return variance_BD
        return variance_BD @ self.vectors_DD.square().T

    def total_variance(self, sigma_B: Tensor) -> Tensor:
        """Eigenvalues of C + sigma^2, (B, D)."""
        return self.variance_D + sigma_B[:, None].square()

    def denoise(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the clean record given the noisy one (B, D); lambda / (lambda + sigma^2) (B, D).

        The second goes along the eigenvectors: the share of each direction that is kept.
        """
        kept_BD = self.variance_D / self.total_variance(sigma_B)
        mean_BD = self.turn_back(self.rotate(z_BD, c_BK) * kept_BD) + c_BK @ self.slope_DK.T
        return mean_BD, kept_BD

    def energy(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (B,) in nats, dE/dz (B, D) and dE/d(ln sigma) (B,)."""
        w_BD = self.rotate(z_BD, c_BK)
        variance_BD = self.total_variance(sigma_B)
        pull_BD = w_BD / variance_BD
        energy_B = 0.5 * (w_BD * pull_BD + variance_BD.log() + math.log(2 * math.pi)).sum(dim=1)
        gradient_BD = self.turn_back(pull_BD)
        # From E, a sum of w_i^2 / (2 v_i) + ln(v_i) / 2 with dv_i/d(ln sigma) = 2 sigma^2.
        slope_B = sigma_B.square() * (1 / variance_BD - pull_BD.square()).sum(dim=1)
        return energy_B, gradient_BD, slope_B
