"""A learned filter of a field's long waves: what neighbours cannot see, in one layer.

Waves e_k on the grid, |k| up to `modes` along each axis: y = sum over k of R_k (e_k . x) e_k with a
complex matrix R_k over the features (a real layer: k and -k go together). On a periodic axis that
commutes with translations. Between walls the waves are cosines, as the mirrored grid's are, and
R_k is real. An open edge has no waves of its own, so there is no such layer.

Few waves are kept, so a matrix product with them is cheaper than a Fourier transform.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scf.models.passes import Side, WeightGradients
from scf.models.record import OPEN, PERIODIC

# Shapes: B minibatch, S sites, K waves (a cosine and a sine each), W features.


def waves_on(shape: Sequence[int], boundaries: Sequence[str], modes: int) -> Tensor:
    """Orthonormal waves (S, K, 2): cosine and sine of each pair; zeros where there is no sine.

    Raises:
        ValueError: An axis is open.
    """
    if OPEN in boundaries:
        raise ValueError("an open edge has no waves of its own")
    axes = []
    for length, word in zip(shape, boundaries, strict=True):
        most = min(modes, (length - 1) // 2 if word == PERIODIC else length - 1)
        place = torch.arange(length, dtype=torch.float64)
        found = {}
        for k in range(-most if word == PERIODIC else 0, most + 1):
            if word == PERIODIC:
                found[k] = torch.exp(2j * math.pi * k * place / length)
            else:
                found[k] = torch.cos(math.pi * k * (place + 0.5) / length).to(torch.complex128)
        axes.append(found)
    columns = []
    for wave in itertools.product(*axes):
        turning = [k for k, word in zip(wave, boundaries, strict=True) if word == PERIODIC and k]
        if turning and turning[0] < 0:
            continue  # the partner of one that is kept
        product = torch.ones(1, dtype=torch.complex128)
        for found, k in zip(axes, wave, strict=True):
            product = (product[:, None] * found[k]).reshape(-1)
        pair = torch.stack([product.real, product.imag], dim=-1)
        norm_2 = pair.norm(dim=0)
        columns.append(pair / norm_2.clamp(min=1e-9) * (norm_2 > 1e-6))
    return torch.stack(columns, dim=1).float()


class SpectralLayer(nn.Module):
    """(B, S, W) -> (B, S, W): every long wave mixed over the features by a matrix of its own."""

    waves_SN: Tensor

    def __init__(
        self, shape: Sequence[int], *, boundaries: Sequence[str], width: int, modes: int
    ) -> None:
        super().__init__()
        waves_SK2 = waves_on(shape, boundaries, modes)
        self.num_waves = waves_SK2.shape[1]
        self.register_buffer("waves_SN", waves_SK2.flatten(1), persistent=False)
        spread = 0.3 / math.sqrt(width)
        self.real_KWW = nn.Parameter(spread * torch.randn(self.num_waves, width, width))
        self.turn_KWW = nn.Parameter(spread * torch.randn(self.num_waves, width, width))

    def forward(self, h_BSW: Tensor) -> Tensor:
        return self.from_waves(torch.bmm(self.to_waves(h_BSW), self.matrix()))

    def matrix(self) -> Tensor:
        """R_k on (cosine, sine) features, (K, 2 W, 2 W)."""
        top = torch.cat([self.real_KWW, self.turn_KWW], dim=2)
        return torch.cat([top, torch.cat([-self.turn_KWW, self.real_KWW], dim=2)], dim=1)

    def to_waves(self, h_BSW: Tensor) -> Tensor:
        """(B, S, W) -> (K, B, 2 W)."""
        num_records, _, width = h_BSW.shape
        found_BNW = torch.matmul(self.waves_SN.T, h_BSW)
        return found_BNW.view(num_records, self.num_waves, 2 * width).transpose(0, 1)

    def from_waves(self, found: Tensor) -> Tensor:
        """(K, B, 2 W) -> (B, S, W), the transpose of `to_waves`."""
        num_records, width = found.shape[1], found.shape[2] // 2
        found_BNW = found.transpose(0, 1).reshape(num_records, -1, width)
        return torch.matmul(self.waves_SN, found_BNW)


class SpectralStep:
    """A `SpectralLayer` on rows, in four passes (`passes.py`)."""

    def __init__(self, layer: SpectralLayer, side: Side) -> None:
        self._layer, self._side = layer, side
        self._matrix = layer.matrix().detach()
        self.weights: tuple[Tensor, ...] = (layer.real_KWW, layer.turn_KWW)

    def forward(self, x: Tensor) -> Tensor:
        self._x = self._to_waves(x)
        return self._from_waves(torch.bmm(self._x, self._matrix))

    def pull(self, a: Tensor) -> Tensor:
        self._a = self._to_waves(a)
        return self._from_waves(torch.bmm(self._a, self._matrix.mT))

    def push(self, t: Tensor) -> Tensor:
        self._t = self._to_waves(t)
        return self._from_waves(torch.bmm(self._t, self._matrix))

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        b_waves = self._to_waves(b)
        gradient = torch.bmm(self._t.mT, self._a).baddbmm_(self._x.mT, b_waves)
        width = gradient.shape[1] // 2
        found[self._layer.real_KWW] = gradient[:, :width, :width] + gradient[:, width:, width:]
        found[self._layer.turn_KWW] = gradient[:, :width, width:] - gradient[:, width:, :width]
        return self._from_waves(torch.bmm(b_waves, self._matrix.mT))

    def _to_waves(self, rows: Tensor) -> Tensor:
        return self._layer.to_waves(rows.view(-1, self._side.num_sites, rows.shape[1]))

    def _from_waves(self, found: Tensor) -> Tensor:
        return self._layer.from_waves(found).flatten(0, 1)
