"""Arrays of many records: the leading axis is the record axis (DESIGN section 5)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers.base import Draft
from scf.vault.fields import Array, ShapeMismatch

# A text array `NAME.unit` states the unit of NAME; a text array of this name states families.
UNIT_SUFFIX = ".unit"
FAMILY = "family"


@dataclass(frozen=True)
class Layout:
    """What the arrays of a file mean.

    Attributes:
        columns: Names of arrays with one row a record.
        num_records: Length of their leading axis.
        units: Units by column.
        params: Numbers and text that hold for every record.
        has_families: Whether there is a column that states families.
    """

    columns: tuple[str, ...]
    num_records: int
    units: Mapping[str, str]
    params: Mapping[str, Any]
    has_families: bool


def layout_of(shapes: Mapping[str, tuple[int, ...]], scalars: Mapping[str, Any]) -> Layout:
    """Tell columns from constants.

    Args:
        shapes: Shape of each array with at least one axis.
        scalars: Values of the arrays without axes.

    Raises:
        ShapeMismatch: Leading axes of different lengths, or no column at all.
    """
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ShapeMismatch(f"the leading axis counts records, so it must be one length: {told}")
    columns = tuple(name for name in shapes if name != FAMILY)
    if not columns:
        raise ShapeMismatch("no array with a record axis")
    units = {
        name.removesuffix(UNIT_SUFFIX): str(value)
        for name, value in scalars.items()
        if name.endswith(UNIT_SUFFIX)
    }
    params = {name: v for name, v in scalars.items() if not name.endswith(UNIT_SUFFIX)}
    return Layout(columns, next(iter(lengths.values())), units, params, FAMILY in shapes)


def drafts(layout: Layout, rows: Iterable[Mapping[str, Array]], *, source: str) -> Iterator[Draft]:
    """A draft for each row: a mapping from column (and `family`) to one record's array."""
    for index, row in enumerate(rows):
        yield Draft(
            index=index,
            source=source,
            arrays={name: row[name] for name in layout.columns},
            units=layout.units,
            params=layout.params,
            family=str(row[FAMILY][()]) if layout.has_families else None,
        )


def scalar_value(name: str, array: Array) -> Any:
    """A number or text out of an array without axes. Raises InputError for anything else."""
    value = array.item()
    if isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"array {name!r} holds a {type(value).__name__}, not a number or text")


def rows_of(arrays: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Records out of arrays in memory that share their leading axis."""
    length = len(next(iter(arrays.values())))
    for index in range(length):
        yield {name: np.asarray(array[index]) for name, array in arrays.items()}
