"""Bounds that physics sets (radiation is not negative), as a term of the energy and as inputs.

Under the Gaussian base the clean number x_i given the noisy record is N(D_i, s_i^2), D the base's
denoised record. If the clean density is the Gaussian cut off at the bounds, the smoothed one is the
Gaussian times the chance that a draw of this posterior keeps them (docs/science.md eq. 15):

    E = E_Gauss - sum_i [ ln Phi((D_i - b_i) / s_i) - ln Phi((m_i - b_i) / sqrt(v_i)) ]

with m_i, v_i mean and variance before the record is seen; numbers are taken one by one, so their
correlation in the posterior is left to the network. As sigma grows the two terms agree and the
Gaussian is left; as sigma falls, s_i is about sigma, and a number beyond its bound by some sigma
costs half their square, which no bounded network could give it.

Where records lie exactly on a bound (radiation is zero under cloud) the clean density is no cut-off
Gaussian but has an atom there, and the term pushes away from it: the held-out loss of weather days
rose from 0.359 to 0.369. Such numbers are left out of it. The distance (D_i - b_i)/s_i, in units of
what is not known of the number, is an input of the network for all: with that alone the loss fell
to 0.347 and the negative part of sampled DNI from 9.8 to 0.9 W/m2 (docs/LOG.md).
"""

import numpy as np
import torch
from torch import Tensor, nn

from scf.models.activation import log_phi
from scf.models.frame import Frame
from scf.models.gaussian_base import GaussianBase
from scf.models.physics import PhysicsConstraint
from scf.models.record import Floats, RecordLayout

# Shapes: B minibatch, D modelled numbers, K given numbers, U bounded numbers (a number with two
# bounds counts twice).

# A number whose standard deviation is below this (in scales of the data) hardly moves: night hours.
_STILL = 0.01


class Bounds(nn.Module):
    """Numbers with a bound, and the chance that they keep it.

    Attributes:
        num_channels: Bounds of a site, where the record's fields share a grid: one for each bounded
            field and side.
    """

    place_U: Tensor
    side_U: Tensor
    bound_U: Tensor
    moves_U: Tensor
    counted_U: Tensor

    def __init__(self, layout: RecordLayout, constraints: tuple[PhysicsConstraint, ...]) -> None:
        super().__init__()
        found = [
            (field.name, value, side)
            for field in layout.modelled
            for constraint in constraints
            if constraint.bound is not None and constraint.bound.field == field.name
            for value, side in ((constraint.bound.lower, 1.0), (constraint.bound.upper, -1.0))
            if value is not None
        ]
        self.num_channels = len(found)
        places = layout.slices()
        numbers = np.arange(layout.size)
        place = [numbers[places[name]] for name, _, _ in found]
        self.register_buffer("place_U", _joined(place, np.int64), persistent=False)
        for name, column in (("side_U", 2), ("value_U", 1)):
            values = [np.full(len(at), row[column]) for at, row in zip(place, found, strict=True)]
            self.register_buffer(name, _joined(values, np.float32), persistent=False)
        self.register_buffer("bound_U", torch.zeros(len(self.place_U)))
        self.register_buffer("moves_U", torch.zeros(len(self.place_U)))
        self.register_buffer("counted_U", torch.zeros(len(self.place_U)))

    value_U: Tensor

    def load(
        self, frame: Frame, marginal_D: Tensor, extremes: tuple[Floats, Floats] | None = None
    ) -> None:
        """Bounds in the model's coordinates, which numbers move, and which have no atom there.

        `extremes` are the least and greatest value of each number among the records.
        """
        place = self.place_U.cpu().numpy()
        value, side = self.value_U.cpu().numpy(), self.side_U.cpu().numpy()
        bound = (value - frame.shift_D[place]) / frame.scale_D[place]
        self.bound_U.copy_(torch.from_numpy(bound))
        moves_U = (marginal_D[self.place_U] > _STILL**2).float()
        self.moves_U.copy_(moves_U)
        touched = np.zeros(len(place), dtype=bool)
        if extremes is not None:
            low, high = extremes
            touched = np.where(side > 0, low[place] <= value, high[place] >= value)
        self.counted_U.copy_(moves_U * torch.from_numpy(~touched).to(moves_U))

    def forward(
        self,
        mean_BD: Tensor,
        kept_BD: Tensor,
        prior_BD: Tensor,
        marginal_D: Tensor,
        base: GaussianBase,
    ) -> tuple[Tensor, Tensor]:
        """Nats to subtract from the Gaussian's energy (B,), and (D_i - b_i)/s_i as inputs (B, U).

        Args:
            mean_BD: The base's denoised record.
            kept_BD: lambda / (lambda + sigma^2) along its eigenvectors.
            prior_BD: Mean before the record is seen, B c.
            marginal_D: Variance of each number before it is seen.
            base: The Gaussian.
        """
        place_U = self.place_U
        # Posterior variance along the eigenvectors: lambda sigma^2 / (lambda + sigma^2).
        spread_BD = base.variance_D * (1 - kept_BD)
        variance_BU = base.spread_of(spread_BD)[:, place_U]
        after_BU = self.side_U * (mean_BD[:, place_U] - self.bound_U)
        after_BU = after_BU * (variance_BU + 1e-12).rsqrt()
        before_BU = self.side_U * (prior_BD[:, place_U] - self.bound_U)
        before_BU = before_BU * (marginal_D[place_U] + 1e-12).rsqrt()
        gain_B = (self.counted_U * (log_phi(after_BU) - log_phi(before_BU))).sum(dim=1)
        return gain_B, after_BU * self.moves_U


def _joined(parts: list[np.ndarray], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype))
