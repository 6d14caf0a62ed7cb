"""Down the ladder of noise levels with weighted particles: samples and normalisers from energies.

Particles follow exp(-E(., sigma)) from sigma_max, where it is the Gaussian base to all purposes and
exact draws are at hand, to lower levels (Del Moral, Doucet, Jasra 2006; docs/science.md eq. 7-9):

1. Carry each particle along the Gaussian base, w_i <- w_i sqrt(v_i(next) / v_i). Data that are
   Gaussian stay exactly distributed.
2. Weigh it by exp(E(here) - E(next, carried)) times the Jacobian. The mean weight is the ratio of
   the two normalisers, without bias.
3. Resample where weights have become uneven, then move by MALA at the new level.

Without resampling (`resample_below` 0) this is annealed importance sampling (Neal 2001). The
particles follow exp(-E) itself, not the data, so ln Z is right for a model that is wrong.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.samplers import MalaState, mala_step

# Shapes: P particles, D modelled numbers, K given numbers, G groups.

_ACCEPTANCE = 0.6


class Particles(NamedTuple):
    """Weighted particles at one noise level.

    Attributes:
        sigma: The level, in the model's scale.
        w_PD: Along the base's eigenvectors.
        c_PK: Given numbers of each.
        log_weight_GP: Of each group, normalised (float64, CPU).
        log_z_G: ln of the integral of exp(-E) at this level, one estimate a group.
        acceptance: Of the last MALA step; 1 where there was none.
    """

    sigma: float
    w_PD: Tensor
    c_PK: Tensor
    log_weight_GP: Tensor
    log_z_G: Tensor
    acceptance: float

    @property
    def effective_share(self) -> float:
        """Effective number of particles over their number, the least of all groups."""
        square_G = (2 * self.log_weight_GP).logsumexp(1).exp()
        return float((1 / (square_G * self.log_weight_GP.shape[1])).min())


def descend(
    model: EnergyModel,
    c_PK: Tensor,
    levels: Sequence[float],
    *,
    moves: int,
    generator: torch.Generator,
    groups: int = 1,
    resample_below: float = 0.5,
) -> Iterator[Particles]:
    """The particles at each of `levels`, which fall from sigma_max.

    Args:
        model: The energy.
        c_PK: Given numbers, one row a particle; (P, 0) where nothing is given. P is rounded down to
            a multiple of `groups`.
        levels: Noise levels in the model's scale, falling.
        moves: MALA steps at each level.
        generator: On the CPU.
        groups: Particles that are weighed and resampled apart, for a standard error.
        resample_below: Effective share below which a group is resampled; 0 never.
    """
    base = model.base
    num = len(c_PK) // groups * groups
    c_PK = c_PK[:num]
    group = torch.arange(num).view(groups, -1)
    start_PD = torch.randn(num, model.layout.size, generator=generator).to(c_PK.device)
    w_PD = start_PD * base.total_variance(c_PK.new_full((num,), levels[0])).sqrt()
    with torch.no_grad():
        sigma_P = c_PK.new_full((num,), levels[0])
        start_PD = base.rotate_back(w_PD, c_PK)
        first_P = model.correction(start_PD, sigma_P.log(), c_PK).cpu().double()
    # The particles are exact draws of the Gaussian base, which is normalised.
    log_z_G = first_P[group].logsumexp(1) - math.log(num // groups)
    log_weight = first_P[group] - first_P[group].logsumexp(1, keepdim=True)
    step_size, acceptance = 0.5, 1.0
    yield Particles(levels[0], w_PD, c_PK, log_weight, log_z_G, acceptance)
    for sigma, sigma_next in itertools.pairwise(levels):
        stretch_PD = _stretch(model, w_PD, sigma, sigma_next)
        carried_PD = w_PD * stretch_PD
        before_P = _energy(model, w_PD, sigma, c_PK)
        after_P = _energy(model, carried_PD, sigma_next, c_PK)
        gain_P = (before_P - after_P + stretch_PD.log().sum(dim=1)).cpu().double()
        # Ratio of normalisers: mean of the new weights under the normalised old ones.
        new_weight = log_weight + gain_P[group]
        log_z_G = log_z_G + new_weight.logsumexp(1) - log_weight.logsumexp(1)
        log_weight = new_weight - new_weight.logsumexp(1, keepdim=True)
        w_PD = carried_PD
        for row in range(groups):
            square = float((2 * log_weight[row]).logsumexp(0).exp())
            if square * log_weight.shape[1] * resample_below > 1:
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
        yield Particles(sigma_next, w_PD, c_PK, log_weight, log_z_G, acceptance)


def geometric_levels(high: float, low: float, num: int) -> list[float]:
    """`num` levels from high to low, evenly spaced in their logarithm."""
    step = math.log(low / high) / (num - 1)
    return [high * math.exp(step * place) for place in range(num)]


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


def resampled(particles: Particles, generator: torch.Generator) -> Tensor:
    """Indices of equally weighted particles, for one group."""
    return _resample(particles.log_weight_GP[0].exp(), generator)
