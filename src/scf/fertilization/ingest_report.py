"""What an ingest says: before it starts, on the way, and at its end."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from scf.fertilization.readers.describe import Description


@dataclass
class IngestProgress:
    """How far an ingest is.

    Attributes:
        origin: The file that is being read.
        files_done: Files that are finished.
        files_total: Files in all.
        read: Records met so far.
        bytes_done: Bytes of the files that are finished, and of this one as far as it is known.
        bytes_total: Bytes of all files.
        digested_bytes: While the digest of this file is taken: how far that is; else None.
    """

    origin: str
    files_done: int
    files_total: int
    read: int
    bytes_done: int = 0
    bytes_total: int = 0
    digested_bytes: int | None = None


@dataclass(frozen=True)
class Understood:
    """What a reader understood of an origin before it read it.

    Attributes:
        origin: Its name.
        reader: The reader's name.
        size_bytes: Its size.
        description: The description; None where the reader has none to give.
        fault: Why it cannot be understood.
    """

    origin: str
    reader: str
    size_bytes: int
    description: Description | None = None
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "origin": self.origin,
            "reader": self.reader,
            "size_bytes": self.size_bytes,
            "description": self.description and self.description.to_json(),
            "fault": self.fault,
        }


@dataclass
class IngestReport:
    """What became of everything that was met: read = accepted + duplicates + quarantined.

    Attributes:
        origin: Name of the file or folder that was ingested.
        reader: The reader that was used; several, with commas, for a mixed folder.
        read: Records met.
        accepted: Fossils that are new in the vault.
        duplicates: Fossils that the vault had already, or that occurred twice.
        quarantined: Records that were refused.
        fossils_root: RFC 6962 root over the CIDs of accepted and duplicate fossils, hex.
        reasons: How many were refused, by kind.
        quarantine: Files that hold the refused records, relative to fossil_vault.
        skipped: Files of a folder that no reader knows; they are not counted.
    """

    origin: str
    reader: str = ""
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    fossils_root: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    quarantine: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "origin": self.origin,
            "reader": self.reader,
            "read": self.read,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "quarantined": self.quarantined,
            "fossils_root": self.fossils_root,
            "reasons": dict(self.reasons),
            "quarantine": self.quarantine,
            "skipped": self.skipped,
        }
