"""HDF5 without a layout that we know: datasets that share their leading axis are fields.

Groups make names: `run/p` is dataset `p` of group `run`. The attribute `units` (or `unit`) states
the unit. A dataset of text named `family` states the family of each record; without it contiguous
blocks are families. Datasets without axes and attributes of the file are parameters. A dataset of
compound type (a table, as PyTables writes it) gives a field a column, `table/column`.

Nothing but bytes without a unit (8-bit integers: a picture, a map, a table of codes) is not taken
for records unless the reader is named.

Other text is left out. Objects, references, complex numbers and ragged arrays are not numbers:
a file that holds them is refused unless the fields to read are named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.hdf5_file import (
    LayoutInvalid,
    check_inside,
    is_hdf5,
    members,
    open_hdf5,
    series_of,
    unit_of,
)
from scf.fertilization.readers.leading_axis import leading_axis
from scf.fertilization.readers.options import WindowedReader, Windows
from scf.fertilization.readers.series import (
    Series,
    Trajectory,
    grid_params,
    is_number,
    num_records,
    patch_notes,
    plain_params,
    records,
    summaries,
)
from scf.fertilization.readers.tools import has_tool, tool
from scf.vault.fields import Array

_FAMILY = "family"


class Hdf5ArraysReader(WindowedReader):
    """HDF5 files of arrays. It knows no time, so of the settings in `Windows` those without."""

    # Files of The Well and PDEBench, NetCDF and MATLAB files are HDF5 too; this is the rest.
    name = "hdf5-arrays"
    options = frozenset({"fields", "patch", "mask_fields"})

    def recognises(self, path: Path, head: bytes) -> bool:
        if not is_hdf5(head):
            return False
        # Damaged HDF5, and any where h5py is missing, ends here, where reading says what is wrong.
        if not has_tool("h5py"):
            return True
        try:
            with open_hdf5(path) as file:
                return _has_quantities(file)
        except InputError:
            return True

    def read(self, origin: Origin) -> Iterator[Record]:
        with open_hdf5(origin.path) as file:
            trajectory, _ = _understand(file, self.windows)
            source = f"file {origin.name}"
            yield from records([trajectory], self.windows, origin, source=source)

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with open_hdf5(path) as file:
            trajectory, notes = _understand(file, self.windows)
            return Description(
                "HDF5 arrays that share their leading axis",
                num_records(trajectory, self.windows),
                summaries(trajectory, self.windows),
                params=trajectory.params,
                notes=(*notes, *patch_notes(trajectory, self.windows)),
            )


def _has_quantities(file: Any) -> bool:
    """Whether there is an array that is more than bytes, or bytes with a unit."""
    h5py = tool("h5py", extra="hdf5")

    for _, item in members(file):
        if isinstance(item, h5py.Dataset) and item.shape:
            is_bytes = item.dtype.kind == "u" and item.dtype.itemsize == 1
            if not is_bytes or unit_of(item):
                return True
    return False


@dataclass(frozen=True)
class _Column:
    """A dataset of numbers, or one member of a compound one."""

    dataset: Any
    member: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def series(self, name: str) -> Series:
        if self.member is None:
            return series_of(name, self.dataset)
        view = self.dataset.fields(self.member)

        def read(start: int, stop: int) -> Array:
            block: Array = view[start:stop]
            return block

        chunks = self.dataset.chunks
        return Series(name, self.dtype, self.shape[1:], read, "", chunks[0] if chunks else 1)


def _understand(file: Any, windows: Windows) -> tuple[Trajectory, tuple[str, ...]]:
    """The records of a file as one run of steps, and notes on what is left out."""
    columns, scalars, labels, left_out = _contents(file, windows)
    axis = leading_axis({name: column.shape for name, column in columns.items()}, windows)
    params = plain_params(dict(file.attrs.items()) | scalars)
    for name in axis.coordinates:
        params |= grid_params(name, columns[name].dataset[...])
    family_of = None
    if labels is not None:
        h5py = tool("h5py", extra="hdf5")
        if labels.shape != (axis.num_records,):
            raise LayoutInvalid(f"{_FAMILY!r} has shape {list(labels.shape)}, not one a record")
        names = labels.asstr() if h5py.check_string_dtype(labels.dtype) else labels

        def family_of(step: int) -> str:
            return str(names[step])

    trajectory = Trajectory(
        axis.num_records,
        tuple(columns[name].series(name) for name in axis.columns),
        params=params,
        family_of=family_of,
    )
    return trajectory, tuple(f"{name}: text, left out" for name in left_out)


def _contents(
    file: Any, windows: Windows
) -> tuple[dict[str, _Column], dict[str, Any], Any, list[str]]:
    """Columns by name, values without axes, the dataset of families, names of other text."""
    h5py = tool("h5py", extra="hdf5")
    columns: dict[str, _Column] = {}
    scalars: dict[str, Any] = {}
    left_out: list[str] = []
    labels = None

    for name, item in members(file):
        if not isinstance(item, h5py.Dataset):
            continue
        check_inside(item)
        is_text = h5py.check_string_dtype(item.dtype) is not None
        if item.shape is None:  # an empty dataset, which has a type and no value
            continue
        if name == _FAMILY and item.shape and (is_text or item.dtype.kind in "iu"):
            labels = item
        elif not item.shape and (is_text or is_number(item.dtype)):
            scalars[name] = item[()]
        elif is_text:
            left_out.append(name)
        elif item.shape:
            columns.update(_columns(name, item, windows))
    return columns, scalars, labels, left_out


def _columns(name: str, item: Any, windows: Windows) -> dict[str, _Column]:
    if item.dtype.names is None:
        found = {name: _Column(item, None, item.dtype, item.shape)}
    else:
        found = {}
        for member in (m for m in item.dtype.names if item.dtype[m].kind != "S"):
            base, shape = item.dtype[member].base, item.dtype[member].shape
            found[f"{name}/{member}"] = _Column(item, member, base, item.shape + shape)
    for column_name, column in found.items():
        if not is_number(column.dtype) and (windows.fields is None or windows.keeps(column_name)):
            raise LayoutInvalid(
                f"dataset {column_name!r} holds {column.dtype} values, not numbers; never loaded",
                remedy="Name the fields to read.",
            )
    return {n: c for n, c in found.items() if is_number(c.dtype)}
