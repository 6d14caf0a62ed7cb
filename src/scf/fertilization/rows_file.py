"""The file format of the derived shard cache: fixed-stride columns that can be read in any order.

    header    4096 bytes: the magic text
    groups    each at a multiple of 4096: 64 rows, column after column without gaps, little-endian
    tail      sections for each kind of fossil: digests, families, positions, group offsets, ...
    footer    JSON: the source, the kinds, where the sections are
    trailer   64 bytes: footer's offset and length, its BLAKE3, the magic text

A group holds the fields in the order of their names, then the heads of its rows (digest, family,
position): so rows of whole pages begin at pages, and are copied a third faster. Its BLAKE3 is in
the tail, the tail's in the footer, the footer's in the trailer.
Format page: docs/formats/shard-cache.md.
"""

import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from scf.core.errors import DriveError
from scf.fertilization.shard_scan import FossilKind, Refusal, Refusals
from scf.vault.fields import FieldSpec
from scf.vault.fossil import Fossil
from scf.vault.shard import ShardDamaged

SCHEMA = "scf.shard-cache/1"
GROUP_ROWS = 64
ALIGN_BYTES = 4096
_MAGIC = SCHEMA.encode().ljust(20, b"\0")
_TRAILER = struct.Struct("<QI32s20s")
# What stands behind the fields: who the row is.
HEAD = np.dtype([("digest", "u1", (32,)), ("family", "<u4"), ("position", "<u4")])
_PREAD_MAX_BYTES = 2**30

Heads = npt.NDArray[Any]


class NoRoom(Exception):
    """A signal to the one who builds: the file would outgrow what it may take."""


class NotRows(Exception):
    """A signal: the file is not of this format or version, or not whole. It is built anew."""


@dataclass(frozen=True, slots=True)
class RowsSource:
    """The NDJSON file that the rows were read from.

    Attributes:
        sha256: Its digest, where one was promised; the cache then follows from the promise.
        size_bytes: Its size.
        mtime_ns: Its time of change: tells that it changed, never that it did not.
    """

    sha256: str | None
    size_bytes: int
    mtime_ns: int


class RowsWriter:
    """Writes rows as they come, of as many kinds as there are.

    Args:
        file: To be filled from its beginning.
        make_room: Asked whenever the file is to become larger than what it answered before: makes
            room for so many bytes and says how many there are now, or raises `NoRoom`.
    """

    def __init__(self, file: BinaryIO, *, make_room: Callable[[int], int]) -> None:
        self._file = file
        self._make_room = make_room
        self._room = 0
        self._kinds: dict[FossilKind, _KindWriter] = {}
        self._families: dict[str, int] = {}
        self.size_bytes = 0
        self._write(_MAGIC)
        self._pad()

    def add(self, kind: FossilKind, fossil: Fossil, *, position: int, line: int) -> None:
        """Add a row."""
        family = self._families.setdefault(fossil.family, len(self._families))
        writer = self._kinds.get(kind)
        if writer is None:
            writer = self._kinds[kind] = _KindWriter(kind, line)
        writer.add(fossil, family, position)
        if writer.num_waiting == GROUP_ROWS:
            self._flush(writer)

    def finish(self, source: RowsSource, refusals: Refusals) -> None:
        """Write what is left, the tail, the footer and the trailer."""
        kinds = []
        for writer in self._kinds.values():
            self._flush(writer)
            kinds.append(writer.describe() | self._sections(writer.sections()))
        names = json.dumps(list(self._families), ensure_ascii=False).encode()
        footer = {
            "schema": SCHEMA,
            "source": asdict(source),
            "kinds": kinds,
            **self._sections({"families": names}),
            "refused": dict(refusals.kinds),
            "refusals": [[r.line, r.kind, r.reason] for r in refusals.first],
        }
        text = json.dumps(footer, sort_keys=True, ensure_ascii=False).encode()
        at = self.size_bytes
        self._write(text)
        self._write(_TRAILER.pack(at, len(text), blake3(text).digest(), _MAGIC))

    def _flush(self, writer: "_KindWriter") -> None:
        if writer.num_waiting:
            data = writer.take_group(self.size_bytes)
            self._write(data)
            self._pad()

    def _sections(self, parts: dict[str, bytes]) -> dict[str, dict[str, list[Any]]]:
        told: dict[str, list[Any]] = {}
        for name, data in parts.items():
            told[name] = [self.size_bytes, len(data), blake3(data).hexdigest()]
            self._write(data)
        return {"sections": told}

    def _pad(self) -> None:
        self._write(b"\0" * (-self.size_bytes % ALIGN_BYTES))

    def _write(self, data: bytes) -> None:
        if self.size_bytes + len(data) > self._room:
            self._room = self._make_room(self.size_bytes + len(data))
        self._file.write(data)
        self.size_bytes += len(data)


