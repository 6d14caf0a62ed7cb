"""The static layout of C2SP tlog-tiles: where hashes and entries of a log lie. Pure functions.

    tile/<L>/<N>[.p/<W>]        256 (or W) hashes of level L, 32 bytes each
    tile/entries/<N>[.p/<W>]    256 (or W) entries, each behind its length as a big-endian uint16

A hash of level L is the root over 256^L entries. <N> is written in groups of three digits, all but
the last marked with an x: 1234067 is x001/x234/067.
"""

from collections.abc import Sequence

from scf.core.errors import InputError
from scf.core.merkle import EMPTY_ROOT, leaf_hash, node_hash, root_of_hashes

WIDTH = 256
HASH_BYTES = 32


class TileInvalid(InputError):
    """A tile or entry bundle does not have the form that its name promises."""


def tile_path(level: int | str, index: int, width: int = WIDTH) -> str:
    """Where a tile lies, below the log's folder; `level` is a number or `entries`."""
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def level_width(size: int, level: int) -> int:
    """How many hashes of `level` a log of `size` entries has, over all its tiles."""
    return size >> (8 * level)


def tile_paths(size: int, level: int) -> list[tuple[str, int]]:
    """Path and width of every tile of `level` in a log of `size` entries, in order."""
    full, rest = divmod(level_width(size, level), WIDTH)
    widths = [WIDTH] * full + ([rest] if rest else [])
    return [(tile_path(level, index, width), width) for index, width in enumerate(widths)]


def entry_paths(size: int) -> list[tuple[str, int]]:
    """Path and width of every entry bundle in a log of `size` entries, in order."""
    full, rest = divmod(size, WIDTH)
    widths = [WIDTH] * full + ([rest] if rest else [])
    return [(tile_path("entries", index, width), width) for index, width in enumerate(widths)]


def num_levels(size: int) -> int:
    """Levels that have at least one hash."""
    levels = 0
    while level_width(size, levels):
        levels += 1
    return levels


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """The `width` entries of a bundle. Raises TileInvalid if there are more, fewer or half ones."""
    entries: list[bytes] = []
    position = 0
    while position < len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2], "big")
        if position + 2 > len(data) or end > len(data):
            raise TileInvalid(f"the bundle ends inside entry {len(entries)}")
        entries.append(data[position + 2 : end])
        position = end
    if len(entries) != width:
        raise TileInvalid(f"the bundle holds {len(entries)} entries, expected {width}")
    return entries


def decode_tile(data: bytes, width: int) -> list[bytes]:
    """The `width` hashes of a tile. Raises TileInvalid for another size."""
    if len(data) != width * HASH_BYTES:
        raise TileInvalid(f"the tile has {len(data)} bytes, expected {width * HASH_BYTES}")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


class Edge:
    """The right edge of a log: all that is needed to append to it.

    Attributes:
        size: Number of entries.
        levels: For each level, the hashes of its last tile while that is partial.
        bundle: The entries of the last bundle while that is partial.
    """

    def __init__(
        self, size: int = 0, levels: Sequence[Sequence[bytes]] = (), bundle: Sequence[bytes] = ()
    ) -> None:
        self.size = size
        self.levels = [list(level) for level in levels]
        self.bundle = list(bundle)

    def copy(self) -> "Edge":
        """Another one, to try something on."""
        return Edge(self.size, self.levels, self.bundle)

    def append(self, entry: bytes) -> dict[str, bytes]:
        """Add an entry; returns the files (path -> content) that the larger log has and needs."""
        files = {}
        self.bundle.append(entry)
        index = self.size // WIDTH
        files[tile_path("entries", index, len(self.bundle))] = encode_bundle(self.bundle)
        if len(self.bundle) == WIDTH:
            self.bundle = []
        carry: bytes | None = leaf_hash(entry)
        level = 0
        while carry is not None:
            if level == len(self.levels):
                self.levels.append([])
            hashes = self.levels[level]
            hashes.append(carry)
            index = self.size // WIDTH ** (level + 1)
            files[tile_path(level, index, len(hashes))] = b"".join(hashes)
            carry = None
            if len(hashes) == WIDTH:
                carry = root_of_hashes(hashes)
                self.levels[level] = []
            level += 1
        self.size += 1
        return files

    def root(self) -> bytes:
        """RFC 6962 root over all entries."""
        # Peaks are the roots of perfect subtrees, largest first: level by level from the top, each
        # level's hashes cut at the powers of two of their number.
        peaks = []
        for hashes in reversed(self.levels):
            position = 0
            for bit in reversed(range(WIDTH.bit_length())):
                step = 1 << bit
                if len(hashes) & step:
                    peaks.append(root_of_hashes(hashes[position : position + step]))
                    position += step
        if not peaks:
            return EMPTY_ROOT
        digest = peaks[-1]
        for peak in reversed(peaks[:-1]):
            digest = node_hash(peak, digest)
        return digest
