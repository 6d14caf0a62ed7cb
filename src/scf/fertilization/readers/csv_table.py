"""Tables of numbers in CSV: one record a row, one scalar field a column.

The header names the columns; a unit may follow a name in brackets: `pressure [hPa]`. A column named
`observed_at`, `time` or `timestamp` may hold RFC 3339 (with a unit, or a number in the first row,
it is a column of numbers like any other), and a column named `family` text. A table with any other
text in it is not guessed at.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scf.core.clock import parse_utc
from scf.core.errors import InputError
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.describe import Description, FieldSummary
from scf.storage.ndjson import LINE_MAX_BYTES, Line, read_lines
from scf.vault.quarantine import Rejection

_SUFFIXES = tuple(f".{kind}{packing}" for kind in ("csv", "tsv") for packing in ("", ".gz", ".zst"))
_HEADING = re.compile(r"(?P<name>.*?)\s*(?:\[(?P<unit>[^\]]*)\]|\((?P<unit2>[^)]*)\))?")
_TIME_NAMES = {"observed_at", "time", "timestamp"}
_FAMILY_NAME = "family"


class CsvReader:
    """`.csv` and `.tsv` with a header, separated by comma, semicolon or tab."""

    name = "csv"

    def recognises(self, path: Path, head: bytes) -> bool:
        if not path.name.endswith(_SUFFIXES):
            return False
        try:
            header, first = itertools.islice(_lines(path, LINE_MAX_BYTES), 2)
            _read_header(header, first).draft(first, 0)
        except (InputError, ValueError):  # ValueError: there are not two lines
            return False
        return True

    def read(self, origin: Origin) -> Iterator[Record]:
        lines = _lines(origin.path, origin.line_max_bytes)
        header, first = next(lines, None), next(lines, None)
        if header is None:
            raise InputError(f"{origin.path}: the table is empty")
        table = _read_header(header, first)
        rows = lines if first is None else itertools.chain([first], lines)
        for index, line in enumerate(rows):
            try:
                yield table.draft(line, index, source=f"file {origin.name}")
            except InputError as error:
                yield Rejection("row", str(error), line.number, line.offset, index, line.data)

    def describe(self, path: Path) -> Description:
        """What the header says."""
        lines = _lines(path, LINE_MAX_BYTES)
        header, first = next(lines, None), next(lines, None)
        if header is None:
            raise InputError(f"{path}: the table is empty")
        table = _read_header(header, first)
        notes = (["a column of times"] if table.times else []) + (
            ["a column of families"] if table.families else []
        )
        return Description(
            f"a table of {table.width} columns, separated by {table.separator!r}",
            None,
            tuple(FieldSummary(name, "float64", (), unit) for name, unit in table.numbers.values()),
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class _Table:
    """The columns of a table: index to (name, unit) of numbers; where time and family stand."""

    separator: str
    width: int
    numbers: dict[int, tuple[str, str]]
    times: tuple[int, ...]
    families: tuple[int, ...]

    def draft(self, line: Line, index: int, *, source: str = "") -> Draft:
        """The record on a line. Raises InputError for a row that does not fit the header."""
        if line.fault is not None:
            raise InputError(line.fault)
        cells = _cells(line.data, self.separator)
        if len(cells) != self.width:
            raise InputError(f"the row has {len(cells)} cells, the header {self.width}")
        arrays = {
            name: np.array(_number(name, cells[at])) for at, (name, _) in self.numbers.items()
        }
        units = {name: unit for name, unit in self.numbers.values() if unit}
        observed_at = None
        for at in self.times:
            observed_at = _time(cells[at])
        return Draft(
            index=index,
            source=source,
            arrays=arrays,
            units=units,
            observed_at=observed_at,
            family=next((cells[at] for at in self.families), None) or None,
            line=line.number,
            offset=line.offset,
        )


def _lines(path: Path, line_max_bytes: int) -> Iterator[Line]:
    """Lines from the header on; comments (`#`) before it are left out."""
    is_before_header = True
    for line in read_lines(path, line_max_bytes=line_max_bytes):
        if is_before_header and line.data.startswith(b"#"):
            continue
        is_before_header = False
        yield line


def _read_header(line: Line, first: Line | None) -> _Table:
    """The columns, by the header and, where it leaves a doubt, the first row."""
    if line.fault is not None:
        raise InputError(f"header: {line.fault}")
    text = line.data.decode("utf-8-sig", errors="replace")
    separator = max(",;\t", key=text.count)
    headings = _cells(line.data, separator)
    cells = _cells(first.data, separator) if first is not None and first.fault is None else []
    numbers: dict[int, tuple[str, str]] = {}
    times, families = [], []
    for at, heading in enumerate(headings):
        match = _HEADING.fullmatch(heading)
        name = match["name"] if match else ""
        if not name or _is_number(name):
            raise InputError(f"the header's column {at + 1} has no name: {heading!r}")
        if name in {n for n, _ in numbers.values()}:
            raise InputError(f"two columns are called {name!r}")
        assert match is not None
        unit = match["unit"] or match["unit2"] or ""
        is_counted = bool(unit) or (at < len(cells) and _is_number(cells[at]))
        if name.lower() in _TIME_NAMES and not is_counted:
            times.append(at)
        elif name.lower() == _FAMILY_NAME:
            families.append(at)
        else:
            numbers[at] = (name, unit)
    if not any(name.lower() not in _TIME_NAMES for name, _ in numbers.values()):
        raise InputError("the table has no column of numbers")
    return _Table(separator, len(headings), numbers, tuple(times[:1]), tuple(families[:1]))


def _cells(data: bytes, separator: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
        return [cell.strip() for cell in next(csv.reader([text], delimiter=separator, strict=True))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not a row of a table: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000 as a number; tables do not


def _number(name: str, text: str) -> float:
    if not _is_number(text):
        raise InputError(f"column {name!r}: {text[:40]!r} is not a number")
    return float(text)


def _time(text: str) -> str:
    try:
        parse_utc(text)
    except ValueError as error:
        raise InputError(f"time {text[:40]!r} is not RFC 3339 with a zone") from error
    return text
