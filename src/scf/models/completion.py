"""Fill in what is missing in a record: draws of the unknown numbers given the known ones.

p(z_U | z_K; sigma) is exp(-E(z, sigma)) seen as a function of the unknown part alone. With an
energy nothing else is needed, and Metropolis steps make it exact in the limit, where replacing the
known part inside a diffusion sampler stays biased (Lugmayr et al. 2022 repeat it to hide that).

From sigma_max, where p is the Gaussian base and the conditional is drawn exactly, down to
`sigma_end`, with MALA steps at each level in the coordinates of the base's conditional,

    z_U = m + L^-T y,   L L^T = P_UU,   m = -P_UU^-1 P_UK (z_K - mean_K),   P = (C + sigma^2)^-1

in which a Gaussian stands still from level to level.
"""

import math

import torch
from torch import Tensor

from scf.models.descent import geometric_levels
from scf.models.energy_model import EnergyModel
from scf.models.noise import NoiseRange

# Shapes: B records, D modelled numbers, U unknown of them, K given numbers.

_ACCEPTANCE = 0.6


def complete(
    model: EnergyModel,
    noise: NoiseRange,
    z_BD: Tensor,
    known_D: Tensor,
    c_BK: Tensor,
    *,
    sigma_end: float | None = None,
    levels: int = 32,
    moves: int = 6,
    generator: torch.Generator,
) -> Tensor:
    """Records (B, D) whose known numbers are those of `z_BD`, the others drawn given them.

    Args:
        model: The energy.
        noise: Its trained range.
        z_BD: Records in the model's coordinates; unknown numbers may be anything finite.
        known_D: True where a number is known, the same for all records.
        c_BK: Given numbers.
        sigma_end: The last level, by default sigma_min. Energies are surer at somewhat more noise;
            known numbers count as points of the density smoothed by it.
        levels: Noise levels.
        moves: MALA steps at each; three times as many at the last.
        generator: On the CPU.
    """
    ladder = geometric_levels(noise.sigma_max, sigma_end or noise.sigma_min, levels)
    unknown = (~known_D).nonzero()[:, 0]
    if len(unknown) == 0:
        return z_BD
    y_BU = torch.randn(len(z_BD), len(unknown), generator=generator).to(z_BD.device)
    step_size = 0.3
    level = None
    for place, sigma in enumerate(ladder):
        level = _Conditional(model, sigma, z_BD, unknown, c_BK)
        energy_B, gradient_BU = level.evaluate(y_BU)
        for _ in range(moves * (3 if place == levels - 1 else 1)):
            white_BU = torch.randn(y_BU.shape, generator=generator).to(z_BD.device)
            new_BU = y_BU - 0.5 * step_size * gradient_BU + math.sqrt(step_size) * white_BU
            new_B, new_slope_BU = level.evaluate(new_BU)
            back_BU = y_BU - new_BU + 0.5 * step_size * new_slope_BU
            log_ratio_B = energy_B - new_B
            log_ratio_B += 0.5 * (white_BU.square() - back_BU.square() / step_size).sum(dim=1)
            chance_B = torch.rand(len(y_BU), generator=generator).to(z_BD.device)
            take_B = chance_B.log() < log_ratio_B
            y_BU = torch.where(take_B[:, None], new_BU, y_BU)
            gradient_BU = torch.where(take_B[:, None], new_slope_BU, gradient_BU)
            energy_B = torch.where(take_B, new_B, energy_B)
            taken = float(take_B.float().mean())
            step_size = min(1.0, max(1e-4, step_size * math.exp(0.5 * (taken - _ACCEPTANCE))))
    assert level is not None
    drawn_BD = level.to_z(y_BU)
    clean_BD = model.denoise(drawn_BD, drawn_BD.new_full((len(drawn_BD),), ladder[-1]), c_BK)
    return torch.where(known_D, z_BD, clean_BD)


class _Conditional:
    """E as a function of y at one noise level, the known numbers held."""

    def __init__(
        self, model: EnergyModel, sigma: float, z_BD: Tensor, unknown: Tensor, c_BK: Tensor
    ) -> None:
        self._model, self._c_BK, self._z_BD, self._unknown = model, c_BK, z_BD, unknown
        self._sigma_B = z_BD.new_full((len(z_BD),), sigma)
        base = model.base
        inverse_D = 1 / (base.variance_D.double() + sigma**2)
        mean_BD = (c_BK @ base.slope_DK.T).double()
        centred_BD = z_BD.double() - mean_BD
        centred_BD[:, unknown] = 0.0
        if base.vectors_DD is None:
            # One by one: any coordinates will do for Metropolis steps, these cost least.
            self._factor_UU = None
            marginal_D = base.spread_of(base.variance_D[None])[0]
            self._spread_U = (marginal_D[unknown] + sigma**2).sqrt()
            self._mean_BU = mean_BD[:, unknown].to(z_BD.dtype)
            return
        vectors_DD = base.vectors_DD.double()
        precision_UD = (vectors_DD[unknown] * inverse_D) @ vectors_DD.T
        factor_UU = torch.linalg.cholesky(precision_UD[:, unknown])
        pull_BU = centred_BD @ precision_UD.T
        shift_BU = -torch.cholesky_solve(pull_BU.T, factor_UU).T
        self._factor_UU = factor_UU.to(z_BD.dtype)
        self._mean_BU = (mean_BD[:, unknown] + shift_BU).to(z_BD.dtype)

    def to_z(self, y_BU: Tensor) -> Tensor:
        if self._factor_UU is None:
            part_BU = y_BU * self._spread_U
        else:
            part_BU = torch.linalg.solve_triangular(self._factor_UU.T, y_BU.T, upper=True).T
        z_BD = self._z_BD.clone()
        z_BD[:, self._unknown] = self._mean_BU + part_BU
        return z_BD

    def evaluate(self, y_BU: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and dE/dy (B, U)."""
        found = self._model.derivatives(self.to_z(y_BU), self._sigma_B, self._c_BK)
        slope_BU = found.gradient_BD.detach()[:, self._unknown]
        if self._factor_UU is None:
            return found.energy_B.detach(), slope_BU * self._spread_U
        turned = torch.linalg.solve_triangular(self._factor_UU, slope_BU.T, upper=False).T
        return found.energy_B.detach(), turned