class _KindWriter:
    """The rows of one kind: those of the group that is being filled, and what the tail will say."""

    def __init__(self, kind: FossilKind, first_line: int) -> None:
        self._kind = kind
        self._first_line = first_line
        self._waiting: dict[str, list[bytes]] = {spec.name: [] for spec in kind.specs}
        self._new_heads: list[tuple[bytes, int, int]] = []
        self._heads = bytearray()
        self._offsets = bytearray()
        self._digests = bytearray()

    @property
    def num_waiting(self) -> int:
        return len(self._new_heads)

    def add(self, fossil: Fossil, family: int, position: int) -> None:
        fields = fossil.block["fields"]
        for name, column in self._waiting.items():
            column.append(fields[name]["data"])
        self._new_heads.append((fossil.digest, family, position))

    def take_group(self, offset: int) -> bytes:
        packed = [d + struct.pack("<II", family, at) for d, family, at in self._new_heads]
        heads = b"".join(packed)
        data = b"".join([*(b"".join(column) for column in self._waiting.values()), heads])
        self._heads += heads
        self._offsets += struct.pack("<Q", offset)
        self._digests += blake3(data).digest()
        self._new_heads.clear()
        for column in self._waiting.values():
            column.clear()
        return data

    def describe(self) -> dict[str, Any]:
        return {
            "specs": [[s.name, s.dtype, list(s.shape), s.unit] for s in self._kind.specs],
            "condition_fields": list(self._kind.condition_fields),
            "count": len(self._heads) // HEAD.itemsize,
            "first_line": self._first_line,
        }

    def sections(self) -> dict[str, bytes]:
        return {
            "heads": bytes(self._heads),
            "offsets": bytes(self._offsets),
            "group_digests": bytes(self._digests),
        }


