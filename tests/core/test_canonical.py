"""The bytes we hash or sign: the same for the same value, refused where they cannot be."""

import json
import math

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.core.canonical import canonical_json, dag_cbor, parse_json
from scf.core.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_canonical_json_reads_back_equal_and_is_a_fixed_point(value: object) -> None:
    encoded = canonical_json(value)

    assert canonical_json(parse_json(encoded)) == encoded


def test_canonical_json_refuses_integers_that_other_languages_would_round() -> None:
    with pytest.raises(InputError, match="safe integer"):
        canonical_json(2**53)


@given(JSON)
def test_dag_cbor_is_the_same_after_a_trip_through_json(value: object) -> None:
    assert dag_cbor(json.loads(json.dumps(value))) == dag_cbor(value)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_float_with_an_integer_value_is_that_integer(number: int) -> None:
    assert dag_cbor(float(number)) == dag_cbor(number)


def test_numbers_beyond_the_safe_integers_are_floats() -> None:
    assert dag_cbor(2**53) == b"\xfb\x43\x40\x00\x00\x00\x00\x00\x00" == dag_cbor(float(2**53))
    assert dag_cbor(-0.0) == b"\x00"


def test_keys_are_in_dag_cbor_order_whatever_the_order_given() -> None:
    assert dag_cbor({"bb": 1, "a": 2}) == dag_cbor({"a": 2, "bb": 1})
    assert libipld.decode_dag_cbor(dag_cbor({"bb": 1, "a": b"x"})) == {"a": b"x", "bb": 1}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(InputError):
        dag_cbor({"x": [number]})
    with pytest.raises(InputError):
        canonical_json({"x": [number]})


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "[NaN]",
        "[Infinity]",
        "[1e400]",
        "[1",
        b"\xff",
        "[" * 100_000,
        "1" * 5000,
    ],
)
def test_what_is_not_strict_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError):
        parse_json(text)


def test_an_integer_too_large_for_a_float_is_refused_not_crashed() -> None:
    with pytest.raises(InputError):
        dag_cbor(10**400)


LIKE_LINKS = [
    (1).to_bytes(4, "little"),  # an int32
    b"\x01" * 12,
    b"\x12\x20" + bytes(32),
    b"\x01\x71\x12\x20" + bytes(32),
]


@pytest.mark.parametrize("data", LIKE_LINKS)
def test_bytes_that_read_as_a_cid_stay_bytes(data: bytes) -> None:
    """libipld would make a link of them, with another CID than any other library gives."""
    assert libipld.encode_dag_cbor(data)[:2] == b"\xd8\x2a", "else the work-around can go"

    encoded = dag_cbor({"data": data, "a": [1.0, -0.5, "x", None, True]})

    assert libipld.decode_dag_cbor(encoded) == {"data": data, "a": [1, -0.5, "x", None, True]}
    head = b"\x58" if len(data) > 23 else b""
    assert encoded.endswith(b"\x64data" + head + bytes([len(data) | (0 if head else 0x40)]) + data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_values_encoded_by_hand_are_as_libipld_encodes_them(value: object) -> None:
    """The same value beside bytes that are taken for a link, and beside bytes that are not."""
    try:
        plain = dag_cbor([value, b"\x02\0\0\0"])
    except InputError:
        with pytest.raises(InputError):
            dag_cbor([value, LIKE_LINKS[0]])
        return

    assert dag_cbor([value, LIKE_LINKS[0]]) == plain[:-5] + b"\x44" + LIKE_LINKS[0]


def test_keys_that_are_no_text_are_refused_beside_such_bytes_too() -> None:
    for data in (b"", LIKE_LINKS[0]):
        with pytest.raises(InputError, match="DAG-CBOR"):
            dag_cbor({"data": data, 1: 2})
