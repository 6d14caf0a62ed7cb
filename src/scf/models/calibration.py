"""Normalise an energy: measure ln Z(sigma) of exp(-E) by sequential Monte Carlo, and take it away.

The dual term makes E nearly normalised; what is left is one number for each noise level,
ln Z(sigma) = ln of the integral of exp(-E) over z, measured on the way down (`models/descent.py`,
docs/science.md eq. 9).

(Tried before: setting the mean of dE/d(ln sigma) over noisy data to zero. It is blind to first
order to errors of shape that go along with dE/d(ln sigma); docs/LOG.md.)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.descent import descend
from scf.models.energy_model import EnergyModel

# Shapes: P particles, K given numbers, L noise levels.

_GROUPS = 4


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
    grid = model.offset_grid_L.double().flip(0).exp().tolist()  # from sigma_max down
    way = descend(model, c_PK, grid, moves=moves, generator=generator, groups=_GROUPS)
    log_z = [particles.log_z_G for particles in way]
    log_z_LG = torch.stack(log_z).flip(0)
    mean_L = log_z_LG.mean(dim=1)
    error_L = log_z_LG.std(dim=1) / math.sqrt(_GROUPS)
    # E + ln Z is normalised. With hundreds of dimensions and few particles the measurement is less
    # sure than the dual term: it is shrunk by the share of it that is noise (James and Stein).
    share_L = (1 - error_L.square() / mean_L.square().clamp(min=1e-12)).clamp(min=0.0)
    model.offset_L.copy_((share_L * mean_L).float())
    return Calibration(model.offset_L, float(error_L[0]))
