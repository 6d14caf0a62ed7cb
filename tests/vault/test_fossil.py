"""The fossil: one identity for the same numbers, in whatever form, and a reason for every refusal."""

import base64
import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.core.canonical import canonical_json
from scf.core.errors import InputError
from scf.vault.fields import FieldInvalid, NotFinite, ShapeMismatch
from scf.vault.fossil import (
    FossilInvalid,
    NotJson,
    UnknownSchema,
    WrongCid,
    encode_fossil,
    fossil_cid,
    parse_fossil,
)
from scf.vault.provenance import ProvenanceInvalid
from scf.vault.shard import leaf
from support.fossils import fossil, fossil_line, fossil_object


def field(values: Any, dtype: str = "float64", shape: list[int] | None = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [len(values)] if shape is None else shape,
        "unit": "m",
        "values": values,
    }


def packed(array: np.ndarray) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "unit": "m",
        "b64": base64.b64encode(little.tobytes()).decode(),
    }


def cbor(value: Any) -> bytes:
    """A second DAG-CBOR encoder, written from the specification alone, to check the first."""

    def head(major: int, number: int) -> bytes:
        if number < 24:
            return bytes([major << 5 | number])
        for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if number < 256**size:
                return bytes([major << 5 | code]) + number.to_bytes(size, "big")
        raise AssertionError(number)

    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int | float):
        if float(value).is_integer() and abs(value) <= 2**53 - 1:
            number = int(value)
            return head(0, number) if number >= 0 else head(1, -1 - number)
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
    return head(5, len(keys)) + b"".join(cbor(key) + cbor(value[key]) for key in keys)


def cid_by_hand(obj: dict[str, Any], data: dict[str, bytes]) -> str:
    block = {key: value for key, value in obj.items() if key not in {"cid", "verifier"}}
    block["fields"] = {
        name: {k: v for k, v in f.items() if k not in {"b64", "values"}} | {"data": data[name]}
        for name, f in obj["fields"].items()
    }
    raw = b"\x01\x71\x12\x20" + hashlib.sha256(cbor(block)).digest()
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(deadline=None)
@given(
    values=st.lists(finite, min_size=1, max_size=6),
    extra=st.dictionaries(st.text(max_size=6), json_values, max_size=3),
)
def test_the_cid_is_what_a_second_implementation_computes(
    values: list[float], extra: dict[str, Any]
) -> None:
    """Whatever else stands in the object, any IPLD library comes to the same CID."""
    extra.pop("condition_fields", None)
    obj = fossil_object(fields={"x": field(values)}, params=extra)

    assert obj["cid"] == cid_by_hand(obj, {"x": struct.pack(f"<{len(values)}d", *values)})


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            "float16",
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
        ]
    ),
    st.data(),
)
def test_list_and_packed_form_are_one_fossil(dtype: str, data: st.DataObject) -> None:
    """The same numbers have the same CID, as a list or as bytes, in every type."""
    kind = np.dtype(dtype)
    element: st.SearchStrategy[Any]
    if kind.kind == "f":
        width = {"float16": 16, "float32": 32, "float64": 64}[dtype]
        element = st.floats(allow_nan=False, allow_infinity=False, width=width)  # type: ignore[arg-type]
    elif kind.kind == "b":
        element = st.booleans()
    else:
        element = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    values = data.draw(st.lists(element, min_size=1, max_size=8))

    as_list = fossil_object(fields={"x": field(values, dtype)})
    as_bytes = fossil_object(fields={"x": packed(np.array(values, kind))})

    assert as_list["cid"] == as_bytes["cid"]
    read = parse_fossil(json.dumps(as_list).encode()).arrays()["x"]
    np.testing.assert_array_equal(read, np.array(values, kind))


@settings(deadline=None)
@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_is_one_number_however_it_is_written(number: int) -> None:
    """1 and 1.0 have one CID: JavaScript has one number type."""
    whole = fossil_object(params={"n": number}, provenance=fossil_object()["provenance"])
    decimal = {**whole, "params": {"n": float(number)}}

    assert fossil_cid(decimal) == whole["cid"]


