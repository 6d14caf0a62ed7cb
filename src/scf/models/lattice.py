"""A network for fields on a grid: the energy is a sum over sites of a local energy density.

Sites lie on a grid of one, two or three axes, periodic or open. Every layer looks up the neighbours
of a site in a table, joins their features and multiplies: a convolution, written as gather and
matrix product. That is twice as fast on a CPU as a convolution with circular padding at these
widths (8x8 sites, 16 features: 9.4 against 18.1 ms for an energy step on one thread), and one code
for all numbers of axes. At a wall the
grid is mirrored; beyond an open edge a neighbour is zero.

With several levels the net is a U-Net: sites are averaged two by two along each axis, worked on,
and handed back. Nothing depends on where a site lies unless coordinates are among its features, so
a net on a periodic grid is blind to translations (with levels: to those by whole coarse sites).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scf.models.activation import silu
from scf.models.lattice_passes import Coarser, Convolve, Even
from scf.models.networks import in_float32
from scf.models.passes import Chain, Dense, Embedded, Passes, Residual, Side, Silu, Step, Sum
from scf.models.record import OPEN, WALL
from scf.models.spectral import SpectralLayer, SpectralStep

# Shapes: B minibatch, S sites, J features of a site that come in, E noise embedding, W width,
# T neighbours.

# How far the first layer sees along each axis, by the number of axes: 7, 25 and 27 neighbours.
_REACH = {1: 3, 2: 2, 3: 1}
# Spread of what the first layer gives: there silu bends, and even units differ from squares.
_ENTER_GAIN = 1.5
# Of the sum over sites, since a step of the optimiser moves the head at all of them at once. The
# same for all sizes: an energy is extensive. With 1/sqrt(S) a 32x32 lattice had an effective sample
# share of 0.08 after 58 CPU seconds, with this 0.37.
_HEAD_SCALE = 0.3
# Grids are halved while the shortest axis keeps this many sites.
_COARSEST = 8
_LEVELS_MAX = 4


def levels_for(shape: Sequence[int]) -> int:
    """How many levels suit a grid: 1 below 16 sites a side, one more for each doubling."""
    levels = 1
    while (
        levels < _LEVELS_MAX
        and all(length % 2**levels == 0 for length in shape)
        and min(shape) >> levels >= _COARSEST
    ):
        levels += 1
    return levels


def neighbour_table(shape: Sequence[int], boundaries: Sequence[str], reach: int) -> Tensor:
    """Sites within `reach` along every axis of each site, (S, T); S stands for beyond the edge.

    `boundaries` has one word for each axis: at a wall the grid is mirrored.
    """
    axes = [torch.arange(length) for length in shape]
    place_SX = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(shape))
    size_X = torch.tensor(list(shape))
    is_wall_X = torch.tensor([word == WALL for word in boundaries])
    is_open_X = torch.tensor([word == OPEN for word in boundaries])
    columns = []
    for offset in itertools.product(range(-reach, reach + 1), repeat=len(shape)):
        moved_SX = place_SX + torch.tensor(offset)
        outside_SX = (moved_SX < 0) | (moved_SX >= size_X)
        outside_S = (outside_SX & is_open_X).any(dim=1)
        # Mirrored: -1 is 0, -2 is 1; beyond the mirror image of all sites it begins again.
        folded_SX = moved_SX % (2 * size_X)
        folded_SX = torch.minimum(folded_SX, 2 * size_X - 1 - folded_SX)
        moved_SX = torch.where(is_wall_X, folded_SX, moved_SX % size_X)
        flat_S = torch.zeros(len(place_SX), dtype=torch.int64)
        for axis, length in enumerate(shape):
            flat_S = flat_S * length + moved_SX[:, axis]
        columns.append(torch.where(outside_S, len(place_SX), flat_S))
    return torch.stack(columns, dim=1)


class Neighbourhood(nn.Module):
    """Features of all neighbours side by side: (B, S, W) -> (B, S, T W)."""

    table: Tensor

    def __init__(self, shape: Sequence[int], *, boundaries: Sequence[str], reach: int) -> None:
        super().__init__()
        table_ST = neighbour_table(shape, boundaries, reach)
        self.num_sites, self.num_neighbours = table_ST.shape
        offsets = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=len(shape))))
        self.distance_T = offsets.abs().sum(dim=1).float()
        self.is_open = OPEN in boundaries
        self.is_mirror = WALL not in boundaries
        self.register_buffer("table", table_ST.reshape(-1), persistent=False)

    def begin_near(self, layer: nn.Linear, gain: float) -> None:
        """Start a layer that reads neighbours with the nearest counting most: 0.3 to the distance.

        Lattice energies are local; from weights that are equal over 25 neighbours a phi^4 at one
        site took three times as many steps to be found (docs/LOG.md).
        """
        decay_T = 0.3**self.distance_T
        num = layer.in_features // self.num_neighbours
        norm = math.sqrt(num * float(decay_T.square().sum()))
        start_WTJ = torch.randn(layer.out_features, self.num_neighbours, num) * decay_T[:, None]
        with torch.no_grad():
            layer.weight.copy_((start_WTJ * gain / norm).flatten(1))

    def forward(self, h_BSW: Tensor) -> Tensor:
        if self.is_open:
            h_BSW = F.pad(h_BSW, (0, 0, 0, 1))  # site S: zero, beyond the edge
        return h_BSW.index_select(1, self.table).reshape(len(h_BSW), self.num_sites, -1)

    def transposed(self, side_by_side: Tensor) -> Tensor:
        """The transpose of `forward`: (B, S, T W) -> (B, S, W)."""
        num_rows = self.num_sites + self.is_open
        num_records, _, num = side_by_side.shape
        parts = side_by_side.reshape(num_records, len(self.table), num // self.num_neighbours)
        sums = parts.new_zeros(num_records, num_rows, parts.shape[2])
        return sums.index_add_(1, self.table, parts)[:, : self.num_sites].contiguous()


class _Block(nn.Module):
    """h <- h + W2 silu(W1 [neighbours of silu(h)] + R [waves of silu(h)] + U e)."""

    def __init__(
        self,
        around: Neighbourhood,
        width: int,
        num_embedding: int,
        scale: float,
        spectral: SpectralLayer | None = None,
    ) -> None:
        super().__init__()
        self.around = around
        self.spectral = spectral
        self.inner = nn.Linear(around.num_neighbours * width, width)
        around.begin_near(self.inner, 1.0)
        self.noise = nn.Linear(num_embedding, width, bias=False)
        self.outer = nn.Linear(width, width)
        with torch.no_grad():
            self.outer.weight.mul_(scale)

    def forward(self, h_BSW: Tensor, noise_B1E: Tensor) -> Tensor:
        bent_BSW = silu(h_BSW)
        inner_BSW = self.inner(self.around(bent_BSW)) + self.noise(noise_B1E)
        if self.spectral is not None:
            inner_BSW = inner_BSW + self.spectral(bent_BSW)
        out: Tensor = h_BSW + self.outer(silu(inner_BSW))
        return out

    def step(self, side: Side) -> Step:
        """The same on rows (`models/passes.py`)."""
        around = self.around
        inner: Step = Convolve(self.inner, around, around.transposed, side,
                               is_mirror=around.is_mirror, noise=self.noise)  # fmt: skip
        if self.spectral is not None:
            inner = Sum(inner, SpectralStep(self.spectral, side))
        return Residual(Chain([Silu(), inner, Silu(), Dense(self.outer)]))


class LatticeNet(nn.Module):
    """Site features (B, S, J) and a noise embedding (B, E) give a scalar (B,).

    The head starts at zero, so that a new model is its Gaussian base. No normalisation layers.

    With `is_even` the first layer takes u = A [neighbours] without a constant and gives
    silu(u + b) + silu(b - u): the same for x and -x, exactly, at no cost. Every even function of a
    neighbourhood is a sum of such.

    With `modes` above 0 the blocks of the finest level also filter the field's long waves
    (`models/spectral.py`).
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_features: int,
        num_embedding: int,
        *,
        boundaries: Sequence[str],
        width: int,
        depth: int,
        levels: int,
        is_even: bool,
        modes: int = 0,
    ) -> None:
        super().__init__()
        self.is_even = is_even
        enter = Neighbourhood(shape, boundaries=boundaries, reach=_REACH[len(shape)])
        self.around = enter
        self.enter = nn.Linear(enter.num_neighbours * num_features, width, bias=False)
        enter.begin_near(self.enter, _ENTER_GAIN)
        self.enter_noise = nn.Linear(num_embedding, width)
        self.mix = nn.Linear(width, width)
        scale = 1 / math.sqrt(depth * (2 * levels - 1))
        grids = [tuple(length >> level for length in shape) for level in range(levels)]
        near = [Neighbourhood(grid, boundaries=boundaries, reach=1) for grid in grids]

        def spectral(level: int) -> SpectralLayer | None:
            if level or not modes:
                return None
            return SpectralLayer(shape, boundaries=boundaries, width=width, modes=modes)

        def stage(level: int) -> nn.ModuleList:
            return nn.ModuleList(
                _Block(near[level], width, num_embedding, scale, spectral(level))
                for _ in range(depth)
            )

        self.down = nn.ModuleList(stage(level) for level in range(levels))
        self.up = nn.ModuleList(stage(level) for level in range(levels - 1))
        self.halve = nn.ModuleList(_Halve(grid) for grid in grids[:-1])
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sites_BSJ: Tensor, noise_BE: Tensor) -> Tensor:
        return _HEAD_SCALE * self.density(sites_BSJ, noise_BE).sum(dim=1)

    def density(self, sites_BSJ: Tensor, noise_BE: Tensor) -> Tensor:
        """What each site gives, (B, S)."""
        noise_B1E = noise_BE[:, None]
        u_BSW = self.enter(self.around(sites_BSJ))
        b_B1W = self.enter_noise(noise_B1E)
        h_BSW = silu(u_BSW + b_B1W)
        if self.is_even:
            h_BSW = h_BSW + silu(b_B1W - u_BSW)
        h_BSW = self.mix(h_BSW)
        held: list[Tensor] = []
        for level, stage in enumerate(self.down):
            if level:
                held.append(h_BSW)
                h_BSW = self.halve[level - 1](h_BSW)
            h_BSW = _through(stage, h_BSW, noise_B1E)
        for level in reversed(range(len(held))):
            halve = self.halve[level]
            assert isinstance(halve, _Halve)
            h_BSW = _through(self.up[level], held[level] + halve.back(h_BSW), noise_B1E)
        density_BS1: Tensor = in_float32(self.head, silu(h_BSW))
        return density_BS1.squeeze(-1)

    def passes(self, noise: Embedded, num_sites: int) -> Passes:
        """`forward` written for training (`models/passes.py`)."""
        side = Side(noise, num_sites)
        sides = [side, *(Side(noise, halve.num_coarse) for halve in self._halves())]
        around = self.around
        entering = Convolve(self.enter, around, around.transposed, side,
                            is_mirror=around.is_mirror, is_first=True,
                            noise=None if self.is_even else self.enter_noise)  # fmt: skip
        bent: Step = Even(self.enter_noise, side) if self.is_even else Silu()
        trunk = self._level(0, sides)
        return Passes(Chain([entering, bent, Dense(self.mix), trunk]), side, self.head,
                      scale=_HEAD_SCALE)  # fmt: skip

    def _level(self, level: int, sides: list[Side]) -> Step:
        down = _steps(self.down[level], sides[level])
        if level == len(self.halve):
            return down
        halve = self._halves()[level]
        return Coarser(down, self._level(level + 1, sides), _steps(self.up[level], sides[level]),
                       halve.narrow, halve.widen, halve.num_children)  # fmt: skip

    def _halves(self) -> "list[_Halve]":
        return [halve for halve in self.halve if isinstance(halve, _Halve)]


