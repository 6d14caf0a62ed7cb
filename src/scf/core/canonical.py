"""The bytes that we hash or sign: canonical JSON (RFC 8785) and deterministic DAG-CBOR.

JSON is used where people read (statements, manifests, plans), DAG-CBOR where a fossil's identity is
taken. Both refuse NaN and infinities.
"""

import json
import math
from typing import Any

import libipld
import rfc8785

from scf.core.errors import InputError

_MAX_SAFE_INTEGER = 2**53 - 1


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
    try:
        return bytes(libipld.encode_dag_cbor(_normalised(value)))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"cannot be encoded as DAG-CBOR: {error}") from error


def _normalised(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"number {value} is not finite")
        return int(value) if value.is_integer() and abs(value) <= _MAX_SAFE_INTEGER else value
    if isinstance(value, int) and not isinstance(value, bool):
        # Elsewhere there is one number type: an integer too large to be exact is a float there.
        return value if abs(value) <= _MAX_SAFE_INTEGER else float(value)
    if isinstance(value, dict):
        return {key: _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return value


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
