"""Read lines of NDJSON with their places, in constant memory: plain, gzip and zstandard."""

import contextlib
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from scf.core.errors import InputError

SUFFIXES = (".ndjson", ".ndjson.zst", ".ndjson.gz")

# A 64x64 float32 field as a number list takes 45 kB. 64 MiB leaves room for a million numbers, and
# keeps a file without newlines from filling the memory.
LINE_MAX_BYTES = 64 * 2**20


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
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield cast("BinaryIO", io.BufferedReader(stream))
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
                    offset += _skip_rest(file, line_max_bytes)
                    yield Line(number, start, b"", f"longer than {line_max_bytes} bytes")
                    continue
                data = line.rstrip(b"\r\n")
                if data.strip():
                    yield Line(number, start, data)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise InputError(f"{path}: cannot be read past byte {offset}: {error}") from error


def _skip_rest(file: BinaryIO, step_bytes: int) -> int:
    skipped = 0
    while part := file.readline(step_bytes):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
