"""More ways to draw from an energy: Hamiltonian, annealed Langevin, weighted particles.

All move in y = w / sqrt(v), the coordinates in which the Gaussian base is a unit normal: one step
size fits all directions and all noise levels. `samplers.mala` does so as well.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.descent import descend, geometric_levels, resampled
from scf.models.energy_model import EnergyModel
from scf.models.noise import NoiseRange
from scf.models.samplers import Corrected

# Shapes: B records, D modelled numbers, K given numbers.


class _Level:
    """The energy at one noise level as a function of y (B, D)."""

    def __init__(self, model: EnergyModel, sigma: float, c_BK: Tensor) -> None:
        self._model, self._c_BK = model, c_BK
        self._sigma_B = c_BK.new_full((len(c_BK),), sigma)
        self._spread_BD = model.base.total_variance(self._sigma_B).sqrt()

    def to_y(self, z_BD: Tensor) -> Tensor:
        return self._model.base.rotate(z_BD, self._c_BK) / self._spread_BD

    def to_z(self, y_BD: Tensor) -> Tensor:
        return self._model.base.rotate_back(y_BD * self._spread_BD, self._c_BK)

    def evaluate(self, y_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and dE/dy (B, D)."""
        found = self._model.derivatives(self.to_z(y_BD), self._sigma_B, self._c_BK)
        gradient_BD = self._model.base.turn_gradient(found.gradient_BD.detach()) * self._spread_BD
        return found.energy_B.detach(), gradient_BD


def hmc(
    model: EnergyModel,
    z_BD: Tensor,
    sigma: float,
    c_BK: Tensor,
    *,
    trajectories: int,
    step_size: float = 0.15,
    leaps: int = 10,
    generator: torch.Generator,
) -> Corrected:
    """Hamiltonian Monte Carlo at one noise level from records z (B, D) (Duane et al. 1987).

    Leaves exp(-E(., sigma)) unchanged. The step is drawn anew for each trajectory, within 30 per
    cent of `step_size`: with a fixed length a direction whose half period it is would go to and fro
    for ever.
    """
    level = _Level(model, sigma, c_BK)
    y_BD = level.to_y(z_BD)
    energy_B, gradient_BD = level.evaluate(y_BD)
    accepted = 0.0
    for _ in range(trajectories):
        step = step_size * (0.7 + 0.6 * float(torch.rand((), generator=generator)))
        start_BD = torch.randn(y_BD.shape, generator=generator).to(y_BD.device)
        p_BD, q_BD, slope_BD = start_BD, y_BD, gradient_BD
        new_B = energy_B
        for _leap in range(leaps):
            p_BD = p_BD - 0.5 * step * slope_BD
            q_BD = q_BD + step * p_BD
            new_B, slope_BD = level.evaluate(q_BD)
            p_BD = p_BD - 0.5 * step * slope_BD
        kinetic_B = 0.5 * (start_BD.square() - p_BD.square()).sum(dim=1)
        chance_B = torch.rand(len(y_BD), generator=generator).to(y_BD.device)
        take_B = chance_B.log() < energy_B - new_B + kinetic_B
        y_BD = torch.where(take_B[:, None], q_BD, y_BD)
        gradient_BD = torch.where(take_B[:, None], slope_BD, gradient_BD)
        energy_B = torch.where(take_B, new_B, energy_B)
        accepted += float(take_B.float().mean()) / trajectories
    return Corrected(level.to_z(y_BD), accepted)


def annealed_langevin(
    model: EnergyModel,
    noise: NoiseRange,
    c_BK: Tensor,
    *,
    levels: int = 32,
    moves: int = 8,
    step_size: float = 0.05,
    generator: torch.Generator,
) -> Tensor:
    """Unadjusted Langevin steps at falling noise, then a denoising step (Song, Ermon 2019): (B, D).

    No step is ever rejected, so each level carries a bias of order `step_size`; here for comparison
    with the others, which have none.
    """
    ladder = geometric_levels(noise.sigma_max, noise.sigma_min, levels)
    y_BD = torch.randn(len(c_BK), model.layout.size, generator=generator).to(c_BK.device)
    level = _Level(model, ladder[0], c_BK)
    for sigma in ladder:
        level = _Level(model, sigma, c_BK)
        for _ in range(moves):
            _, gradient_BD = level.evaluate(y_BD)
            white_BD = torch.randn(y_BD.shape, generator=generator).to(y_BD.device)
            y_BD = y_BD - 0.5 * step_size * gradient_BD + math.sqrt(step_size) * white_BD
    z_BD = level.to_z(y_BD)
    return model.denoise(z_BD, z_BD.new_full((len(z_BD),), ladder[-1]), c_BK)


class Drawn(NamedTuple):
    """Records from weighted particles, and how even their weights were at the end."""

    z_BD: Tensor
    c_BK: Tensor
    effective_share: float
    log_z: float


def smc(
    model: EnergyModel,
    noise: NoiseRange,
    c_BK: Tensor,
    *,
    levels: int = 48,
    moves: int = 3,
    generator: torch.Generator,
) -> Drawn:
    """Records z (B, D) by sequential Monte Carlo with energy weights, then a denoising step.

    Given numbers are resampled with their particles where the model finds some likelier than
    others; `c_BK` of the answer says whose is whose.
    """
    ladder = geometric_levels(noise.sigma_max, noise.sigma_min, levels)
    way = descend(model, c_BK, ladder, moves=moves, generator=generator)
    *_, last = way
    index = resampled(last, generator)
    c_BK = last.c_PK[index]
    z_BD = model.base.rotate_back(last.w_PD[index], c_BK)
    z_BD = model.denoise(z_BD, z_BD.new_full((len(z_BD),), ladder[-1]), c_BK)
    return Drawn(z_BD, c_BK, last.effective_share, float(last.log_z_G[0]))


def log_z_between(
    model: EnergyModel,
    c_PK: Tensor,
    sigma_high: float,
    sigma_low: float,
    *,
    levels: int = 64,
    moves: int = 2,
    generator: torch.Generator,
    groups: int = 4,
) -> tuple[float, float]:
    """Normaliser ln Z(sigma_low) by annealed importance sampling from sigma_high, with its error.

    ln Z is that of exp(-E): zero where the energy is normalised. At `sigma_high` it is measured
    against the Gaussian base by importance sampling, so it should be a level where the two are
    near. No particle is resampled: the estimate has no bias but what few particles give.
    """
    ladder = geometric_levels(sigma_high, sigma_low, levels)
    way = descend(model, c_PK, ladder, moves=moves, generator=generator, groups=groups,
                  resample_below=0.0)  # fmt: skip
    *_, last = way
    total = float(last.log_z_G.logsumexp(0)) - math.log(groups)
    return total, float(last.log_z_G.std()) / math.sqrt(groups)
