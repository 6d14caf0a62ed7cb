"""Fields cut into patches: non-overlapping boxes of grid points, all of one size.

The last space axes of a field are cut, as many as the patch has lengths; axes behind them (the
components of vectors and tensors) and before them (levels) stay whole. Along an axis of length 1 a
field broadcasts, and is in every patch as it is. What is left at the end of an axis is in no patch.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scf.core.errors import InputError
from scf.vault.fields import Array


class PatchInvalid(InputError):
    """The fields of a file cannot be cut into patches of this size."""

    kind = "patch"


@dataclass(frozen=True)
class Grid:
    """The lengths of a field's axes, and which of them are space.

    Attributes:
        shape: Of one step.
        num_components: Axes at the end that are no space.
    """

    shape: tuple[int, ...]
    num_components: int = 0

    @property
    def space(self) -> tuple[int, ...]:
        """Lengths of the space axes."""
        return self.shape[: len(self.shape) - self.num_components]


@dataclass(frozen=True)
class Patches:
    """A grid cut into patches.

    Attributes:
        lengths: Grid points of a patch along each cut axis.
        axes: Grid points of the fields along each cut axis.
    """

    lengths: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, lengths: tuple[int, ...], grids: Mapping[str, Grid]) -> "Patches":
        """Cut fields that share a grid.

        Raises:
            PatchInvalid: They have no such grid, or a patch is larger than it.
        """
        told = "x".join(map(str, lengths))
        axes = [1] * len(lengths)
        for name, grid in grids.items():
            if not grid.space:
                continue
            if len(grid.space) < len(lengths):
                raise PatchInvalid(
                    f"field {name!r} has {len(grid.space)} space axes, patches of {told} need "
                    f"{len(lengths)}",
                    remedy="Name the fields that are to be cut.",
                )
            for at, length in enumerate(grid.space[-len(lengths) :]):
                if length != 1 and axes[at] not in {1, length}:
                    raise PatchInvalid(
                        f"field {name!r} has {list(grid.shape)} points, others {axes}; only fields "
                        "on one grid can be cut together",
                        remedy="Name the fields that are to be cut.",
                    )
                axes[at] = max(axes[at], length)
        if any(length > axis for length, axis in zip(lengths, axes, strict=True)):
            raise PatchInvalid(f"a patch of {told} is larger than the grid of {axes}")
        return cls(lengths, tuple(axes))

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches along each cut axis."""
        return tuple(axis // n for axis, n in zip(self.axes, self.lengths, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """The index of each patch, the last axis fastest."""
        return itertools.product(*map(range, self.counts))

    def start(self, index: tuple[int, ...]) -> list[int]:
        """The first grid point of a patch."""
        return [at * length for at, length in zip(index, self.lengths, strict=True)]

    def cut(self, array: Array, grid: Grid, index: tuple[int, ...]) -> Array:
        """The patch of a field, as a view; axes before those of `grid` (a window) stay."""
        if not grid.space:
            return array
        box: list[Any] = [...]
        for length, start, n in zip(
            grid.space[-len(self.lengths) :], self.start(index), self.lengths, strict=True
        ):
            box.append(slice(None) if length == 1 else slice(start, start + n))
        cut: Array = array[(*box, *(slice(None),) * grid.num_components)]
        return cut

    def shape(self, grid: Grid) -> tuple[int, ...]:
        """Shape of a field's patch."""
        if not grid.space:
            return grid.shape
        first = len(grid.space) - len(self.lengths)
        cut = (
            1 if length == 1 else n
            for length, n in zip(grid.space[first:], self.lengths, strict=True)
        )
        return (*grid.shape[:first], *cut, *grid.shape[len(grid.space) :])

    def notes(self) -> tuple[str, ...]:
        """What is in no patch, in words."""
        rest = [axis % n for axis, n in zip(self.axes, self.lengths, strict=True)]
        if not any(rest):
            return ()
        return (f"patches leave out the last {rest} points of a grid of {list(self.axes)}",)
