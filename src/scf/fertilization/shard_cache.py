"""The derived shard cache: shards as fixed-stride columns, built when they are first read.

It lies in `system_cache/shards`, one file a shard. Nothing in it is authoritative: it follows from
the shards, may be deleted at any time, and is built anew where the source's digest, size or time,
or the format's version, are not those it was built for. It keeps within its budget by dropping what
was not used for the longest time; where there is no room, fossils are streamed from NDJSON in the
same order. Builders write beside and rename, so two of them, or one that is killed, do no harm.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from scf.core.errors import BudgetExceeded, DriveError
from scf.fertilization.rows_file import NoRoom, NotRows, RowsFile, RowsSource, RowsWriter
from scf.fertilization.shard_scan import Refusals, check_promise, kind_of, scan
from scf.storage import durable
from scf.storage.partitions import MARKER_NAME, Drive, DriveMissing, Folder
from scf.vault.shard import ShardDamaged

SUFFIX = ".rows"
# The cache's share of the partition `system_cache`; job bundles lie there too.
CACHE_SHARE = 0.75
# So much of the disk is left free, so that a cache never fills the drive.
_RESERVE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of fossils.

    Attributes:
        path: Where it is.
        sha256: Its promised digest; None for plain files, of which nobody promised anything.
    """

    path: Path
    sha256: str | None = None


class ShardCache:
    """A folder of rows files with a budget.

    Args:
        folder: Where they lie.
        budget_bytes: They never take more; 0 switches the cache off.
    """

    def __init__(self, folder: Folder, *, budget_bytes: int) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes

    @classmethod
    def beside(cls, vault_root: Path, *, share: float = CACHE_SHARE) -> "ShardCache | None":
        """The cache on the drive of a vault; None where it lies on no drive of ours.

        Args:
            vault_root: `fossil_vault`.
            share: Of the budget of the partition `system_cache`.
        """
        root = vault_root.resolve().parent
        if not (root / MARKER_NAME).exists():
            return None
        try:
            drive = Drive.open(root)
            folder = drive.folder("system_cache", "shards")
        except DriveMissing:
            raise
        except (DriveError, BudgetExceeded, PermissionError):  # read-only or full: stream
            return None
        return cls(folder, budget_bytes=int(drive.budgets_bytes["system_cache"] * share))

    def path_of(self, source: SourceFile) -> Path:
        """Where the rows of a source lie, whether they do or not."""
        if source.sha256 is not None:
            return self.folder.path / f"{source.sha256[:32]}{SUFFIX}"
        name = hashlib.sha256(os.fsencode(source.path.resolve())).hexdigest()[:31]
        return self.folder.path / f"p{name}{SUFFIX}"

    def open(self, source: SourceFile, *, keep: Collection[Path] = ()) -> RowsFile | None:
        """The rows of a source, built if they are not there; None where there is no room.

        Args:
            source: Its promised digest is verified when the rows are built.
            keep: Files of the cache that are in use and must not make room.

        Raises:
            ShardDamaged: The source is missing, or is not what was promised.
            DriveMissing: The drive was pulled.
        """
        try:
            stat = source.path.stat()
        except OSError as error:
            raise ShardDamaged(source.path, f"cannot be read: {error.strerror}") from error
        wanted = RowsSource(source.sha256, stat.st_size, stat.st_mtime_ns)
        path = self.path_of(source)
        with contextlib.suppress(NotRows):
            rows = RowsFile(path, source.path)
            if rows.source == wanted:
                self._note_use(path)
                return rows
        if not self.budget_bytes:
            return None
        try:
            return self._build(source, wanted, path, keep)
        except DriveMissing:
            raise
        except (NoRoom, BudgetExceeded, DriveError, PermissionError):
            return None

    def clear(self) -> int:
        """Remove every file; returns how many bytes that freed."""
        return sum(_remove(path, size) for path, _, size in self._files())

    def size_bytes(self) -> int:
        """Bytes that the cache takes."""
        return sum(size for _, _, size in self._files())

    def _build(
        self, source: SourceFile, wanted: RowsSource, path: Path, keep: Collection[Path]
    ) -> RowsFile:
        self.folder.check()
        durable.sweep(self.folder.path)
        if source.sha256 is not None:
            check_promise(source.path, source.sha256)
        refusals = Refusals()
        with self.folder.open_staged(path.name) as file:
            writer = RowsWriter(file, make_room=lambda size: self._make_room(size, keep))
            for fossil, line in scan(source.path, refusals, verify_cid=source.sha256 is None):
                writer.add(kind_of(fossil), fossil, position=fossil.position, line=line.number)
            writer.finish(wanted, refusals)
        return RowsFile(path, source.path)

    def _make_room(self, size_bytes: int, keep: Collection[Path]) -> int:
        """Drop the least recently used until `size_bytes` fit; returns how many do fit."""
        files = sorted(self._files(), key=lambda file: file[1])
        room = self.budget_bytes - sum(size for _, _, size in files)
        dropped = []
        for path, _, size in files:
            if room >= size_bytes:
                break
            if path not in keep:
                dropped.append((path, size))
                room += size
        if room < size_bytes:
            raise NoRoom
        for path, size in dropped:
            _remove(path, size)
        # Of the staged file itself, what is written is not free any more.
        free = shutil.disk_usage(self.folder.path).free - _RESERVE_BYTES
        if free <= 0:
            raise NoRoom
        return min(room, size_bytes + free)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Path, time of last use and size of every file here."""
        found = []
        for path in self.folder.path.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removed it
                stat = path.stat()
                found.append((path, stat.st_atime_ns, stat.st_size))
        return found

    def _note_use(self, path: Path) -> None:
        # Set by hand: many file systems do not keep the time of access, all of them can.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _remove(path: Path, size_bytes: int) -> int:
    with contextlib.suppress(OSError):
        path.unlink()
    return size_bytes
