"""The arrays of a fossil: their types, their bytes, and the two forms in which JSON carries them.

A field is `{dtype, shape, unit, b64}` or `{dtype, shape, unit, values}`. Both forms of the same
numbers become the same little-endian bytes in row-major order, and it is those bytes that the CID
covers. Format: docs/formats/fossil.md.
"""

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pybase64

from scf.core.errors import InputError
from scf.vault.line_cuts import Cut, NeedsCare, numbers_of

# numpy is imported where numbers are: who only asks which fossils there are, as a conductor that
# plans does, stays 11 MB smaller.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_NAMES = (
    *("float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    "bool",
)
_DIMENSIONS_MAX = 32
_DOUBLE = struct.Struct("<d")


def __getattr__(name: str) -> Any:
    if name == "Array":
        import numpy.typing as npt

        return npt.NDArray[Any]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _dtypes() -> "dict[str, np.dtype[Any]]":
    """Every spelling that we understand, and the little-endian type that it means."""
    import numpy as np

    return {
        spelling: np.dtype(name).newbyteorder("<")
        for name in _NAMES
        for spelling in (name, np.dtype(name).newbyteorder("<").str)
    }


class FieldInvalid(InputError):
    """A field cannot be read as the array that it says it is."""

    kind = "field"


class ShapeMismatch(FieldInvalid):
    """The numbers of a field do not fill its shape exactly."""

    kind = "shape"


