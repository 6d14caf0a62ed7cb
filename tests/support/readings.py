"""Reading a file as the ingestor would: found by content, read to the end."""

from pathlib import Path

from scf.fertilization.readers.base import Origin, Reader
from scf.fertilization.readers.registry import reader_for


def origin_of(path: Path, **limits: int) -> Origin:
    """The file as an origin; its digest is of no matter to a reader."""
    return Origin(path, path.name, "0" * 64, **{"line_max_bytes": 64 * 2**20, **limits})


def read(path: Path, reader: Reader | None = None) -> list:
    """All records of a file, through the reader that recognises it."""
    chosen = reader or reader_for(path)
    assert chosen is not None, f"no reader knows {path}"
    return list(chosen.read(origin_of(path)))
