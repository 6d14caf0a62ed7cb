"""The bytes that we hash or sign: canonical JSON (RFC 8785) and deterministic DAG-CBOR.

JSON is used where people read (statements, manifests, plans), DAG-CBOR where a fossil's identity is
taken. Both refuse NaN and infinities.
"""

import json
import math
import struct
from typing import Any

import libipld
import rfc8785

from scf.core.errors import InputError

_MAX_SAFE_INTEGER = 2**53 - 1
# How the binary form of a CID begins: version 1, or the multihash (sha2-256) of version 0.
_LINK_STARTS = {b"\x01", b"\x12"}
_LINK_TAG = b"\xd8"
_AS_THEY_ARE = frozenset({str, bool, type(None)})


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value. The same value gives the same bytes on every machine.

    Raises:
        InputError: NaN, infinity, an integer past 2^53 - 1 (other languages would round it), or
            something that JSON has not.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise InputError(f"cannot be written as canonical JSON: {error}") from error


def parse_json(text: bytes | str) -> Any:
    """Read strict JSON: no NaN, no infinities (1e400 included), no key twice in one object.

    Raises:
        InputError: with the position, where there is one.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_no_duplicates,
        )
    except InputError:
        raise
    # ValueError covers bad UTF-8, bad JSON, and integers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error


def dag_cbor(value: Any) -> bytes:
    """Deterministic DAG-CBOR of JSON-like data plus `bytes`.

    A float whose value is an integer within +-(2^53 - 1) is encoded as that integer, any other as a
    64-bit float, so that languages with a single number type agree (DESIGN section 5). -0.0 has an
    integer value and becomes 0.

    Raises:
        InputError: NaN, infinity, a key that is not text, or an unknown type.
    """
    like_links: list[bytes] = []
    try:
        normal = _normalised(value, like_links)
        # libipld makes a link of any bytes that read as a CID, be they the numbers of a field: an
        # int32 of 1 is one. Bytes are bytes here, so such values are encoded by hand.
        return _encoded(normal) if like_links else bytes(libipld.encode_dag_cbor(normal))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"cannot be encoded as DAG-CBOR: {error}") from error


def _normalised(value: Any, like_links: list[bytes]) -> Any:
    """The value with numbers as they are encoded; bytes that libipld mistakes are noted.

    Objects are gone through in place of a call a value: most of a narrow record's time was here.
    """
    if type(value) is dict:
        return {
            key: item if type(item) in _AS_THEY_ARE else _normalised(item, like_links)
            for key, item in value.items()
        }
    if isinstance(value, bytes):
        if value[:1] in _LINK_STARTS and bytes(libipld.encode_dag_cbor(value))[:1] == _LINK_TAG:
            like_links.append(value)
        return value
    if isinstance(value, dict):
        return {key: _normalised(item, like_links) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item, like_links) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"number {value} is not finite")
        return int(value) if value.is_integer() and abs(value) <= _MAX_SAFE_INTEGER else value
    if isinstance(value, int) and not isinstance(value, bool):
        # Elsewhere there is one number type: an integer too large to be exact is a float there.
        return value if abs(value) <= _MAX_SAFE_INTEGER else float(value)
    return value


def _encoded(value: Any) -> bytes:
    """DAG-CBOR of a normalised value: shortest heads, 64-bit floats, keys by length, then bytes."""
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xFB, value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(_encoded, value))
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys are text")
        items = sorted((len(key.encode()), key.encode(), key) for key in value)
        pairs = [_head(3, size) + data + _encoded(value[key]) for size, data, key in items]
        return _head(5, len(pairs)) + b"".join(pairs)
    raise TypeError(f"{type(value).__name__} is no type of DAG-CBOR")


def _head(major: int, number: int) -> bytes:
    """Major type and length (or number) in the shortest form (RFC 8949, section 3)."""
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << 8 * size:
            return bytes([major << 5 | code]) + number.to_bytes(size, "big")
    raise OverflowError(f"{number} does not fit DAG-CBOR")


def _refuse_constant(name: str) -> Any:
    raise InputError(f"{name} is not JSON: strict JSON has no NaN and no infinities")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"number {text} does not fit a 64-bit float")
    return number


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"key {twice!r} stands twice in one object")
    return mapping
