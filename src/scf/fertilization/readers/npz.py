"""NumPy archives: arrays with one row a record, streamed a row at a time; never unpickled."""

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from scf.core.errors import InputError
from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.columns import Layout, drafts, layout_of, rows_of, scalar_value
from scf.fertilization.readers.describe import Description, FieldSummary
from scf.vault.fields import Array


class NpzReader:
    """`.npz` as `numpy.savez` and `savez_compressed` write it."""

    name = "npz"

    def recognises(self, path: Path, head: bytes) -> bool:
        return path.name.endswith(".npz") and head.startswith(b"PK")

    def read(self, origin: Origin) -> Iterator[Record]:
        with _opened(origin.path) as (columns, layout):
            rows = (
                {member.name: row for member, row in zip(columns, parts, strict=True)}
                for parts in zip(*(m.rows() for m in columns), strict=True)
            )
            yield from drafts(layout, rows, source=f"file {origin.name}")

    def describe(self, path: Path) -> Description:
        """What `read` would yield, from the headers of the arrays."""
        with _opened(path) as (columns, layout):
            by_name = {member.name: member for member in columns}
            return Description(
                "NumPy arrays that share their leading axis",
                layout.num_records,
                tuple(
                    FieldSummary(
                        name,
                        by_name[name].dtype.name,
                        by_name[name].shape[1:],
                        layout.units.get(name, ""),
                    )
                    for name in layout.columns
                ),
                params=layout.params,
                notes=("an array of families",) if layout.has_families else (),
            )


@dataclass(frozen=True)
class _Member:
    """One array of an archive, its stream standing behind the header."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    stream: IO[bytes]

    def whole(self) -> Array:
        count = int(np.prod(self.shape, dtype=np.int64))
        data = _read_exactly(self.stream, count * self.dtype.itemsize, self.name)
        flat: Array = np.frombuffer(data, self.dtype)
        return flat.reshape(self.shape[::-1]).T if self.fortran_order else flat.reshape(self.shape)

    def rows(self) -> Iterator[Array]:
        if self.fortran_order:  # a record's numbers lie apart, so the array must be held whole
            for row in rows_of({self.name: self.whole()}):
                yield row[self.name]
            return
        shape = self.shape[1:]
        row_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        for _ in range(self.shape[0]):
            data = _read_exactly(self.stream, row_bytes, self.name)
            yield np.frombuffer(data, self.dtype).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[_Member], Layout]]:
    """The arrays of an archive that have a record axis, and what they mean."""
    try:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [_open(stack, archive, info) for info in archive.infolist()]
            scalars = {
                member.name: scalar_value(member.name, member.whole())
                for member in members
                if not member.shape
            }
            columns = [member for member in members if member.shape]
            yield columns, layout_of({m.name: m.shape for m in columns}, scalars)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error


def _open(stack: contextlib.ExitStack, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if not info.filename.endswith(".npy"):
        raise InputError(f"member {info.filename!r} is not an array")
    name = info.filename.removesuffix(".npy")
    stream = stack.enter_context(archive.open(info))
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy.read_array_header_2_0(stream)
    else:
        raise InputError(f"array {name!r} has format version {version}, known are 1.0 and 2.0")
    if dtype.hasobject:
        raise InputError(f"array {name!r} holds Python objects; those are never loaded")
    return _Member(name, shape, dtype, fortran_order, stream)


def _read_exactly(stream: IO[bytes], size_bytes: int, name: str) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise InputError(f"array {name!r} ends before its last number")
    return data
