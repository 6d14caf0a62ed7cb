"""Draw records from an energy: the probability-flow ODE, and Langevin steps that correct it.

The ODE (EDM eq. 1) dz/dsigma = -sigma score runs from sigma_max to 0. It is solved in u =
w/sqrt(v), the coordinates of the Gaussian base, in which everything Gaussian stands still:

    du_i/dsigma = -sigma g_i / sqrt(v_i),    g = score - (Gaussian score)

so that the steps are spent on the difference alone, and Gaussian data are sampled exactly, in any
number of steps. Heun's second-order rule, as EDM algorithm 1.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.noise import NoiseRange

# Shapes: B records, D modelled numbers, K given numbers.


def heun(
    model: EnergyModel,
    noise: NoiseRange,
    c_BK: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    sigma_end: float = 0.0,
) -> Tensor:
    """Records z (B, D) in the model's coordinates, one for each row of given numbers.

    Args:
        model: The energy.
        noise: Its trained range.
        c_BK: Given numbers.
        steps: Noise levels, >= 2. Each costs two gradients, the last (to sigma 0) one.
        generator: On the CPU, so that the same seed gives the same start on every device.
        sigma_end: Stop at this noise level instead of 0; then z is a draw of the smoothed density.
    """
    base = model.base
    levels = [level for level in noise.steps(steps).tolist() if level > sigma_end] + [sigma_end]
    start_BD = torch.randn(len(c_BK), model.layout.size, generator=generator)
    u_BD = start_BD.to(c_BK.device)
    for sigma, sigma_next in itertools.pairwise(levels):
        slope_BD = _slope(model, u_BD, sigma, c_BK)
        euler_BD = u_BD + (sigma_next - sigma) * slope_BD
        if sigma_next > 0:
            slope_next_BD = _slope(model, euler_BD, sigma_next, c_BK)
            u_BD = u_BD + (sigma_next - sigma) * (slope_BD + slope_next_BD) / 2
        else:
            u_BD = euler_BD
    spread_D = (base.variance_D + levels[-1] ** 2).sqrt()
    return base.rotate_back(u_BD * spread_D, c_BK)


def _slope(model: EnergyModel, u_BD: Tensor, sigma: float, c_BK: Tensor) -> Tensor:
    """du/dsigma, (B, D)."""
    base = model.base
    sigma_B = u_BD.new_full((len(u_BD),), sigma)
    spread_BD = base.total_variance(sigma_B).sqrt()
    z_BD = base.rotate_back(u_BD * spread_BD, c_BK)
    with torch.enable_grad():
        z_BD = z_BD.detach().requires_grad_()
        correction_B = model.correction(z_BD, sigma_B.log(), c_BK)
        (gradient_BD,) = torch.autograd.grad(correction_B.sum(), z_BD)
    return -sigma * base.turn_gradient(gradient_BD) / spread_BD


class Corrected(NamedTuple):
    """Records after Langevin steps, and the fraction of the proposals that was taken."""

    z_BD: Tensor
    acceptance: float


class MalaState(NamedTuple):
    """Particles along the base's eigenvectors, with what the next step needs of them."""

    w_BD: Tensor
    energy_B: Tensor
    gradient_BD: Tensor  # dE/dw
    variance_BD: Tensor  # of the base at this noise level
    sigma_B: Tensor
    c_BK: Tensor

    @classmethod
    def at(cls, model: EnergyModel, w_BD: Tensor, sigma: float, c_BK: Tensor) -> "MalaState":
        """Evaluate the energy at particles w (B, D)."""
        sigma_B = w_BD.new_full((len(w_BD),), sigma)
        return cls._evaluated(model, w_BD, model.base.total_variance(sigma_B), sigma_B, c_BK)

    @classmethod
    def _evaluated(
        cls, model: EnergyModel, w_BD: Tensor, variance_BD: Tensor, sigma_B: Tensor, c_BK: Tensor
    ) -> "MalaState":
        found = model.derivatives(model.base.rotate_back(w_BD, c_BK), sigma_B, c_BK)
        gradient_BD = model.base.turn_gradient(found.gradient_BD.detach())
        return cls(w_BD, found.energy_B.detach(), gradient_BD, variance_BD, sigma_B, c_BK)

    def proposed(self, model: EnergyModel, w_BD: Tensor) -> "MalaState":
        """The same level at other particles."""
        return self._evaluated(model, w_BD, self.variance_BD, self.sigma_B, self.c_BK)

    def drift(self, step_size: float) -> Tensor:
        """Mean move of a proposal, (B, D)."""
        return -0.5 * step_size * self.variance_BD * self.gradient_BD


def mala_step(
    model: EnergyModel, state: MalaState, *, step_size: float, generator: torch.Generator
) -> tuple[MalaState, float]:
    """One Metropolis-adjusted Langevin step, preconditioned with the Gaussian base.

    Leaves exp(-E(., sigma)) unchanged, whatever the step: a proposal is accepted with the ratio of
    densities. `step_size` h is in units of the base's own variance v:
    w' = w - (h/2) v dE/dw + sqrt(h v) n. Returns the new state and the fraction accepted.
    """
    noise_BD = torch.randn(state.w_BD.shape, generator=generator).to(state.w_BD.device)
    drift_BD = state.drift(step_size)
    spread_BD = step_size * state.variance_BD
    proposed = state.proposed(model, state.w_BD + drift_BD + spread_BD.sqrt() * noise_BD)
    back_BD = state.w_BD - proposed.w_BD - proposed.drift(step_size)
    # ln of (target ratio) and of (proposal back / proposal forth).
    log_ratio_B = state.energy_B - proposed.energy_B
    log_ratio_B = log_ratio_B + 0.5 * (noise_BD.square() - back_BD.square() / spread_BD).sum(dim=1)
    chance_B = torch.rand(len(state.w_BD), generator=generator).to(state.w_BD.device)
    take_B = chance_B.log() < log_ratio_B
    moved = state._replace(
        w_BD=torch.where(take_B[:, None], proposed.w_BD, state.w_BD),
        energy_B=torch.where(take_B, proposed.energy_B, state.energy_B),
        gradient_BD=torch.where(take_B[:, None], proposed.gradient_BD, state.gradient_BD),
    )
    return moved, float(take_B.float().mean())


def mala(
    model: EnergyModel,
    z_BD: Tensor,
    sigma: float,
    c_BK: Tensor,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> Corrected:
    """`steps` MALA steps at one noise level from records z (B, D)."""
    state = MalaState.at(model, model.base.rotate(z_BD, c_BK), sigma, c_BK)
    accepted = 0.0
    for _ in range(steps):
        state, acceptance = mala_step(model, state, step_size=step_size, generator=generator)
        accepted += acceptance / steps
    return Corrected(model.base.rotate_back(state.w_BD, c_BK), accepted)
