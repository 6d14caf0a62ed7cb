"""Normalise an energy: measure ln Z(sigma) of exp(-E) by sequential Monte Carlo, and take it away.

The dual term makes E nearly normalised; what is left is one number for each noise level,
ln Z(sigma) = ln of the integral of exp(-E) over z. At sigma_max E is Gaussian to all purposes, and
exact draws are at hand. From level to level down (Del Moral, Doucet, Jasra 2006;
docs/science.md eq. 9):

1. Carry each particle along the Gaussian base, w_i <- w_i sqrt(v_i(next) / v_i). Data that are
   Gaussian stay exactly distributed.
2. Weigh it by exp(E(here) - E(next, carried)) times the Jacobian. The mean weight is the ratio of
   the two normalisers, without bias.
3. Resample where weights have become uneven, then move by MALA at the new level.

The particles follow exp(-E) itself, not the data, so the result is right for a model that is wrong.
(Tried before: setting the mean of dE/d(ln sigma) over noisy data to zero. It is blind to first
order to errors of shape that go along with dE/d(ln sigma); docs/LOG.md.)
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.samplers import MalaState, mala_step

# Shapes: P particles, D modelled numbers, K given numbers, L noise levels.

_GROUPS = 4
_ACCEPTANCE = 0.6


class Calibration(NamedTuple):
    """Offsets (L,) in nats that were added, and the standard error of ln Z at the lowest level."""

    offset_L: Tensor
    standard_error: float


def calibrate(
    model: EnergyModel,
    c_PK: Tensor,
    *,
    moves: int,
    generator: torch.Generator,
) -> Calibration:
    """Set the model's offsets so that exp(-E) integrates to one at every level.

    Args:
        model: With weights that stand. Its offsets are overwritten.
        c_PK: Given numbers, one row a particle; (P, 0) where nothing is given. P is rounded down to
            a multiple of four: four groups run side by side, and their spread is the standard
            error.
        moves: MALA steps at each level.
        generator: On the CPU.
    """
    model.offset_L.zero_()
    base = model.base
    grid = model.offset_grid_L.double().flip(0).exp().tolist()  # from sigma_max down
    num = len(c_PK) // _GROUPS * _GROUPS
    c_PK = c_PK[:num]
    group = torch.arange(num).view(_GROUPS, -1)
    spread_PD = base.total_variance(c_PK.new_full((num,), grid[0])).sqrt()
    start_PD = torch.randn(num, model.layout.size, generator=generator).to(c_PK.device)
    w_PD = start_PD * spread_PD
    with torch.no_grad():
        sigma_P = c_PK.new_full((num,), grid[0])
        start_PD = base.rotate_back(w_PD, c_PK)
        first_P = model.correction(start_PD, sigma_P.log(), c_PK).cpu().double()
    # The particles are exact draws of the Gaussian base, which is normalised.
    log_z = [first_P[group].logsumexp(1) - math.log(num // _GROUPS)]
    log_weight = first_P[group] - first_P[group].logsumexp(1, keepdim=True)
    step_size = 0.5
    for sigma, sigma_next in itertools.pairwise(grid):
        stretch_PD = _stretch(model, w_PD, sigma, sigma_next)
        carried_PD = w_PD * stretch_PD
        before_P = _energy(model, w_PD, sigma, c_PK)
        after_P = _energy(model, carried_PD, sigma_next, c_PK)
        gain_P = (before_P - after_P + stretch_PD.log().sum(dim=1)).cpu().double()
        # Ratio of normalisers: mean of the new weights under the normalised old ones.
        new_weight = log_weight + gain_P[group]
        log_z.append(log_z[-1] + new_weight.logsumexp(1) - log_weight.logsumexp(1))
        log_weight = new_weight - new_weight.logsumexp(1, keepdim=True)
        w_PD = carried_PD
        for row in range(_GROUPS):
            if float((2 * log_weight[row]).logsumexp(0).exp()) * log_weight.shape[1] > 2:
                chosen = _resample(log_weight[row].exp(), generator)
                w_PD[group[row]] = w_PD[group[row][chosen]]
                c_PK = c_PK.clone()
                c_PK[group[row]] = c_PK[group[row][chosen]]
                log_weight[row] = -math.log(log_weight.shape[1])
        state = MalaState.at(model, w_PD, sigma_next, c_PK)
        for _ in range(moves):
            state, acceptance = mala_step(model, state, step_size=step_size, generator=generator)
            # Larger steps while many are taken, smaller ones while few are.
            step_size = min(2.0, max(1e-4, step_size * math.exp(0.5 * (acceptance - _ACCEPTANCE))))
        w_PD = state.w_BD
    log_z_LG = torch.stack(log_z).flip(0)
    mean_L = log_z_LG.mean(dim=1)
    error_L = log_z_LG.std(dim=1) / math.sqrt(_GROUPS)
    # E + ln Z is normalised. With hundreds of dimensions and few particles the measurement is less
    # sure than the dual term: it is shrunk by the share of it that is noise (James and Stein).
    share_L = (1 - error_L.square() / mean_L.square().clamp(min=1e-12)).clamp(min=0.0)
    model.offset_L.copy_((share_L * mean_L).float())
    return Calibration(model.offset_L, float(error_L[0]))


def _stretch(model: EnergyModel, w_PD: Tensor, sigma: float, sigma_next: float) -> Tensor:
    sigma_P = w_PD.new_full((len(w_PD),), sigma)
    total_PD = model.base.total_variance(sigma_P)
    next_PD = model.base.total_variance(torch.full_like(sigma_P, sigma_next))
    return (next_PD / total_PD).sqrt()


def _energy(model: EnergyModel, w_PD: Tensor, sigma: float, c_PK: Tensor) -> Tensor:
    with torch.no_grad():
        sigma_P = w_PD.new_full((len(w_PD),), sigma)
        return model.energy(model.base.rotate_back(w_PD, c_PK), sigma_P, c_PK)


def _resample(weight_P: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling: indices of as many particles, each kept about weight * P times."""
    num = len(weight_P)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    place_P = (torch.arange(num, dtype=torch.float64) + offset) / num
    return torch.searchsorted(weight_P.cumsum(0), place_P).clamp(max=num - 1)
