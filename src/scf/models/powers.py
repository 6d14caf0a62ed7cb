"""Powers of a field at a site: the part of a local energy that lattice actions are written in.

    P = sum over sites and units of c_1 t + c_2 t^2 + c_3 t^3 + c_4 t^4,   t = A [site, neighbours]

Coefficients are linear in the noise embedding. Landau's expansion; a smooth network finds it too,
but at length, and what matters to an energy is found last: modes of long waves are a hundredth of
the score's error and most of the energy's (docs/LOG.md).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scf.models.lattice import Neighbourhood
from scf.models.networks import in_float32

# Shapes: B minibatch, S sites, J features of a site, T neighbours, U units, E noise embedding.

_UNITS = 12


class SitePowers(nn.Module):
    """Site features (B, S, J) and a noise embedding (B, E) give a scalar (B,); zero at first.

    Units begin as single features of a site, of its nearest neighbours' mean, and sums of two such.
    With `is_even` the even powers alone.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_features: int,
        num_embedding: int,
        *,
        boundaries: Sequence[str],
        is_even: bool,
    ) -> None:
        super().__init__()
        self.is_even = is_even
        self.around = Neighbourhood(shape, boundaries=boundaries, reach=1)
        self.enter = nn.Linear(self.around.num_neighbours * num_features, _UNITS, bias=False)
        self.num_powers = 2 if is_even else 4
        self.coefficients = nn.Linear(num_embedding, self.num_powers * _UNITS)
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)
        distance_T = self.around.distance_T
        own_T, near_T = ((distance_T == step).float() for step in (0, 1))
        plain = [
            torch.outer(here_T / here_T.sum(), feature_J).flatten()
            for here_T in (own_T, near_T)
            for feature_J in torch.eye(num_features)
        ]
        plain += [(one + two) / math.sqrt(2) for one, two in itertools.combinations(plain, 2)]
        with torch.no_grad():
            for unit, weight in enumerate(plain[:_UNITS]):
                self.enter.weight[unit] = weight

    def forward(self, sites_BSJ: Tensor, noise_BE: Tensor) -> Tensor:
        t_BSU = in_float32(self.enter, self.around(sites_BSJ))
        c = in_float32(self.coefficients, noise_BE)[:, None].chunk(self.num_powers, dim=-1)
        square_BSU = t_BSU * t_BSU
        value_BSU = (c[0] + c[1] * square_BSU) * square_BSU
        if not self.is_even:
            value_BSU = value_BSU + (c[2] + c[3] * square_BSU) * t_BSU
        return value_BSU.sum(dim=(1, 2))