def _through(stage: nn.Module, h_BSW: Tensor, noise_B1E: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList)
    for block in stage:
        h_BSW = block(h_BSW, noise_B1E)
    return h_BSW


def _steps(stage: nn.Module, side: Side) -> Step:
    assert isinstance(stage, nn.ModuleList)
    return Chain([block.step(side) for block in stage if isinstance(block, _Block)])


class _Halve(nn.Module):
    """Mean over 2 sites along each axis, and the way back: each gets its coarse site's features."""

    children_table: Tensor
    parent_table: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        coarse = [length // 2 for length in shape]
        axes = [torch.arange(length) for length in shape]
        place_SX = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(shape))
        parent_S = torch.zeros(len(place_SX), dtype=torch.int64)
        for axis, length in enumerate(coarse):
            parent_S = parent_S * length + place_SX[:, axis] // 2
        self.num_children = 2 ** len(shape)
        self.num_coarse = math.prod(coarse)
        self.register_buffer("parent_table", parent_S, persistent=False)
        self.register_buffer("children_table", torch.argsort(parent_S, stable=True),
                             persistent=False)  # fmt: skip

    def forward(self, h_BSW: Tensor) -> Tensor:
        sorted_BSW = h_BSW.index_select(1, self.children_table)
        width = h_BSW.shape[2]
        return sorted_BSW.view(len(h_BSW), -1, self.num_children, width).mean(dim=2)

    def back(self, h_BSW: Tensor) -> Tensor:
        return h_BSW.index_select(1, self.parent_table)

    def narrow(self, rows_NW: Tensor) -> Tensor:
        """`forward` on rows (B S, W)."""
        h_BSW = rows_NW.view(-1, len(self.parent_table), rows_NW.shape[1])
        coarse: Tensor = self(h_BSW).flatten(0, 1)
        return coarse

    def widen(self, rows_NW: Tensor) -> Tensor:
        """`back` on rows."""
        return self.back(rows_NW.view(-1, self.num_coarse, rows_NW.shape[1])).flatten(0, 1)
