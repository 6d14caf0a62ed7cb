"""The static layout is that of C2SP tlog-tiles, and its root that of RFC 6962."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.audit.tiles import (
    Edge,
    TileInvalid,
    decode_bundle,
    decode_tile,
    encode_bundle,
    entry_paths,
    num_levels,
    tile_path,
    tile_paths,
)
from scf.core.merkle import root


@pytest.mark.parametrize(
    ("level", "index", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (0, 5, 17, "tile/0/005.p/17"),
        (1, 1234067, 256, "tile/1/x001/x234/067"),
        ("entries", 1000, 1, "tile/entries/x001/000.p/1"),
    ],
)
def test_paths_are_those_of_the_specification(level, index, width, path) -> None:
    assert tile_path(level, index, width) == path


def test_the_specifications_example_of_70000_entries() -> None:
    """273 full level 0 tiles, a partial one of 112, one full and one partial of 17, one of 1."""
    level_0, level_1, level_2 = (tile_paths(70000, level) for level in range(3))

    assert len(level_0) == 274
    assert level_0[-1] == ("tile/0/273.p/112", 112)
    assert level_1 == [("tile/1/000", 256), ("tile/1/001.p/17", 17)]
    assert level_2 == [("tile/2/000.p/1", 1)]
    assert num_levels(70000) == 3


def test_a_log_of_256_has_a_full_tile_and_one_hash_above() -> None:
    assert tile_paths(256, 0) == [("tile/0/000", 256)]
    assert tile_paths(256, 1) == [("tile/1/000.p/1", 1)]
    assert entry_paths(256) == [("tile/entries/000", 256)]


def test_appending_gives_at_each_size_the_root_of_rfc_6962_and_all_tiles() -> None:
    """Sizes 1 to 600 cross the border of a tile twice; the union of files holds every tile."""
    edge = Edge()
    entries: list[bytes] = []
    files: dict[str, bytes] = {}
    for size in range(1, 601):
        entries.append(b"entry %d" % size)
        files |= edge.append(entries[-1])
        if size % 37 == 0 or size in {1, 2, 255, 256, 257, 511, 512, 513, 600}:
            assert edge.root() == root(entries)
    for level in range(num_levels(600)):
        for path, width in tile_paths(600, level):
            assert len(decode_tile(files[path], width)) == width
    stored = [e for path, width in entry_paths(600) for e in decode_bundle(files[path], width)]
    assert stored == entries


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    """What is decoded is what was encoded."""
    assert decode_bundle(encode_bundle(entries), len(entries)) == entries


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x05four", b"\x00\x01aX", b""])
def test_a_bundle_that_is_cut_or_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(TileInvalid):
        decode_bundle(data, 1)


def test_a_tile_of_another_size_is_refused() -> None:
    with pytest.raises(TileInvalid, match="63 bytes, expected 64"):
        decode_tile(bytes(63), 2)
