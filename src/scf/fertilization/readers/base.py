"""What a reader is, and what it hands over.

A reader knows formats, not fossils: it yields drafts (records without identity), and the ingestor
makes fossils of them. A record that it cannot make sense of it yields as a rejection and goes on;
it raises `InputError` where the rest of the file is lost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scf.storage.ndjson import Line
from scf.vault.fields import Array
from scf.vault.quarantine import Rejection

# So much of a file is shown to readers that are asked whether they know it.
HEAD_BYTES = 4096
# Numbers of one record, in bytes, unless the ingestor is told otherwise. A record is held up to
# seven times while it becomes a line: numbers, CBOR, base64, JSON. 128 MiB keeps that under 1 GB.
RECORD_MAX_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Origin:
    """A file to be read, or a folder that is one store (Zarr).

    Attributes:
        path: Where it is now.
        name: Its path relative to what was ingested, with `/`; this goes into provenance.
        sha256: Digest of its bytes; of a folder, see `scf.fertilization.origins`.
        line_max_bytes: Longer lines are refused, so that memory stays bounded.
        record_max_bytes: Records with more numbers, in bytes, are refused.
    """

    path: Path
    name: str
    sha256: str
    line_max_bytes: int
    record_max_bytes: int = RECORD_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Draft:
    """A record as a reader found it.

    Attributes:
        index: Its place in the origin, from 0.
        source: Who made it.
        arrays: Name to numbers.
        units: Name to unit; a name that is absent has no stated unit.
        params: Numbers and text of the record as a whole.
        observed_at: RFC 3339, None where the source has no time.
        family: The unit that is held out as a whole, where the source knows one.
        flags: What the source says about the quality of its numbers.
        licence: Terms of the source.
        line: Line in the origin, from 1, where it has lines.
        offset: Byte of the uncompressed origin at which the record begins, where known.
    """

    index: int
    source: str
    arrays: Mapping[str, Array]
    units: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    observed_at: str | None = None
    family: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    line: int | None = None
    offset: int | None = None


# A `Line` is a fossil as it stands in an NDJSON file: it keeps its identity.
Record = Draft | Line | Rejection


class Reader(Protocol):
    """Understands one kind of file."""

    name: str

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether this file is of the reader's kind, by its first bytes and its name."""

    def read(self, origin: Origin) -> Iterator[Record]:
        """The records in order. Raises InputError where nothing more can be read."""


@runtime_checkable
class FolderReader(Protocol):
    """A reader for which some folders are one origin each."""

    def recognises_folder(self, path: Path) -> bool:
        """Whether this folder, as a whole, is of the reader's kind."""
