"""The journal's file: one line a shard. Read here by whoever only wants to know what is there.

No fossil is looked at, so that a waiting daemon needs nothing that reads their numbers.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scf.core.identity import is_sha256_hex

JOURNAL = "journal.log"


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What identifies a shard.

    Attributes:
        path: Relative to `fossil_vault`, with `/`.
        sha256: Digest of the file.
        size_bytes: Its size.
        count: How many fossils (lines) it holds.
        merkle_root: RFC 6962 root over `leaf(cid, verdict)` in the order of the lines, hex.
    """

    path: str
    sha256: str
    size_bytes: int
    count: int
    merkle_root: str


@dataclass(frozen=True, slots=True)
class ShardEntry(ShardSummary):
    """One journal line: a shard that is in the vault.

    Attributes:
        committed_at: When, RFC 3339 in UTC.
        origin: What was ingested: the name of a file or folder.
    """

    committed_at: str
    origin: str

    @property
    def summary(self) -> ShardSummary:
        """The part that the manifest signs."""
        return ShardSummary(self.path, self.sha256, self.size_bytes, self.count, self.merkle_root)


def summary_from_json(value: dict[str, Any]) -> ShardSummary | None:
    """The summary in a JSON object that may hold more keys; None where one lacks or is wrong."""
    path, sha256 = value.get("path"), value.get("sha256")
    size_bytes, count, root = value.get("size_bytes"), value.get("count"), value.get("merkle_root")
    if not (isinstance(path, str) and is_sha256_hex(sha256) and is_sha256_hex(root)):
        return None
    if type(size_bytes) is not int or type(count) is not int or ".." in Path(path).parts:
        return None
    if Path(path).is_absolute():
        return None
    return ShardSummary(path, str(sha256), size_bytes, count, str(root))


def journal_size(vault_folder: Path) -> int:
    """Bytes of the journal; 0 where there is none yet."""
    try:
        return (vault_folder / JOURNAL).stat().st_size
    except FileNotFoundError:
        return 0


def read_journal(vault_folder: Path, since_offset: int = 0) -> Iterator[tuple[ShardEntry, int]]:
    """Journal entries from `since_offset` on, each with the offset behind it.

    Lines that a crash tore are skipped; a last line without a newline is not read yet.
    """
    try:
        file = (vault_folder / JOURNAL).open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(since_offset)
        offset = since_offset
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            entry = _entry_of(line)
            if entry is not None:
                yield entry, offset


def _entry_of(line: bytes) -> ShardEntry | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    summary = summary_from_json(value) if isinstance(value, dict) else None
    if summary is None:
        return None
    return ShardEntry(
        **asdict(summary),
        committed_at=str(value.get("committed_at", "")),
        origin=str(value.get("origin", "")),
    )
