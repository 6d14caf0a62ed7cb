"""Parquet tables: one record a row, read in batches within row groups.

A column of numbers is a scalar field, a column of lists of numbers a vector field (lists in lists
and Arrow's tensors are arrays). A unit follows the name in brackets, as in CSV, or stands in the
column's metadata (`units`, `unit`). Text is a parameter; a column `family` states families, and a
column `observed_at`, `time` or `timestamp` the time, if it has a zone. A row with a null is a gap.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.clock import parse_utc
from scf.core.errors import InputError
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.describe import Description, FieldSummary
from scf.fertilization.readers.options import WindowedReader, Windows
from scf.fertilization.readers.series import BLOCK_BYTES, is_number
from scf.fertilization.readers.tools import tool
from scf.vault.fields import Array
from scf.vault.quarantine import Rejection

_MAGIC = b"PAR1"
_HEADING = re.compile(r"(?P<name>.*?)\s*(?:\[(?P<unit>[^\]]*)\]|\((?P<unit2>[^)]*)\))?")
_TIME_NAMES = {"observed_at", "time", "timestamp"}
_FAMILY_NAME = "family"
_ROWS_MAX = 4096


class ColumnUnknown(InputError):
    """A column holds something that is neither numbers, text nor time."""

    kind = "column"


class ParquetReader(WindowedReader):
    """Parquet files. Of the settings in `Windows` it knows `fields`."""

    name = "parquet"
    options = frozenset({"fields"})

    def recognises(self, path: Path, head: bytes) -> bool:
        del path
        return head.startswith(_MAGIC)

    def read(self, origin: Origin) -> Iterator[Record]:
        with _open(origin.path) as file:
            columns = _columns(file.schema_arrow, self.windows)
            rows = _rows_at_a_time(file.metadata)
            units = {c.name: c.unit for c in columns if c.role == "field" and c.unit}
            about = _About(f"file {origin.name}", units)
            index = 0
            for batch in file.iter_batches(
                rows, columns=[column.label for column in columns], use_threads=False
            ):
                taken = [column.take(batch.column(column.label)) for column in columns]
                for row in range(batch.num_rows):
                    yield _record(columns, taken, row, index, about)
                    index += 1

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with _open(path) as file:
            columns = _columns(file.schema_arrow, self.windows)
            others = [f"{c.label}: {c.role}" for c in columns if c.role != "field"]
            return Description(
                f"Parquet, {_row_groups(file.metadata.num_row_groups)}",
                file.metadata.num_rows,
                tuple(
                    FieldSummary(c.name, c.dtype.name, c.shape, c.unit)
                    for c in columns
                    if c.role == "field"
                ),
                notes=tuple(others),
            )


@dataclass(frozen=True)
class _Column:
    """A column and what becomes of it.

    Attributes:
        label: Its name in the file.
        name: The name without its unit.
        unit: As stated.
        role: `field`, `param`, `family` or `time`.
        dtype: Type of the numbers.
        shape: Of one record's array; None where records may differ.
        take: Turns a batch's column into a value for each row; None for a gap.
    """

    label: str
    name: str
    unit: str
    role: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    take: Callable[[Any], Callable[[int], Any]]


@dataclass(frozen=True)
class _About:
    """What all records of a file share."""

    source: str
    units: Mapping[str, str]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    parquet = tool("pyarrow.parquet", extra="parquet")
    pyarrow = tool("pyarrow", extra="parquet")
    try:
        # Pages are read as they are needed, not whole columns of a row group.
        with parquet.ParquetFile(path, buffer_size=2**16, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error


def _rows_at_a_time(metadata: Any) -> int:
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    size_bytes = sum(group.total_byte_size for group in groups)
    row_bytes = max(1, size_bytes // max(1, metadata.num_rows))
    # A row has its batch in three forms at once: pages, Arrow's array, and ours.
    return int(min(_ROWS_MAX, max(1, BLOCK_BYTES // 8 // row_bytes)))


def _columns(schema: Any, windows: Windows) -> list[_Column]:
    types = tool("pyarrow.types", extra="parquet")
    found: list[_Column] = []
    for field in schema:
        match = _HEADING.fullmatch(field.name)
        name = (match["name"] if match else "") or field.name
        unit = (match["unit"] or match["unit2"] or "") if match else ""
        metadata = field.metadata or {}
        stated = metadata.get(b"units", metadata.get(b"unit", b""))
        unit = unit or stated.decode("utf-8", "replace")
        found.append(_column(types, field, name, unit))
    names = [column.name for column in found if column.role == "field"]
    windows.check_fields(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ColumnUnknown(f"two columns are called {', '.join(twice)}")
    unknown = [c for c in found if c.role == "unknown" and windows.fields is None]
    if unknown:
        raise ColumnUnknown(
            f"column {unknown[0].label!r} is neither numbers, text nor time",
            remedy="Name the fields to read.",
        )
    kept = [
        c for c in found if c.role != "unknown" and (c.role != "field" or windows.keeps(c.name))
    ]
    if not any(column.role == "field" for column in kept):
        raise ColumnUnknown("the table has no column of numbers")
    return kept


def _column(types: Any, field: Any, name: str, unit: str) -> _Column:
    kind = field.type
    nothing = np.dtype(np.uint8)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if name.lower() == _FAMILY_NAME and (_is_text(types, kind) or types.is_integer(kind)):
        return _Column(field.name, name, unit, "family", nothing, (), _take_plain)
    if name.lower() in _TIME_NAMES and (types.is_timestamp(kind) or _is_text(types, kind)):
        return _Column(field.name, name, unit, "time", nothing, (), _take_plain)
    if _is_text(types, kind) or types.is_temporal(kind):
        return _Column(field.name, name, unit, "param", nothing, (), _take_plain)
    shape: list[int | None] = []
    while True:
        if hasattr(kind, "storage_type") and hasattr(kind, "shape"):  # a tensor of fixed shape
            shape += list(kind.shape)
            kind = kind.value_type
        elif types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
            kind = kind.value_type
        elif types.is_list(kind) or types.is_large_list(kind):
            shape.append(None)
            kind = kind.value_type
        else:
            break
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return _Column(field.name, name, unit, "unknown", nothing, (), _take_plain)
    dtype = np.dtype(kind.to_pandas_dtype())
    if not is_number(dtype):
        return _Column(field.name, name, unit, "unknown", nothing, (), _take_plain)
    lengths = tuple(length for length in shape if length is not None)
    known = lengths if len(lengths) == len(shape) else None

    def take(column: Any) -> Callable[[int], Any]:
        return _take_arrays(column, dtype, known, is_nested=len(shape) > 1)

    return _Column(field.name, name, unit, "field", dtype, known, take)


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _take_plain(column: Any) -> Callable[[int], Any]:
    def at(row: int) -> Any:
        return column[row].as_py()

    return at


def _take_arrays(
    column: Any, dtype: np.dtype[Any], shape: tuple[int, ...] | None, *, is_nested: bool
) -> Callable[[int], Any]:
    """A function from row to array; None for a row with a null in it."""
    storage = getattr(column, "storage", column)
    is_null = storage.is_null().to_numpy(zero_copy_only=False)
    if shape == ():
        values = _numbers(storage, dtype)
        return lambda row: None if is_null[row] else np.asarray(values[row])
    if shape is None and is_nested:
        return lambda row: None if is_null[row] else _array(storage[row].as_py(), dtype)
    inner, depth = storage, len(shape) if shape is not None else 1
    starts = np.arange(len(storage) + 1) if shape is not None else storage.offsets.to_numpy()
    if shape is None:
        inner = storage.values
        return _slices(inner, dtype, starts, is_null)
    if is_null.any():  # flattening leaves out what is null
        return lambda row: None if is_null[row] else _array(storage[row].as_py(), dtype, shape)
    while depth and hasattr(inner.type, "value_type"):
        inner, depth = inner.flatten(), depth - 1
    return _slices(inner, dtype, starts * int(np.prod(shape)), is_null, shape)


def _slices(
    inner: Any,
    dtype: np.dtype[Any],
    starts: Array,
    is_null: Array,
    shape: tuple[int, ...] | None = None,
) -> Callable[[int], Any]:
    gaps = inner.is_null().to_numpy(zero_copy_only=False)
    values = _numbers(inner, dtype)

    def at(row: int) -> Array | None:
        part = slice(starts[row], starts[row + 1])
        if is_null[row] or gaps[part].any() or part.start == part.stop:
            return None
        array: Array = values[part]
        return array if shape is None else array.reshape(shape)

    return at


def _row_groups(count: int) -> str:
    return "one row group" if count == 1 else f"{count} row groups"


def _numbers(array: Any, dtype: np.dtype[Any]) -> Array:
    """The numbers of an Arrow array; zero where there is none, which the caller has noted."""
    if array.null_count:
        array = array.fill_null(dtype.type(0).item())
    numbers: Array = array.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return numbers


def _array(value: Any, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None) -> Array | None:
    try:
        array = np.array(value, dtype)
    except (TypeError, ValueError) as error:  # a null in a list; lists of different lengths
        raise InputError(f"a list is ragged or has a null in it: {error}") from error
    return array if shape is None else array.reshape(shape)


def _record(
    columns: list[_Column],
    taken: list[Callable[[int], Any]],
    row: int,
    index: int,
    about: _About,
) -> Record:
    arrays: dict[str, Array] = {}
    params: dict[str, Any] = {}
    family = observed_at = None
    try:
        for column, at in zip(columns, taken, strict=True):
            value = at(row)
            if column.role == "field":
                if value is None:
                    return Rejection("gap", f"column {column.label!r} has no value", index=index)
                arrays[column.name] = value
            elif value is None:
                continue
            elif column.role == "family":
                family = str(value) or None
            elif column.role == "time" and _moment(value) is not None:
                observed_at = _moment(value)
            else:
                params[column.name] = value if isinstance(value, str) else value.isoformat()
    except InputError as error:
        return Rejection("row", f"column {column.label!r}: {error}", index=index)
    return Draft(
        index=index,
        source=about.source,
        arrays=arrays,
        units=about.units,
        params=params,
        observed_at=observed_at,
        family=family,
    )


def _moment(value: Any) -> str | None:
    """RFC 3339; None for a time without a zone, which is a parameter then."""
    text = value if isinstance(value, str) else value.isoformat()
    try:
        parse_utc(text)
    except ValueError:
        return None
    return str(text)
