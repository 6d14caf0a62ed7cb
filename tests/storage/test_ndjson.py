"""Lines come with their places, bounded in memory, from plain and compressed files."""

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from scf.core.errors import InputError
from scf.storage.ndjson import is_shard_name, read_lines

LINES = [b'{"a":1}', b'{"b":2}', b'{"c":']


def _write(path: Path, text: bytes) -> Path:
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif path.name.endswith(".zst"):
        half = len(text) // 2  # two frames, as `cat a.zst b.zst` makes them
        compress = zstandard.ZstdCompressor().compress
        path.write_bytes(compress(text[:half]) + compress(text[half:]))
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"])
def test_lines_have_numbers_and_offsets(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, LINES[0] + b"\r\n\n" + LINES[1] + b"\n" + LINES[2])

    found = [(line.number, line.offset, line.data) for line in read_lines(path)]

    assert found == [(1, 0, LINES[0]), (3, 10, LINES[1]), (4, 18, LINES[2])]


@given(
    st.lists(
        st.binary(max_size=300).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")),
        max_size=10,
    )
)
def test_long_lines_are_marked_and_the_rest_is_read(tmp_path_factory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("n") / "a.ndjson"
    path.write_bytes(b"".join(line + b"\n" for line in lines))

    found = {line.number: line for line in read_lines(path, line_max_bytes=100)}

    for number, data in enumerate(lines, 1):
        if len(data) > 100:
            assert found[number].fault
            assert found[number].data == b""
        elif data.strip():
            assert (found[number].data, found[number].fault) == (data, None)
        else:
            assert number not in found


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
def test_a_damaged_archive_is_an_input_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, b'{"a":1}\n' * 10_000)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(InputError, match=name):
        list(read_lines(path))


def test_hidden_and_apple_double_files_are_not_shards() -> None:
    names = [
        "a.ndjson",
        "a.ndjson.zst",
        "a.ndjson.gz",
        "._a.ndjson",
        ".a.ndjson",
        "a.jsonl",
        "a.json",
    ]

    assert [n for n in names if is_shard_name(n)] == names[:3]
