"""Read lines of NDJSON with their places, in constant memory: plain, gzip and zstandard."""

import contextlib
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from scf.core.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".ndjson", ".ndjson.zst", ".ndjson.gz")

# A 64x64 float32 field as a number list takes 45 kB. 64 MiB leaves room for a million numbers, and
# keeps a file without newlines from filling the memory.
LINE_MAX_BYTES = 64 * 2**20
_SKIP_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    Attributes:
        number: Counted from 1.
        offset: Where the line begins, in bytes of the (uncompressed) text.
        data: The line without its newline; empty where `fault` is set and the line was skipped.
        fault: Why the line cannot be used: too long, or not ended by a newline.
    """

    number: int
    offset: int
    data: bytes
    fault: str | None = None


def is_shard_name(name: str) -> bool:
    """Whether a file of this name holds NDJSON. `._*` and other hidden files do not."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes of `path`, whatever its compression."""
    with path.open("rb") as raw:
        if path.name.endswith(".gz"):
            with gzip.open(raw, "rb") as unzipped:
                yield cast("BinaryIO", unzipped)
        elif path.name.endswith(".zst"):
            yield cast("BinaryIO", io.BufferedReader(_ZstdFrames(raw), 2**20))
        else:
            yield cast("BinaryIO", raw)


def read_lines(path: Path, *, line_max_bytes: int = LINE_MAX_BYTES) -> Iterator[Line]:
    """Every line of `path`, blank ones left out, bad ones marked with a `fault`.

    A last line without a newline is passed on: a fossil is a JSON object, which cannot be cut short
    and still parse, so the parser tells a half-written line from a whole one.

    Raises:
        InputError: The file cannot be opened or its compression is damaged; names the offset.
    """
    offset = 0
    number = 0
    try:
        with open_text(path) as file:
            while line := file.readline(line_max_bytes + 1):
                number += 1
                start = offset
                offset += len(line)
                if len(line) > line_max_bytes and not line.endswith(b"\n"):
                    line = b""  # or it would be held while the rest is looked through
                    offset += _skip_rest(file)
                    yield Line(number, start, b"", f"longer than {line_max_bytes} bytes")
                    continue
                data = line.rstrip(b"\r\n")
                if data.strip():
                    yield Line(number, start, data)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise InputError(f"{path}: cannot be read past byte {offset}: {error}") from error


class _ZstdFrames(io.RawIOBase):
    """Zstandard frames one after another; a frame that is cut short is an error.

    `zstandard.stream_reader` ends a truncated file silently: fossils would be lost without a word.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._text = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        while not self._text:
            if not self._compressed:
                self._compressed = self._raw.read(2**18)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the zstandard frame is cut short")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._text = self._frame.decompress(self._compressed)
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._text))
        view[:count] = self._text[:count]
        self._text = self._text[count:]
        return count


def _skip_rest(file: BinaryIO) -> int:
    skipped = 0
    while part := file.readline(_SKIP_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
