"""Cut the numbers out of a fossil's line before a strict JSON parser reads the rest.

Nearly all of a line is numbers, and a parser that makes a Python object of each is thirty times
slower than the disk. So the text of every `"values": [...]` and `"b64": "..."` is cut out where it
stands, `[]` and `""` remain in its place, and the numbers go from their text straight to bytes.

The cut is a shortcut, never another grammar: it is made only where it cannot be wrong (a key's
token cannot stand inside a JSON string, whose quotes are escaped), and where anything is unusual
(nested lists, escapes, a key of that name elsewhere) there is no cut and the strict parser reads it
all.
"""

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simdjson

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_KEYS = re.compile(rb'"(values|b64)"[ \t\r\n]*:[ \t\r\n]*([\["])')
_threads = threading.local()
# What pysimdjson gives for a list of numbers, by the kind of type that is asked for: a C type of
# 64 bits. It refuses floats among integers, and everything else among numbers.
_BUFFERS = {"f": ("d", "<f8"), "i": ("i", "<i8"), "u": ("u", "<u8")}


class NeedsCare(Exception):
    """A signal, never an error of its own: read the line as a whole, with the strict parser."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The text of one field's numbers.

    Attributes:
        key: `values` or `b64`.
        text: `[...]` of a flat list, or base64 without its quotes.
    """

    key: str
    text: bytes


def cut_numbers(line: bytes) -> tuple[bytes, list[Cut]] | None:
    """The line without its numbers, and the numbers in the order in which they stood.

    None where the line is not as plain as that; then it must be parsed as a whole.
    """
    cuts: list[Cut] = []
    rest: list[bytes] = []
    done = 0
    while (found := _KEYS.search(line, done)) is not None:
        is_list = found[2] == b"["
        start = found.end()
        end = line.find(b"]" if is_list else b'"', start)
        if end < 0:
            return None
        if is_list:
            if line.find(b"[", start, end) >= 0 or line.find(b'"', start, end) >= 0:
                return None
            cuts.append(Cut("values", line[start - 1 : end + 1]))
        else:
            if line.find(b"\\", start, end) >= 0:
                return None
            cuts.append(Cut("b64", line[start:end]))
        rest.append(line[done:start])
        done = end
    rest.append(line[done:])
    return b"".join(rest), cuts


def numbers_of(text: bytes, dtype: "np.dtype[Any]") -> "npt.NDArray[Any]":
    """The numbers of a flat JSON list, of `dtype`.

    The same as parsing each number to a double (or integer) and converting that: both round
    correctly. Values too large for a narrow float become infinities here, as there.

    Raises:
        NeedsCare: Something else than numbers that fit.
    """
    import numpy as np

    if dtype.kind not in _BUFFERS:
        raise NeedsCare(dtype.name)
    code, wide = _BUFFERS["f" if dtype.kind == "f" else "u" if dtype == np.uint64 else "i"]
    parser: Any = getattr(_threads, "parser", None)
    if parser is None:
        parser = _threads.parser = simdjson.Parser()
    try:
        numbers = np.frombuffer(parser.parse(text).as_buffer(of_type=code), wide)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        _threads.parser = None  # the error may still refer to what it parsed
        raise NeedsCare(str(error)) from error
    if dtype.kind in "iu" and dtype.itemsize < 8 and len(numbers):
        bounds = np.iinfo(dtype)
        if numbers.min() < bounds.min or numbers.max() > bounds.max:
            raise NeedsCare(f"beyond {dtype.name}")
    with np.errstate(over="ignore"):
        result: npt.NDArray[Any] = numbers.astype(dtype, copy=False)
    return result
