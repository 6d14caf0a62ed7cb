"""MATLAB files. To 7.2 through scipy; 7.3, which is HDF5, through h5py.

The first index of a MATLAB array is the record axis, as the leading axis is in every array file.
MATLAB stores the first index fastest, so that a record's numbers lie apart. A 7.3 file shows its
arrays transposed to h5py; they are turned back, and read along the chunks. In files to 7.2 each
variable is one compressed stream and has to be held whole: larger ones are refused.

A 1x1 array is a parameter, a 1xN or Nx1 array a vector, text a parameter. Cells, structs, objects,
sparse and complex arrays are not fields: a file that holds them is refused unless the fields to
read are named.
"""

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers.base import HEAD_BYTES, Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.hdf5_file import (
    check_inside,
    child,
    is_hdf5,
    open_hdf5,
    unit_of,
)
from scf.fertilization.readers.leading_axis import leading_axis
from scf.fertilization.readers.options import ReadOptions, WindowedReader, Windows
from scf.fertilization.readers.series import (
    Series,
    Trajectory,
    grid_params,
    is_number,
    num_records,
    patch_notes,
    plain,
    plain_params,
    records,
    summaries,
)
from scf.fertilization.readers.tools import tool
from scf.vault.fields import Array

# All variables of a file to 7.2, unpacked. Sizes are read from its headers first.
WHOLE_MAX_BYTES = 512 * 2**20
_CLASSES = {
    "double": "float64",
    "single": "float32",
    "logical": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_TEXT_MAX = 200
_HEADER_BYTES = 128
_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, zlib.error)


class VariableUnknown(InputError):
    """A variable that is no array of numbers, or too large to be held."""

    kind = "variable"


class MatReader(WindowedReader):
    """`.mat` files. They know no time, so of the settings in `Windows` those without.

    Args:
        whole_max_bytes: Larger files of versions to 7.2 (unpacked) are refused: they have to be
            held in memory.
    """

    name = "mat"
    options = frozenset({"fields", "patch", "mask_fields"})

    def __init__(
        self, *, whole_max_bytes: int = WHOLE_MAX_BYTES, **options: Unpack[ReadOptions]
    ) -> None:
        super().__init__(**options)
        self.whole_max_bytes = whole_max_bytes

    def configured(self, options: ReadOptions) -> Self:
        """The same reader with these settings."""
        return type(self)(whole_max_bytes=self.whole_max_bytes, **options)

    def recognises(self, path: Path, head: bytes) -> bool:
        if is_hdf5(head):
            return head.startswith(b"MATLAB 7.3")
        is_version_5 = head.startswith(b"MATLAB 5.0") or (
            len(head) >= 128 and head[124:128] in {b"\x00\x01IM", b"\x01\x00MI"}
        )
        return is_version_5 or (path.name.endswith(".mat") and _is_version_4(head))

    def read(self, origin: Origin) -> Iterator[Record]:
        with self._open(origin.path) as variables:
            trajectory = _understand(variables, self.windows)
            source = f"file {origin.name}"
            yield from records([trajectory], self.windows, origin, source=source)

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with self._open(path) as variables:
            trajectory = _understand(variables, self.windows)
            notes = (f"{name}: {what}, left out" for name, what in variables.strange.items())
            return Description(
                variables.layout,
                num_records(trajectory, self.windows),
                summaries(trajectory, self.windows),
                params=trajectory.params,
                notes=(*notes, *patch_notes(trajectory, self.windows)),
            )

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator["_Variables"]:
        with path.open("rb") as file:
            is_version_73 = is_hdf5(file.read(HEAD_BYTES))
        if is_version_73:
            with open_hdf5(path) as hdf5:
                yield _of_hdf5(hdf5)
            return
        matlab = tool("scipy.io", extra="hdf5")
        errors = tool("scipy.io.matlab", extra="hdf5").MatReadError
        try:
            yield _of_stream(matlab, path, self.windows, self.whole_max_bytes)
        # scipy raises what its parser stumbles over, zlib.error for damaged streams among it.
        except (errors, *_ERRORS) as error:
            raise InputError(f"{path}: cannot be read further: {error}") from error


@dataclass(frozen=True)
class _Variables:
    """The variables of a file.

    Attributes:
        layout: The layout in words.
        arrays: Those of numbers with an axis, as `Series` along their first axis, with its length.
        scalars: Values of 1x1 arrays and text.
        strange: Those that are not numbers, with what they are.
    """

    layout: str
    arrays: Mapping[str, tuple[int, Series]]
    scalars: Mapping[str, Any]
    strange: Mapping[str, str]


def _understand(variables: _Variables, windows: Windows) -> Trajectory:
    if variables.strange and windows.fields is None:
        name, what = next(iter(variables.strange.items()))
        raise VariableUnknown(
            f"variable {name!r} is a {what}, not an array of numbers; never loaded",
            remedy="Name the fields to read.",
        )
    arrays = variables.arrays
    axis = leading_axis({n: (length, *s.shape) for n, (length, s) in arrays.items()}, windows)
    params = plain_params(variables.scalars)
    for name in axis.coordinates:
        length, series = arrays[name]
        params |= grid_params(name, series.read(0, length))
    return Trajectory(axis.num_records, tuple(arrays[n][1] for n in axis.columns), params=params)