def test_verifier_is_not_part_of_the_identity_and_everything_else_is() -> None:
    obj = fossil_object()

    assert fossil_cid({**obj, "verifier": {"name": "another"}}) == obj["cid"]
    assert fossil_cid({**obj, "source": "another"}) != obj["cid"]
    assert fossil_cid({**obj, "a_key_of_yours": 1}) != obj["cid"]


def test_round_trip_keeps_every_key_and_the_cid() -> None:
    """Unknown keys, of the object and of a field, are kept; the line written is packed."""
    obj = fossil_object(instrument={"serial": "A7"}, cid="")
    obj["fields"]["x"]["sensor"] = "left"
    obj["cid"] = fossil_cid(obj)

    line = encode_fossil(parse_fossil(json.dumps(obj).encode()))
    again = parse_fossil(line)

    assert encode_fossil(again) == encode_fossil(obj) == line
    assert again.obj["instrument"] == {"serial": "A7"}
    assert again.obj["fields"]["x"]["sensor"] == "left"
    assert "values" not in again.obj["fields"]["x"]


def test_family_is_stated_or_a_block_of_neighbours() -> None:
    """Without a family, 64 neighbours in the origin are one; without an index, the line counts."""
    provenance = fossil_object(130)["provenance"]
    assert fossil(130).family == "pendulum.csv#2"
    assert fossil(provenance={**provenance, "family": "run 7"}).family == "run 7"

    del provenance["index"]
    assert parse_fossil(fossil_line(provenance=provenance), position=64).family == "pendulum.csv#1"


def test_scalars_and_aliases_are_understood() -> None:
    """Shape [] is a scalar; `<f4` is float32; a unit may be absent."""
    obj = fossil_object(fields={"t": {"dtype": "<f4", "shape": [], "values": [2.5]}})

    read = parse_fossil(json.dumps(obj).encode())

    assert read.specs[0].dtype == "float32"
    assert read.arrays()["t"].shape == ()
    assert read.specs[0].unit == ""


REFUSED = {
    "half-written line": (fossil_line()[:-40], NotJson),
    "NaN in the text": (fossil_line().replace(b"0.0,", b"NaN,"), NotJson),
    "1e400": (fossil_line().replace(b"0.0,", b"1e400,"), NotJson),
    "an integer of 5000 digits": (fossil_line().replace(b"0.0,", b"9" * 5000 + b","), NotJson),
    "bad UTF-8": (fossil_line().replace(b"pendulum", b"pend\xffulum"), NotJson),
    "a key twice": (fossil_line().replace(b'{"schema"', b'{"schema": 1, "schema"'), NotJson),
    "not an object": (b"[1, 2]\n", FossilInvalid),
    "unknown schema": (fossil_line(schema="scf.fossil/2"), UnknownSchema),
    "no schema": (b"{}\n", UnknownSchema),
    "a flipped digit": (fossil_line(1).replace(b"0.25", b"0.26"), WrongCid),
    "another CID": (fossil_line(cid=fossil_object(7)["cid"]), WrongCid),
    "a CID that is a number": (fossil_line(cid=7), FossilInvalid),
    "no verdict": (fossil_line(verifier={"name": "x"}), FossilInvalid),
    "a verdict of another word": (
        fossil_line(verifier={"name": "x", "verdict": "MAYBE"}),
        FossilInvalid,
    ),
    "a time without zone": (fossil_line(observed_at="2020-01-01T00:00:00"), FossilInvalid),
    "a condition field that is none": (
        fossil_line(params={"condition_fields": ["y"]}),
        FossilInvalid,
    ),
}


@pytest.mark.parametrize(("line", "error"), REFUSED.values(), ids=REFUSED)
def test_a_line_that_is_no_fossil_is_refused_with_a_reason(
    line: bytes, error: type[InputError]
) -> None:
    with pytest.raises(error):
        parse_fossil(line)


