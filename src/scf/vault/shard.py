"""Shards: NDJSON files of fossils, immutable, named by their digest.

A shard is written under a hidden staging name, because its name is known only when its last byte
is. It appears under `shards/<first 2 digits>/<first 16 digits>.ndjson` complete or not at all.
"""

import contextlib
import hashlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from scf.core.errors import InputError
from scf.core.merkle import TreeHasher
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.ndjson import Line, read_lines
from scf.storage.partitions import Folder
from scf.vault.fossil import Fossil, encode_fossil, parse_fossil
from scf.vault.journal_file import ShardSummary
from scf.vault.provenance import file_sha256

# Stored fossils may be larger than the lines that ingest accepts: packing can lengthen a list of
# one-digit integers up to five times.
_STORED_LINE_MAX_BYTES = 2**30
# What a commit writes beside its shard: the signed manifest and the journal's line.
_COMMIT_BYTES = 4096
# While a shard is staged, its partition's budget is asked about so much more at a time.
_ADMIT_STEP_BYTES = 8 * 2**20


class ShardDamaged(InputError):
    """A shard's bytes are not the bytes that were promised."""

    kind = "shard"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}",
            remedy="Restore this shard from a backup, or ingest its origin again in a new root.",
        )
        self.path = path


def leaf(cid: str, verdict: str) -> bytes:
    """A fossil's leaf in its shard's Merkle tree: canonical JSON of `[cid, verdict]`.

    Both are letters and digits, of which canonical JSON makes nothing else; asking it takes 10 us.
    """
    return f'["{cid}","{verdict}"]'.encode("ascii")


class StagedShard:
    """A shard being written. `publish` gives it its name; without that it leaves nothing.

    Raises:
        BudgetExceeded: The disk or the partition's budget is full; what was staged is removed.
        DriveError: The drive is gone or failing.
    """

    def __init__(self, shards: Folder) -> None:
        self._shards = shards
        self._staging = shards.new_staging("shard")
        self._temporary = self._staging / "shard.ndjson"
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()
        self._tree = TreeHasher()
        self._admitted_bytes = 0
        self.size_bytes = 0

    @property
    def count(self) -> int:
        """Fossils added so far."""
        return self._tree.size

    def add(self, fossil: Fossil) -> None:
        """Append one fossil."""
        line = encode_fossil(fossil)
        if self.size_bytes + len(line) > self._admitted_bytes:
            # Asked here too, so that a budget without room is not found out a whole shard later.
            self._admitted_bytes = self.size_bytes + len(line) + _ADMIT_STEP_BYTES
            self._shards.admit(self.size_bytes + len(line))
        with durable.os_errors(self._temporary):
            self._file.write(line)
        self._digest.update(line)
        self._tree.add(leaf(fossil.cid, fossil.verdict))
        self.size_bytes += len(line)

    def publish(self) -> ShardSummary:
        """Make the shard durable under its final name; the same bytes again is success."""
        sha256 = self._digest.hexdigest()
        path = shard_path(sha256)
        with durable.os_errors(self._temporary):
            self._file.flush()
            durable.flush_file(self._file.fileno())
            self._file.close()
            self._shards.check()
            # Room for the whole commit, so that no shard lies there without its manifest.
            self._shards.admit(self.size_bytes + _COMMIT_BYTES)
            final = self._shards.folder(sha256[:2]).path / path.name
            if final.exists() and file_sha256(final) != sha256:
                raise ShardDamaged(final, f"this name belongs to the shard with digest {sha256}")
            failpoint("durable.before_rename")
            is_new = not final.exists()
            self._temporary.replace(final)
            failpoint("durable.after_rename")
            durable.flush_folder(final.parent)
        if is_new and self._shards.drive is not None:
            self._shards.drive.count(final.parent, self.size_bytes)
        self.discard()
        return ShardSummary(
            f"{self._shards.path.name}/{path.as_posix()}",
            sha256,
            self.size_bytes,
            self._tree.size,
            self._tree.root().hex(),
        )

    def discard(self) -> None:
        """Remove what was staged. Doing it twice is fine."""
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        shutil.rmtree(self._staging, ignore_errors=True)


def shard_path(sha256: str) -> Path:
    """Where a shard of this digest lies, relative to `shards/`."""
    return Path(sha256[:2]) / f"{sha256[:16]}.ndjson"


def read_shard(path: Path, *, verify_cid: bool = True) -> Iterator[Fossil]:
    """The fossils of a shard, in order.

    Raises:
        ShardDamaged: A line is not a fossil: in the vault each line was one.
    """
    for position, line in enumerate(read_lines(path, line_max_bytes=_STORED_LINE_MAX_BYTES)):
        yield _stored_fossil(path, line, position, verify_cid=verify_cid)


def read_fossil(path: Path, position: int) -> Fossil | None:
    """The fossil at `position` (from 0) of a shard, its CID recomputed; None past the end."""
    lines = read_lines(path, line_max_bytes=_STORED_LINE_MAX_BYTES)
    for line in itertools.islice(lines, position, None):
        return _stored_fossil(path, line, position, verify_cid=True)
    return None


def check_shard(path: Path, expected: ShardSummary) -> None:
    """Recompute everything that `expected` promises, every CID included.

    Raises:
        ShardDamaged: With the first difference found.
    """
    if not path.is_file():
        raise ShardDamaged(path, "the file is missing")
    actual = file_sha256(path)
    if actual != expected.sha256:
        raise ShardDamaged(path, f"digest {actual} instead of {expected.sha256}")
    if path.stat().st_size != expected.size_bytes:
        raise ShardDamaged(path, f"not {expected.size_bytes} bytes")
    tree = TreeHasher()
    for fossil in read_shard(path):
        tree.add(leaf(fossil.cid, fossil.verdict))
    if (tree.size, tree.root().hex()) != (expected.count, expected.merkle_root):
        raise ShardDamaged(path, f"{tree.size} fossils with another Merkle root than promised")


def _stored_fossil(path: Path, line: Line, position: int, *, verify_cid: bool) -> Fossil:
    try:
        if line.fault is not None:
            raise InputError(line.fault)
        return parse_fossil(line.data, position=position, verify_cid=verify_cid)
    except InputError as error:
        raise ShardDamaged(path, f"line {line.number}: {error}") from error