def _of_hdf5(file: Any) -> _Variables:
    arrays: dict[str, tuple[int, Series]] = {}
    scalars: dict[str, Any] = {}
    strange: dict[str, str] = {}
    h5py = tool("h5py", extra="hdf5")
    for name in file:
        if str(name).startswith("#"):  # where MATLAB keeps the contents of cells and objects
            continue
        item = child(file, name)
        kind = plain(item.attrs.get("MATLAB_class", b"")) or "group"
        if kind == "char" and isinstance(item, h5py.Dataset) and not item.attrs.get("MATLAB_empty"):
            check_inside(item)
            codes = np.asarray(item[...]).T.ravel()[:_TEXT_MAX]
            scalars[name] = "".join(chr(code) for code in codes)
        elif kind not in {*_CLASSES, "group"} or not isinstance(item, h5py.Dataset):
            strange[name] = str(kind)
        elif not is_number(item.dtype):
            strange[name] = str(item.dtype)
        elif item.attrs.get("MATLAB_empty") or 0 in item.shape:
            continue
        elif item.size == 1:
            check_inside(item)
            scalars[name] = item[...]
        else:
            check_inside(item)
            arrays[name] = _transposed(name, item, is_logical=kind == "logical")
    return _Variables("MATLAB 7.3", arrays, scalars, strange)


def _transposed(name: str, item: Any, *, is_logical: bool) -> tuple[int, Series]:
    """An array of MATLAB along its first index, which is the last axis in HDF5."""
    is_vector = sum(length > 1 for length in item.shape) == 1
    axis = int(np.argmax(item.shape)) if is_vector else item.ndim - 1
    shape = () if is_vector else item.shape[-2::-1]
    dtype = np.dtype(bool) if is_logical else item.dtype

    def read(start: int, stop: int) -> Array:
        cut = [slice(None)] * item.ndim
        cut[axis] = slice(start, stop)
        block: Array = item[tuple(cut)].T.reshape(stop - start, *shape)
        return block.astype(dtype, copy=False)

    chunks = item.chunks
    unit = unit_of(item)
    return item.shape[axis], Series(name, dtype, shape, read, unit, chunks[axis] if chunks else 1)


def _of_stream(matlab: Any, path: Path, windows: Windows, whole_max_bytes: int) -> _Variables:
    _check_complete(path)
    found = matlab.whosmat(str(path))
    is_wanted = {name: windows.keeps(name) for name, _, _ in found}
    shapes = {name: shape for name, shape, kind in found if kind in _CLASSES and 0 not in shape}
    dtypes = {name: np.dtype(_CLASSES[kind]) for name, _, kind in found if kind in _CLASSES}
    strange = {n: kind for n, _, kind in found if kind not in {*_CLASSES, "char"}}
    arrays = {name for name, shape in shapes.items() if math.prod(shape) > 1}
    size_bytes = sum(
        math.prod(shapes[name]) * dtypes[name].itemsize for name in arrays if is_wanted[name]
    )
    if size_bytes > whole_max_bytes:
        raise VariableUnknown(
            f"{path}: {size_bytes} bytes in a form that has to be held in memory, "
            f"at most {whole_max_bytes} are",
            remedy="Save it in MATLAB with `-v7.3`, or name fewer fields.",
        )
    small = [name for name, _, kind in found if kind == "char" or name in shapes]
    small = [name for name in small if name not in arrays]
    values = matlab.loadmat(str(path), variable_names=small) if small else {}
    scalars = {name: _scalar(values[name]) for name in small}
    held: dict[str, Array] = {}

    def array_of(name: str) -> Array:
        if not held:
            wanted = [n for n in arrays if is_wanted[n]]
            loaded = matlab.loadmat(str(path), variable_names=wanted)
            held.update({n: loaded[n] for n in wanted})
        if not is_number(held[name].dtype):
            raise VariableUnknown(f"variable {name!r} holds {held[name].dtype} values")
        return held[name]

    return _Variables(
        "MATLAB to 7.2",
        {name: _held(name, shapes[name], dtypes[name], array_of) for name in sorted(arrays)},
        scalars,
        strange,
    )


def _check_complete(path: Path) -> None:
    """Raises InputError for a file of version 5 whose last variable is cut off.

    scipy does not always notice. A variable is a tag (type and length, 4 bytes each) and as many
    bytes, from byte 128 on.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        if head[126:128] not in {b"IM", b"MI"}:
            return
        order: Literal["little", "big"] = "little" if head[126:128] == b"IM" else "big"
        end = _HEADER_BYTES
        while end < size_bytes:
            file.seek(end + 4)
            end += 8 + int.from_bytes(file.read(4), order)
    if end != size_bytes:
        raise InputError(f"{path}: ends at byte {size_bytes}, its last variable at {end}")


def _held(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], array_of: Callable[[str], Array]
) -> tuple[int, Series]:
    is_vector = sum(length > 1 for length in shape) == 1
    length = max(shape) if is_vector else shape[0]
    rest = () if is_vector else shape[1:]

    def read(start: int, stop: int) -> Array:
        array = array_of(name)
        rows = array.ravel() if is_vector else array
        return np.asarray(rows[start:stop], dtype, order="C")

    return length, Series(name, dtype, rest, read)


def _scalar(value: Array) -> Any:
    """A number, or the first line of a text."""
    return str(value.ravel()[0])[:_TEXT_MAX] if value.dtype.kind == "U" and value.size else value


def _is_version_4(head: bytes) -> bool:
    """Whether a file may be of version 4: its first number is MOPT, a type code below 5000."""
    if len(head) < 20:
        return False
    codes = (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    return any(code < 5000 for code in codes)