REFUSED_FIELDS: dict[str, tuple[dict[str, Any], type[InputError]]] = {
    "too few numbers": (field([1.0], shape=[2]), ShapeMismatch),
    "too many bytes": (packed(np.zeros(3)) | {"shape": [2]}, ShapeMismatch),
    "half a number": (packed(np.zeros(1)) | {"b64": "AAAAAA=="}, ShapeMismatch),
    "nested list": (field([[1.0, 2.0]], shape=[2]), ShapeMismatch),
    "empty axis": (field([], shape=[0]), ShapeMismatch),
    "negative axis": (field([1.0], shape=[-1]), ShapeMismatch),
    "shape as text": (field([1.0]) | {"shape": "1"}, ShapeMismatch),
    "NaN in the bytes": (packed(np.array([1.0, np.nan])), NotFinite),
    "infinity in the bytes": (packed(np.array([np.inf])), NotFinite),
    "too large for float32": (field([1e39], "float32"), NotFinite),
    "too large for uint8": (field([256], "uint8"), FieldInvalid),
    "a fraction for an integer": (field([1.5], "int32"), FieldInvalid),
    "text among the numbers": (field(["1.5"]), FieldInvalid),
    "null among the numbers": (field([None]), FieldInvalid),
    "true among the numbers": (field([True]), FieldInvalid),
    "a number among bools": (field([2], "bool"), FieldInvalid),
    "a byte that is no bool": (packed(np.zeros(1, bool)) | {"b64": "Ag=="}, FieldInvalid),
    "big-endian": (field([1.0], ">f8"), FieldInvalid),
    "complex": (field([1.0], "complex64"), FieldInvalid),
    "not base64": (packed(np.zeros(1)) | {"b64": "!!!"}, FieldInvalid),
    "both forms": (packed(np.zeros(1)) | {"values": [0.0]}, FieldInvalid),
    "neither form": ({"dtype": "float64", "shape": [1], "unit": "m"}, FieldInvalid),
    "the reserved key": (field([1.0]) | {"data": "x"}, FieldInvalid),
    "not an object": ([1.0], FieldInvalid),  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("bad", "error"), REFUSED_FIELDS.values(), ids=REFUSED_FIELDS)
def test_a_field_that_does_not_fit_is_refused_with_a_reason(
    bad: dict[str, Any], error: type[InputError]
) -> None:
    with pytest.raises(error, match="'x'"):
        parse_fossil(fossil_line(fields={"x": bad}, cid="b"))


def test_a_field_named_like_metadata_is_refused() -> None:
    with pytest.raises(FieldInvalid):
        parse_fossil(fossil_line(fields={"_cid": field([1.0])}, cid="b"))


@pytest.mark.parametrize(
    "change",
    [
        {"origin": None},
        {"origin": ""},
        {"origin_sha256": None},
        {"origin_sha256": "5E" * 32},
        {"index": -1},
        {"index": True},
        {"parents": ["x"]},
        {"family": 3},
        {"flags": []},
    ],
)
def test_provenance_without_its_origin_is_refused(change: dict[str, Any]) -> None:
    provenance = {**fossil_object()["provenance"], **change}

    with pytest.raises(ProvenanceInvalid):
        parse_fossil(fossil_line(provenance=provenance))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_otherwise(data: bytes) -> None:
    """Whatever stands on a line, the answer is a fossil or an InputError."""
    with pytest.raises(InputError):
        parse_fossil(data)


@settings(deadline=None)
@given(st.sampled_from(sorted(fossil_object())), json_values)
def test_no_value_of_a_key_makes_the_parser_fail_otherwise(key: str, value: Any) -> None:
    obj = {**fossil_object(), key: value}
    try:
        parse_fossil(json.dumps(obj).encode(), verify_cid=False)
    except InputError:
        return
    assert key in {"observed_at", "params", "source", "verifier"}


def test_a_leaf_is_canonical_json_of_cid_and_verdict() -> None:
    for index, verdict in enumerate(("PASS", "FAIL")):
        cid = fossil(index).cid
        assert leaf(cid, verdict) == canonical_json([cid, verdict])
