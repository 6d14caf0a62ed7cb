"""Numbers that are cut out of a line mean what the strict parser says they mean."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.core.errors import InputError
from scf.vault import fossil as room
from scf.vault.fossil import encode_fossil, parse_fossil, read_numbers
from scf.vault.line_cuts import NeedsCare, cut_numbers, numbers_of
from support.fossils import fossil_line, fossil_object


def strictly(line: bytes, monkeypatch: pytest.MonkeyPatch):
    """What the strict parser alone makes of a line: a fossil, or an error's kind and text."""
    with monkeypatch.context() as patch:
        patch.setattr(room, "cut_numbers", lambda line: None)
        return outcome(line)


def outcome(line: bytes):
    try:
        fossil = parse_fossil(line)
    except InputError as error:
        return type(error), str(error)
    return fossil.cid, fossil.block, fossil.specs


FLOAT_TEXTS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        ["-0.0", "1e400", "1E5", "null", "true", "[1]", '"1"', "NaN", "3.0", "01", "{}"]
    ),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(FLOAT_TEXTS, min_size=0, max_size=4),
    st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint64", "bool"]),
)
def test_any_list_is_read_as_the_strict_parser_reads_it(texts: list[str], dtype: str) -> None:
    field = {"dtype": dtype, "shape": [len(texts)], "unit": "", "values": ["@"]}
    line = json.dumps(fossil_object(0, fields={"x": field}, cid="b")).encode()
    line = line.replace(b'["@"]', ("[" + ", ".join(texts) + "]").encode())

    assert outcome(line) == strictly(line, pytest.MonkeyPatch())


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"values": [1, 2]}},
        {"params": {"b64": "AAAA"}},
        {"source": 'he said "values": [1] '},
        {"source": "values"},
        {"fields": {"x": {"dtype": "int8", "shape": [2], "values": [[1], [2]]}}},
        {"fields": {"x": {"dtype": "int8", "shape": [1], "values": [1], "b64": "AA=="}}},
        {"fields": {"x": {"dtype": "int8", "shape": [1], "values": "AA=="}}},
        {"fields": {"x": {"dtype": "int8", "shape": [1], "b64": [1]}}},
        {"fields": {"x": {"dtype": "int8", "shape": [1], "b64": "AA==", "note": {"b64": "x"}}}},
        {"fields": {"values": {"dtype": "int8", "shape": [1], "values": [1]}}},
        {
            "fields": {
                "y": {"dtype": "int8", "shape": [1], "values": [1]},
                "x": {"dtype": "int8", "shape": [1], "b64": "Ag=="},
            }
        },
    ],
)
def test_unusual_lines_are_read_as_the_strict_parser_reads_them(
    change: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        line = fossil_line(0, **change)
    except InputError:
        line = fossil_line(0, cid="b", **change)

    assert outcome(line) == strictly(line, monkeypatch)


def test_a_key_written_with_escapes_or_twice_is_no_way_around(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = fossil_line(3)
    for line in (
        plain.replace(b'"values"', b'"\\u0076alues"'),
        plain.replace(b'"values": [', b'"values": [5], "values": ['),
        plain[:-40],
        plain.replace(b"[0.75", b"[0.75\xff"),
    ):
        assert outcome(line) == strictly(line, monkeypatch)


def test_reading_again_gives_the_same_bytes_in_either_form() -> None:
    for line in (fossil_line(5), encode_fossil(fossil_object(5))):
        expected = parse_fossil(line).block["fields"]["x"]["data"]
        assert read_numbers(line, {"x"}) == {"x": expected}


def test_a_cut_leaves_the_rest_of_the_line() -> None:
    cut = cut_numbers(b'{"a":{"b64": "QUJD"},"b":{"values":[1, 2]}}')

    assert cut is not None
    assert cut[0] == b'{"a":{"b64": ""},"b":{"values":[]}}'
    assert [(c.key, c.text) for c in cut[1]] == [("b64", b"QUJD"), ("values", b"[1, 2]")]


def test_integers_that_do_not_fit_need_care() -> None:
    with pytest.raises(NeedsCare):
        numbers_of(b"[300]", np.dtype("u1"))
    np.testing.assert_array_equal(numbers_of(b"[200]", np.dtype("u1")), [200])