class NotFinite(FieldInvalid):
    """A field holds NaN or an infinity. Physics has neither; a gap is a record that is absent."""

    kind = "not-finite"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What a field is, without its numbers.

    Attributes:
        name: The field's name; never begins with `_`, which marks metadata in minibatches.
        dtype: NumPy's name of the type, such as `float32`.
        shape: Lengths of the axes; () for a scalar.
        unit: Unit as the source wrote it; empty where it states none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str

    @property
    def numpy_dtype(self) -> "np.dtype[Any]":
        """The type of the stored bytes: little-endian."""
        return _dtypes()[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Bytes of one record's array."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    def array(self, data: bytes) -> "Array":
        """The array in `data`, without a copy and therefore read-only."""
        import numpy as np

        return np.frombuffer(data, self.numpy_dtype).reshape(self.shape)


def read_field(name: object, field: object, cut: Cut | None = None) -> tuple[FieldSpec, bytes]:
    """Read a field in either form; the bytes are checked against type, shape and finiteness.

    Args:
        name: The field's name.
        field: Its JSON object.
        cut: The text of its numbers, where they were cut out of the line.

    Raises:
        FieldInvalid: With the reason, the field's name in front.
        NeedsCare: The numbers in `cut` have to be parsed with the whole line.
    """
    if not isinstance(name, str) or not name or name.startswith("_"):
        raise FieldInvalid(f"field name {name!r}: must be text that does not begin with '_'")
    if not isinstance(field, Mapping):
        raise FieldInvalid(f"field {name!r}: must be an object")
    if "data" in field:
        raise FieldInvalid(f"field {name!r}: key 'data' is reserved for the CID's own form")
    if ("b64" in field) == ("values" in field):
        raise FieldInvalid(f"field {name!r}: needs exactly one of 'b64' and 'values'")
    dtype = _read_dtype(name, field.get("dtype"))
    shape = _read_shape(name, field.get("shape"))
    unit = field.get("unit") or ""
    if not isinstance(unit, str):
        raise FieldInvalid(f"field {name!r}: 'unit' must be text")
    spec = _spec(name, dtype.name, shape, unit)
    if "b64" in field:
        data = _bytes_of_text(spec, field["b64"] if cut is None else cut.text)
    elif cut is None:
        data = _bytes_of_values(spec, field["values"])
    else:
        data = numbers_of(cut.text, dtype).tobytes()
    _check_numbers(spec, data)
    return spec, data


def bytes_of_cut(name: str, field: Mapping[str, Any], cut: Cut) -> bytes:
    """The bytes of a field that `read_field` has accepted before; only their number is looked at.

    Raises:
        NeedsCare: The field has to be read the careful way.
    """
    dtype = _dtypes()[field["dtype"]]
    if cut.key == "b64":
        data = pybase64.b64decode(cut.text, validate=True)
    else:
        data = numbers_of(cut.text, dtype).tobytes()
    if len(data) != math.prod(field["shape"]) * dtype.itemsize:
        raise NeedsCare(name)
    return data


def field_of_array(array: "Array", unit: str) -> dict[str, Any]:
    """A field in the form that the CID is taken over (`data` holds the bytes).

    Raises:
        FieldInvalid: A type that fossils do not carry (text, objects, complex numbers, ...).
    """
    import numpy as np

    name = array.dtype.name
    if name not in _NAMES:
        raise FieldInvalid(f"arrays of type {array.dtype} cannot be fossils")
    data = np.ascontiguousarray(array, _dtypes()[name]).tobytes()
    return {"dtype": name, "shape": list(array.shape), "unit": unit, "data": data}


def check_block_field(name: str, field: Mapping[str, Any]) -> FieldSpec:
    """The spec of a field made by `field_of_array`, its numbers checked as in `read_field`."""
    spec = _spec(name, field["dtype"], tuple(field["shape"]), field["unit"])
    if not name or name.startswith("_"):
        raise FieldInvalid(f"field name {name!r}: must be text that does not begin with '_'")
    _check_numbers(spec, field["data"])
    return spec


@functools.lru_cache(maxsize=4096)
def _spec(name: str, dtype: str, shape: tuple[int, ...], unit: str) -> FieldSpec:
    """A spec: the same one for each record of a source."""
    return FieldSpec(name, dtype, shape, unit)


def to_base64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return pybase64.b64encode_as_string(data)


def _read_dtype(name: str, text: object) -> "np.dtype[Any]":
    if isinstance(text, str):
        if text in _dtypes():
            return _dtypes()[text]
        if text.startswith(">"):
            raise FieldInvalid(f"field {name!r}: dtype {text!r} is big-endian; bytes are little")
    raise FieldInvalid(
        f"field {name!r}: dtype {str(text)[:40]!r} is not one of {', '.join(_NAMES)}"
    )


def _read_shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS_MAX:
        raise ShapeMismatch(f"field {name!r}: 'shape' must be a list of at most 32 lengths")
    if not all(type(length) is int and length > 0 for length in shape):
        raise ShapeMismatch(f"field {name!r}: every length in 'shape' must be an integer above 0")
    return tuple(shape)


def _bytes_of_text(spec: FieldSpec, text: object) -> bytes:
    if not isinstance(text, str | bytes):
        raise FieldInvalid(f"field {spec.name!r}: 'b64' must be text")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise FieldInvalid(f"field {spec.name!r}: 'b64' is not base64: {error}") from error


def _bytes_of_values(spec: FieldSpec, values: object) -> bytes:
    import numpy as np

    if not isinstance(values, list):
        raise FieldInvalid(f"field {spec.name!r}: 'values' must be a flat list of numbers")
    types = set(map(type, values))
    if list in types:
        raise ShapeMismatch(f"field {spec.name!r}: 'values' is nested; the list must be flat")
    dtype = spec.numpy_dtype
    allowed = {bool} if dtype.kind == "b" else {int, float}
    if not types <= allowed:
        found = ", ".join(sorted(kind.__name__ for kind in types - allowed))
        raise FieldInvalid(f"field {spec.name!r}: 'values' of {spec.dtype} holds {found}")
    try:
        if dtype.kind in "iu" and float in types:
            values = [_whole(spec, value) for value in values]
        with np.errstate(over="ignore"):  # too large for float32: becomes inf, refused below
            return np.array(values, dtype).tobytes()
    except OverflowError as error:
        raise FieldInvalid(
            f"field {spec.name!r}: a number does not fit {spec.dtype}: {error}"
        ) from error


def _whole(spec: FieldSpec, value: float) -> int:
    # JSON has one number type: 3.0 is the integer 3, 3.5 is none.
    if int(value) != value:
        raise FieldInvalid(f"field {spec.name!r}: {value} is not an integer ({spec.dtype})")
    return int(value)


def _check_numbers(spec: FieldSpec, data: bytes) -> None:
    if len(data) != spec.size_bytes:
        itemsize = spec.numpy_dtype.itemsize
        held = len(data) / itemsize
        raise ShapeMismatch(
            f"field {spec.name!r}: shape {list(spec.shape)} of {spec.dtype} takes "
            f"{math.prod(spec.shape)} numbers, found {held:g}"
        )
    kind = spec.numpy_dtype.kind
    is_double = kind == "f" and len(data) == 8 == spec.numpy_dtype.itemsize
    if is_double and math.isfinite(_DOUBLE.unpack(data)[0]):
        return  # in 0.2 us, where numpy takes 6 us for a scalar
    if kind == "f":
        import numpy as np

        array = np.frombuffer(data, spec.numpy_dtype)
        is_finite = np.isfinite(array)
        if not is_finite.all():
            at = int(np.argmin(is_finite))
            raise NotFinite(f"field {spec.name!r}: number {at} is {array[at]}, not finite")
    elif kind == "b" and data.strip(b"\x00\x01"):
        raise FieldInvalid(f"field {spec.name!r}: a byte of a bool is neither 0 nor 1")
