"""Segments: the fossils of one kind in one file, wherever their numbers are at the moment.

A segment is cached (rows on disk), streamed (lines of NDJSON, parsed again at each reading) or in
memory. It is read in groups of 64 neighbours, into the slots of a `GroupBuffer`.
"""

import shutil
import tempfile
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from scf.core.errors import InputError
from scf.fertilization.rows_file import (
    GROUP_ROWS,
    HEAD,
    Heads,
    Names,
    RowsKind,
    read_exactly,
)
from scf.fertilization.shard_scan import FossilKind
from scf.storage.ndjson import open_text
from scf.vault.fields import Array, FieldSpec
from scf.vault.fossil import Fossil, parse_fossil, read_numbers
from scf.vault.shard import ShardDamaged


class GroupBuffer:
    """Room for some groups: their heads, and a column for each field.

    Args:
        specs: The fields.
        num_groups: How many groups fit. Memory is taken when it is first written.
    """

    def __init__(self, specs: Sequence[FieldSpec], num_groups: int) -> None:
        rows = num_groups * GROUP_ROWS
        self.num_groups = num_groups
        self.heads: Heads = np.empty(rows, HEAD)
        self.columns = {s.name: np.empty((rows, *s.shape), s.numpy_dtype) for s in specs}


class OpenFiles:
    """Opened files, the least recently used closed beyond a limit. For one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()
        weakref.finalize(self, _close_all, self._files)

    def descriptor(self, path: Path) -> int:
        """A descriptor of the file, good until the next call. Raises ShardDamaged."""
        return self.file(path).fileno()

    def file(self, path: Path, stat: tuple[int, int] | None = None) -> BinaryIO:
        """The file; compressed ones as a nameless unpacked copy, to be able to seek.

        Args:
            path: Its path.
            stat: Size and time of change that it must still have.
        """
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        while len(self._files) >= self._limit:
            self._files.popitem(last=False)[1].close()
        try:
            if stat is not None:
                now = path.stat()
                if (now.st_size, now.st_mtime_ns) != stat:
                    raise ShardDamaged(path, "the file changed since it was first read")
            opened = _opened(path)
        except OSError as error:
            raise ShardDamaged(path, f"cannot be opened: {error.strerror}") from error
        self._files[path] = opened
        return opened

    def close(self) -> None:
        """Close them all."""
        _close_all(self._files)


class Segment(Protocol):
    """Fossils of one kind in one file."""

    @property
    def count(self) -> int:
        """How many."""

    @property
    def path(self) -> Path:
        """Their file, for messages."""

    @property
    def family_names(self) -> Sequence[str]:
        """Families by the numbers in the heads."""

    def heads(self) -> Heads:
        """All heads."""

    def heads_digest(self) -> bytes:
        """BLAKE3 of the heads."""

    def load(
        self, group: int, into: GroupBuffer, slot: int, files: OpenFiles, *, verify: bool
    ) -> None:
        """Read a group into a slot; with `verify`, only if its bytes are what they were.

        Raises:
            ShardDamaged, DriveError: It cannot be read.
        """


class CachedSegment:
    """Rows in a file of the shard cache.

    Args:
        rows: The kind's rows.
        specs: The fields that are wanted of it.
    """

    def __init__(self, rows: RowsKind, specs: Sequence[FieldSpec]) -> None:
        self.rows = rows
        self.path = rows.rows.path
        self.count = rows.count
        self.family_names: Sequence[str] = rows.rows.family_names
        numbers = {spec.name: number for number, spec in enumerate(rows.kind.specs)}
        self.columns = {spec.name: numbers[spec.name] for spec in specs}
        self._names = {number: name for name, number in self.columns.items()}
        self._names[rows.head_column] = ""

    def heads(self) -> Heads:
        """All heads."""
        return self.rows.heads()

    def heads_digest(self) -> bytes:
        """BLAKE3 of the heads."""
        return self.rows.heads_digest

    def load(
        self, group: int, into: GroupBuffer, slot: int, files: OpenFiles, *, verify: bool
    ) -> None:
        """Read a group into a slot."""
        first = slot * GROUP_ROWS
        last = first + self.rows.group_rows(group)
        arrays = {n: into.columns[name] if name else into.heads for n, name in self._names.items()}
        views = {n: bytes_of(array[first:last]) for n, array in arrays.items()}
        descriptor = files.descriptor(self.path)
        if verify:
            data = memoryview(self.rows.read_whole(descriptor, group))
            start = self.rows.column_offset(group, 0)
            for number, view in views.items():
                at = self.rows.column_offset(group, number) - start
                view[:] = np.frombuffer(data[at : at + view.nbytes], "u1")
        else:
            for offset, span in self.rows.spans(group, sorted(views)):
                read_exactly(descriptor, [views[c] for c in span], offset, self.path)

    def load_heads(self, group: int, into: Heads, files: OpenFiles) -> None:
        """Read the heads of a group alone."""
        offset = self.rows.column_offset(group, self.rows.head_column)
        read_exactly(files.descriptor(self.path), [bytes_of(into)], offset, self.path)

    def offsets(self, rows: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
        """Where in the file a field of these rows begins."""
        column = self.columns[name]
        group, row = rows // GROUP_ROWS, rows % GROUP_ROWS
        in_group = np.minimum(GROUP_ROWS, self.count - group * GROUP_ROWS)
        before = sum(self.rows.row_bytes[:column])
        starts = self.rows.offsets[group].astype(np.int64) + before * in_group
        result: npt.NDArray[np.int64] = starts + row * self.rows.row_bytes[column]
        return result


class LineIndex:
    """Where the fossils of one kind stand in a file of NDJSON: 60 bytes each.

    Attributes:
        columns: Their numbers too, while there is memory for them.
    """

    def __init__(self, kind: FossilKind, first_line: int, *, with_numbers: bool) -> None:
        self.kind = kind
        self.first_line = first_line
        self._heads = bytearray()
        self._offsets = array("q")
        self._lengths = array("q")
        self.columns: dict[str, bytearray] | None = None
        if with_numbers:
            self.columns = {spec.name: bytearray() for spec in kind.specs}

    @property
    def count(self) -> int:
        """How many fossils."""
        return len(self._offsets)

    def add(self, fossil: Fossil, family: int, offset: int, length: int) -> int:
        """Add a fossil; returns how many bytes of numbers were kept."""
        self._heads += fossil.digest
        self._heads += family.to_bytes(4, "little") + fossil.position.to_bytes(4, "little")
        self._offsets.append(offset)
        self._lengths.append(length)
        if self.columns is None:
            return 0
        fields = fossil.block["fields"]
        for name, column in self.columns.items():
            column.extend(fields[name]["data"])
        return sum(spec.size_bytes for spec in self.kind.specs)

    def heads(self) -> Heads:
        """All heads."""
        return np.frombuffer(self._heads, HEAD)

    def place(self, row: int) -> tuple[int, int]:
        """Offset and length of a line."""
        return self._offsets[row], self._lengths[row]


class LineSegment:
    """Fossils that are parsed from their lines whenever they are read.

    Args:
        path: The file.
        stat: Its size and time of change when it was indexed.
        index: Where its lines are.
        names: Its families.
        specs: The fields that are wanted.
        verify_always: Recompute the CID at each reading.
    """

    def __init__(
        self,
        path: Path,
        stat: tuple[int, int],
        index: LineIndex,
        names: Names,
        specs: Sequence[FieldSpec],
        *,
        verify_always: bool,
    ) -> None:
        self.path = path
        self.index = index
        self.count = index.count
        self.family_names: Sequence[str] = names
        self._stat = stat
        self._specs = specs
        self._wanted = frozenset(spec.name for spec in specs)
        self._verify_always = verify_always

    def heads(self) -> Heads:
        """All heads."""
        return self.index.heads()

    def heads_digest(self) -> bytes:
        """BLAKE3 of the heads."""
        return blake3(self.index.heads().tobytes()).digest()

    def columns(self) -> dict[str, Array] | None:
        """All numbers, where they were kept."""
        kept = self.index.columns
        if kept is None:
            return None
        return {
            s.name: np.frombuffer(kept[s.name], s.numpy_dtype).reshape(-1, *s.shape)
            for s in self._specs
        }

    def load(
        self, group: int, into: GroupBuffer, slot: int, files: OpenFiles, *, verify: bool
    ) -> None:
        """Parse a group into a slot."""
        file = files.file(self.path, self._stat)
        first = group * GROUP_ROWS
        rows = range(first, min(first + GROUP_ROWS, self.count))
        at = slot * GROUP_ROWS
        into.heads[at : at + len(rows)] = self.index.heads()[rows.start : rows.stop]
        for row in rows:
            offset, length = self.index.place(row)
            try:
                file.seek(offset)
                line = file.read(length)
                if self._verify_always:
                    fields = parse_fossil(line).block["fields"]
                    numbers = {name: fields[name]["data"] for name in self._wanted}
                else:
                    numbers = read_numbers(line, self._wanted)
            except (OSError, InputError, KeyError) as error:
                raise ShardDamaged(self.path, f"at byte {offset}: {error}") from error
            for spec in self._specs:
                into.columns[spec.name][at] = spec.array(numbers[spec.name])
            at += 1


def bytes_of(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of a contiguous array, shared."""
    result: npt.NDArray[np.uint8] = array.reshape(-1).view("u1")
    return result


def _close_all(files: "OrderedDict[Path, BinaryIO]") -> None:
    for file in files.values():
        file.close()
    files.clear()


def _opened(path: Path) -> BinaryIO:
    if not path.name.endswith((".gz", ".zst")):
        return path.open("rb", buffering=0) if path.suffix == ".rows" else path.open("rb")
    unpacked = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - kept open, that is its use
    with open_text(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    return unpacked
