"""Arrays in memory as a source of training fossils: for a notebook, without vault or files."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.core.errors import UsageError
from scf.models.record import BOUNDARIES, FieldLayout, LayoutMismatch, RecordLayout

# Where nothing says what belongs together, contiguous blocks are families (DESIGN section 5): the
# neighbours of a time series never stand on both sides of a split.
_BLOCK = 64


class ArraySource:
    """A `FossilSource` over arrays [N, *shape] by field name.

    Args:
        arrays: One array a field, all with the same N.
        units: Unit of each field; "" where none is named.
        given: Fields that the density is conditioned on.
        families: What belongs together, one name a record; default: blocks of 64 neighbours.
        boundary: `periodic` where the grid of the fields closes on itself.
        true_score: d ln p / dx of the clean density at each record, by field name, where known.
        batch_size: Records of a minibatch.

    Attributes:
        turn: Which rows of each minibatch are given.

    Raises:
        LayoutMismatch: Arrays of different length, or nothing to model.
        UsageError: Numbers that are neither real nor whole; families of another length; a boundary
            that is none.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        *,
        units: Mapping[str, str] | None = None,
        given: Sequence[str] = (),
        families: Sequence[str] | None = None,
        boundary: str = "",
        true_score: Mapping[str, npt.NDArray[Any]] | None = None,
        batch_size: int = 1024,
    ) -> None:
        self._arrays = dict(arrays)
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
            raise LayoutMismatch(f"arrays hold different numbers of records: {told}")
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise UsageError(f"array {name!r} holds {array.dtype}, not real numbers")
        units = units or {}
        if unknown := set(units) - set(arrays):
            raise UsageError(f"units name {min(unknown)!r}, which is not among the arrays")
        self.num_records = next(iter(lengths.values()), 0)
        fields = [
            FieldLayout(name, array.dtype.name, array.shape[1:], units.get(name, ""))
            for name, array in arrays.items()
        ]
        for word in boundary.split(",") if boundary else ():
            if word not in BOUNDARIES:
                raise UsageError(f"boundary {word!r} is not one of {', '.join(BOUNDARIES)}")
        self.layout = RecordLayout.of(fields, given, boundary=boundary)
        if families is not None and len(families) != self.num_records:
            raise UsageError(f"{len(families)} families for {self.num_records} records")
        self._families = families
        self._true_score = dict(true_score) if true_score is not None else None
        for field in self.layout.modelled if self._true_score is not None else ():
            if self._true_score is None or field.name not in self._true_score:
                raise LayoutMismatch(f"true_score has no {field.name!r}")
            if self._true_score[field.name].shape != arrays[field.name].shape:
                raise LayoutMismatch(f"true_score {field.name!r} is not shaped like its field")
        self._at = 0
        self.batch_size = batch_size
        self.turn = slice(None)

    def share(self, rank: int, world_size: int) -> "ArraySource":
        """The same arrays from the same place, every `world_size`-th row of each minibatch."""
        part = copy.copy(self)
        part.turn = slice(rank, None, world_size)
        return part

    def epoch(self) -> Iterator[Mapping[str, Any]]:
        """Minibatches of the rest of an epoch, in the order of the arrays."""
        while True:
            rows = range(self._at, min(self._at + self.batch_size, self.num_records))
            self._at = rows.stop if rows.stop < self.num_records else 0
            yield self._minibatch(rows[self.turn])
            if self._at == 0:
                return

    def _minibatch(self, rows: range) -> dict[str, Any]:
        place = slice(rows.start, rows.stop, rows.step)
        families = self._families or [f"block-{r // _BLOCK:08d}" for r in rows]
        extra: dict[str, Any] = {}
        if self._true_score is not None:
            extra["_true_score"] = {name: s[place] for name, s in self._true_score.items()}
        return {
            **{name: array[place] for name, array in self._arrays.items()},
            "_cid": [f"row-{row:012d}" for row in rows],
            "_family": list(families[place] if self._families else families),
            **extra,
        }

    def get_state(self) -> dict[str, Any]:
        """The next record."""
        return {"at": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a record."""
        self._at = int(state.get("at", 0))

    def describe(self) -> dict[str, Any]:
        """For `config.json`."""
        return {"plan_id": None, "merkle_root": None, "refused": {}, "arrays": self.num_records}


def as_numpy(value: Any) -> npt.NDArray[Any]:
    """An array from numpy, torch or nested lists. Tensors may lie on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)
