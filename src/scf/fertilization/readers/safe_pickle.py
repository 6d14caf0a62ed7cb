"""Read pickles without running them.

A pickle is a program. This interpreter knows only the instructions that build numbers, text, bytes
and containers, and it never calls into numpy: `numpy.ndarray`, `numpy.dtype` and the functions with
which numpy pickles arrays are names for inert records here, and the arrays are made afterwards from
type name, shape and bytes, each checked. So nothing that a pickle says is ever imported or called.

Left out on purpose: INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT*, PERSID (they make objects or look names up
elsewhere), BUILD on anything but our own records, and every name that is not listed below. The
unpickler in pure Python is used, because the one in C reserves memory for whatever index a memo
opcode names.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scf.core.errors import InputError
from scf.vault.fields import Array

# A file of this size is held in memory; larger data belongs into npz or NDJSON.
SIZE_MAX_BYTES = 2 * 2**30
_DEPTH_MAX = 16
_NODES_MAX = 20_000_000
_TYPES = {
    kind + size for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
} | {"b1"}
# `|` (one byte, no order) and `=` read as little-endian, as numpy writes them on our machines.
_BYTE_ORDERS = {"<": "<", ">": ">", "|": "<", "=": "<"}
_OPCODES_LEFT_OUT = (
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.PERSID,
    pickle.BINPERSID,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)


class UnsafePickle(InputError):
    """The pickle asks for more than arrays and plain containers."""

    kind = "pickle"


def load(path: Path) -> Any:
    """The value in a pickle file: None, bool, numbers, text, lists, tuples, dicts and arrays.

    Raises:
        UnsafePickle: It names something else, uses another instruction, or is damaged.
    """
    try:
        if path.stat().st_size > SIZE_MAX_BYTES:
            raise UnsafePickle(f"{path}: larger than {SIZE_MAX_BYTES} bytes, refused")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return loads(data)


def loads(data: bytes) -> Any:
    """As `load`, from bytes."""
    try:
        value = _Unpickler(io.BytesIO(data)).load()
        return _Cleaner().clean(value, 0)
    except UnsafePickle:
        raise
    except (Exception, MemoryError, RecursionError) as error:
        # A damaged or hostile program can fail in any way; each way means the same to us.
        raise UnsafePickle(f"not a pickle that can be read: {error!r}"[:300]) from error


class _Inert:
    """A record of what the pickle said about an array. It has no behaviour to misuse."""

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...]) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: Any = None


class _Name:
    """A name that pickles of arrays mention, with what calling it records. Made anew each load."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[tuple[Any, ...]], Any]) -> None:
        self._make = make

    def make(self, arguments: tuple[Any, ...]) -> Any:
        return self._make(arguments)


def _records(kind: str) -> Callable[[tuple[Any, ...]], Any]:
    return lambda arguments: _Inert(kind, arguments)


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    # Protocols 0 to 2 have no bytes: they write `_codecs.encode(text, 'latin1')`.
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickle("only the encoding latin1 is known")
    return text.encode("latin1")


def _empty_bytes(arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise UnsafePickle("bytes() with arguments")
    return b""


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(*arguments[:1]) if not arguments or isinstance(arguments[0], list) else {}


_NAMES: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    **{
        (f"numpy.{core}.{module}", name): _records(name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    },
    ("numpy", "ndarray"): _records("ndarray"),
    ("numpy", "dtype"): _records("dtype"),
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("collections", "OrderedDict"): _ordered_dict,
}


class _Unpickler(pickle._Unpickler):  # noqa: SLF001 - the documented Python twin of the C one
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: method
        for code, method in pickle._Unpickler.dispatch.items()  # noqa: SLF001
        if code not in {opcode[0] for opcode in _OPCODES_LEFT_OUT}
    }

    def find_class(self, module: str, name: str) -> Any:
        make = _NAMES.get((module, name))
        if make is None:
            raise UnsafePickle(f"the pickle names {module}.{name}, which is not data")
        return _Name(make)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise UnsafePickle("the pickle calls something that is not a name of data")
        self.stack[-1] = function.make(arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Inert):
            raise UnsafePickle("the pickle sets the state of something that is not an array")
        target.state = state

    dispatch[pickle.BUILD[0]] = load_build


class _Cleaner:
    """Turns what was unpickled into plain values, refusing whatever is none.

    Shared and cyclic references are bounded by depth and by the number of values visited.
    """

    def __init__(self) -> None:
        self._nodes = 0

    def clean(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > _DEPTH_MAX or self._nodes > _NODES_MAX:
            raise UnsafePickle("nested too deeply, or too many values")
        if value is None or type(value) in {bool, int, float, str, bytes}:
            return value
        if type(value) in {list, tuple}:
            return [self.clean(item, depth + 1) for item in value]
        if type(value) is dict:
            if not all(type(key) in {str, int} for key in value):
                raise UnsafePickle("a dict with keys that are neither text nor integers")
            return {key: self.clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, _Inert):
            return _array_of(value)
        raise UnsafePickle(f"a {type(value).__name__} is neither a number nor a plain container")


def _array_of(record: _Inert) -> Array:
    if record.kind == "_reconstruct":  # state: (version, shape, dtype, is_fortran, bytes)
        _, shape, dtype, is_fortran, data = record.state
        return _make_array(shape, dtype, data, "F" if is_fortran else "C")
    if record.kind == "_frombuffer":
        data, dtype, shape, order = record.arguments
        return _make_array(shape, dtype, data, order)
    if record.kind == "scalar":
        dtype, data = record.arguments
        return _make_array((), dtype, data, "C")
    raise UnsafePickle(f"a bare numpy {record.kind}")


def _make_array(shape: Any, dtype: Any, data: Any, order: Any) -> Array:
    if not isinstance(data, bytes | bytearray):
        raise UnsafePickle("an array of Python objects")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafePickle("an array without a proper shape")
    if order not in {"C", "F"}:
        raise UnsafePickle("an array of unknown order")
    flat: Array = np.frombuffer(bytes(data), _dtype_of(dtype))
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def _dtype_of(about: Any) -> np.dtype[Any]:
    """A plain number type out of `dtype('f8', False, True)` and its state `(3, '<', ...)`."""
    if not isinstance(about, _Inert) or about.kind != "dtype" or not about.arguments:
        raise UnsafePickle("an array without a dtype")
    name = about.arguments[0]
    byte_order = about.state[1] if isinstance(about.state, tuple) else "|"
    if name not in _TYPES or byte_order not in _BYTE_ORDERS:
        raise UnsafePickle(f"an array of type {str(name)[:40]!r} is not an array of numbers")
    dtype: np.dtype[Any] = np.dtype(_BYTE_ORDERS[byte_order] + name)
    return dtype