class RowsFile:
    """An opened file of rows; small, whatever its size.

    Attributes:
        path: Where it lies.
        source: What it was built from.
        kinds: The kinds of fossils in it.
        refusals: What its building refused.
        family_names: Families by the numbers in the heads.

    Raises:
        NotRows: Another format or version, cut short, or changed.
    """

    def __init__(self, path: Path, source_path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                footer = _read_footer(file)
                self._read(footer, file, source_path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise NotRows(str(error)) from error

    def _read(self, footer: dict[str, Any], file: BinaryIO, source_path: Path) -> None:
        self.source = RowsSource(**footer["source"])
        self.family_names = Names(json.loads(_section(file, footer["sections"]["families"])))
        self.refusals = Refusals(sum(footer["refused"].values()))
        self.refusals.kinds.update(footer["refused"])
        self.refusals.first += [Refusal(source_path, *told) for told in footer["refusals"]]
        self.kinds = [RowsKind(self, told, file) for told in footer["kinds"]]


class RowsKind:
    """The rows of one kind in a file.

    Attributes:
        kind: Their fields.
        count: How many rows.
        first_line: Line of the first in the source, from 1.
    """

    def __init__(self, rows: RowsFile, told: dict[str, Any], file: BinaryIO) -> None:
        self.rows = rows
        specs = tuple(FieldSpec(n, dtype, tuple(shape), u) for n, dtype, shape, u in told["specs"])
        self.kind = FossilKind(specs, tuple(told["condition_fields"]))
        self.count: int = told["count"]
        self.first_line: int = told["first_line"]
        self._sections: dict[str, list[Any]] = told["sections"]
        self.heads_digest = bytes.fromhex(self._sections["heads"][2])
        self.offsets = np.frombuffer(_section(file, self._sections["offsets"]), "<u8")
        self.group_digests = _section(file, self._sections["group_digests"])
        self.row_bytes = [*(spec.size_bytes for spec in specs), HEAD.itemsize]
        self.head_column = len(specs)

    def heads(self) -> Heads:
        """Every row's head, in order.

        Raises:
            ShardDamaged: They are not what was written; the file is removed, to be built anew.
        """
        try:
            with self.rows.path.open("rb") as file:
                return np.frombuffer(_section(file, self._sections["heads"]), HEAD)
        except (NotRows, OSError) as error:
            self.rows.path.unlink(missing_ok=True)
            raise CacheDamaged(self.rows.path, "the table of heads") from error

    def group_rows(self, group: int) -> int:
        """Rows of a group: 64, but for the last one."""
        return min(GROUP_ROWS, self.count - group * GROUP_ROWS)

    def column_offset(self, group: int, column: int) -> int:
        """Where a column of a group begins; the last column are the heads."""
        return int(self.offsets[group]) + sum(self.row_bytes[:column]) * self.group_rows(group)

    def spans(self, group: int, columns: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Columns that stand beside each other, to be read at once: (offset, columns)."""
        span: list[int] = []
        for column in columns:
            if span and column != span[-1] + 1:
                yield self.column_offset(group, span[0]), span
                span = []
            span.append(column)
        if span:
            yield self.column_offset(group, span[0]), span

    def read_whole(self, descriptor: int, group: int) -> bytearray:
        """All bytes of a group, its digest verified.

        Raises:
            ShardDamaged: They are not what was written; the file is removed, to be built anew.
        """
        data = bytearray(sum(self.row_bytes) * self.group_rows(group))
        read_exactly(descriptor, [data], int(self.offsets[group]), self.rows.path)
        if blake3(data).digest() != self.group_digests[32 * group : 32 * group + 32]:
            self.rows.path.unlink(missing_ok=True)
            raise CacheDamaged(self.rows.path, f"block {group}")
        return data


class CacheDamaged(ShardDamaged):
    """A part of the cache is not what was written. The shard itself is not concerned."""

    def __init__(self, path: Path, part: str) -> None:
        super().__init__(path, f"{part} of this cache is not what was written; removed")
        self.remedy = "Start again from the last state: it is built anew. Check the drive's health."


class Names(Sequence[str]):
    """Names in one piece of text: a Python object for all, not for each."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode() for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._text[self._ends[number] : self._ends[number + 1]].decode()


def read_exactly(descriptor: int, views: Sequence[Any], offset: int, path: Path) -> None:
    """Fill the buffers from `offset` on.

    Raises:
        ShardDamaged: The file ends before.
        DriveError: The drive does not answer, or not with this file: it was pulled.
    """
    wanted = sum(memoryview(view).nbytes for view in views)
    try:
        if wanted <= _PREAD_MAX_BYTES and os.preadv(descriptor, views, offset) == wanted:
            return
        for view in views:
            flat = memoryview(view).cast("B")
            while flat:
                count = os.preadv(descriptor, [flat[:_PREAD_MAX_BYTES]], offset)
                if count == 0:
                    raise ShardDamaged(path, f"it ends before byte {offset}")
                flat, offset = flat[count:], offset + count
    except OSError as error:
        raise DriveError(
            f"{path}: cannot be read any more: {error.strerror}",
            remedy="Plug the drive in and start again: runs go on from their last state.",
        ) from error


def _read_footer(file: BinaryIO) -> dict[str, Any]:
    file.seek(-_TRAILER.size, io.SEEK_END)
    offset, length, digest, magic = _TRAILER.unpack(file.read(_TRAILER.size))
    if magic != _MAGIC:
        raise NotRows("no trailer")
    file.seek(offset)
    text = file.read(length)
    if blake3(text).digest() != digest:
        raise NotRows("the footer is not what was written")
    footer: dict[str, Any] = json.loads(text)
    if footer["schema"] != SCHEMA:
        raise NotRows("another version")
    return footer


def _section(file: BinaryIO, told: list[Any]) -> bytes:
    offset, length, digest = told
    file.seek(offset)
    data = file.read(length)
    if len(data) != length or blake3(data).hexdigest() != digest:
        raise NotRows("a section is not what was written")
    return data
