"""Copy what cannot be made again to another place.

    objects/ab/abcd...      content, named by its SHA-256; each once, however many snapshots
    snapshots/STAMP.json    what lay where, with digests, and the keys, encrypted (`snapshot`)

The place is a folder, a machine reached by ssh, a bucket or a restic repository
(`dispatch.places`). A snapshot holds the home (settings, states, the committed audit head), the
keys, the audit log and proofs, the zoo and the releases; the vault only if it is asked for. It is
written last, so a backup that was cut off left content and no snapshot, and the next one goes on.
May run beside a running daemon. `restoring` brings it back.
"""

import contextlib
import hashlib
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scf
from scf.audit.log import LOCK_WAIT_S
from scf.config import FoundryConfig
from scf.core.clock import Clock, utc_text
from scf.core.errors import OperatorError, UsageError
from scf.daemon.rooms import own_drive
from scf.daemon.snapshot import (
    SCHEMA,
    check_passphrase,
    newest_rows,
    object_name,
    seal_keys,
    snapshot_name,
)
from scf.dispatch.places import Place
from scf.signing.rotation import ROTATIONS_NAME
from scf.storage import durable
from scf.storage.instance_lock import instance_lock
from scf.storage.partitions import MARKER_NAME

# Always taken, in this order: what names others first, so that whatever is named has been written
# by the time that it is copied.
_PARTITIONS = ("zk_proofs", "model_zoo", "release_history")
_VAULT = "fossil_vault"
# Of the home: made again, or about processes of this machine, or encrypted apart, or a secret that
# is made or given anew on another machine (the provider's key, tokens, keys for pods).
_NOT_OF_HOME = re.compile(
    r"(keys|logs|local_jobs|quickstart|plans)/.*|.*\.lock|.*/lock|vault_index\.db.*|.*-(wal|shm)"
    r"|.*\.(key|token)|(.*/)?(identity|host_key)(\.pub)?|\..*"
)
# Content waits for a transfer until there is so much of it, or so many files.
BATCH_BYTES = 10**9
BATCH_FILES = 500


@dataclass(frozen=True)
class Saved:
    """What a backup came to. `new_bytes` were copied; the rest was there from earlier ones."""

    snapshot: str
    files: int
    bytes: int
    new_bytes: int
    with_vault: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def save(
    config: FoundryConfig,
    place: Place,
    *,
    passphrase: str,
    with_vault: bool,
    clock: Clock,
    talk: Callable[[str], None] = lambda _: None,
) -> Saved:
    """Make a snapshot of the foundry in `place`.

    Raises:
        UsageError: A passphrase too short to protect anything, or a folder inside the foundry.
        DriveMissing: The drive is not there.
        BudgetExceeded: The folder's disk is full; earlier snapshots are whole.
        DoorError: The place cannot be reached, or did not take a file; likewise.
    """
    check_passphrase(passphrase)
    drive = own_drive(config)
    _require_elsewhere(place, config.home, drive.root)
    names = place.names()
    stamp = utc_text(clock.now())[:19].replace("-", "").replace(":", "") + "Z"
    rows: list[dict[str, Any]] = []
    with _spool(place, config.home) as spool:
        store = _Store(place, names, newest_rows(place, names), spool, talk)
        # The log and its committed head belong together: nobody appends while they are copied.
        lock = instance_lock(
            config.home / "audit" / "lock", holder="scf backup", wait_s=LOCK_WAIT_S
        )
        with tempfile.TemporaryDirectory(dir=spool) as scratch, lock:
            rows += _home_rows(store, config.home, Path(scratch))
            rows += store.tree(drive.root / "zk_proofs", "root/zk_proofs")
        for partition in (*_PARTITIONS[1:], *((_VAULT,) if with_vault else ())):
            talk(f"{partition} ...")
            rows += store.tree(drive.root / partition, f"root/{partition}")
        rows.append(store.file(drive.root / MARKER_NAME, f"root/{MARKER_NAME}"))
        store.flush()
        manifest = {
            "schema": SCHEMA,
            "made_at": utc_text(clock.now()),
            "scf": scf.__version__,
            "drive_uuid": drive.uuid,
            "with_vault": with_vault,
            "files": sorted(rows, key=lambda row: str(row["path"])),
        }
        keys = seal_keys(_key_bytes(config.home / "keys"), passphrase, manifest)
        name = snapshot_name(stamp)
        (spool / name).parent.mkdir(exist_ok=True)
        durable.write_json(spool / name, {**manifest, "keys": keys}, mode=0o600)
        place.put(spool, [name])
    total = sum(int(row["size_bytes"]) for row in rows)
    return Saved(stamp, len(rows), total, store.new_bytes, with_vault)


def _require_elsewhere(place: Place, home: Path, root: Path) -> None:
    if place.lies_in is None:
        return
    target = place.lies_in.resolve()
    if any(target.is_relative_to(part.resolve()) for part in (home, root)):
        raise UsageError(
            f"{target} lies inside the foundry: one drive is one failure",
            remedy="Name a folder on another disk.",
        )


@contextlib.contextmanager
def _spool(place: Place, home: Path) -> Iterator[Path]:
    """A folder for content on its way: on the target's own disk, or on the internal one."""
    folder = place.folder_here or home
    with durable.os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".backup-") as spool:
            yield Path(spool)


class _Store:
    """Content by digest. A file that is as the newest snapshot saw it is not read again."""

    def __init__(
        self,
        place: Place,
        there: set[str],
        known: Mapping[str, Mapping[str, Any]],
        spool: Path,
        talk: Callable[[str], None],
    ) -> None:
        self._place = place
        self._there = there
        self._known = known
        self._spool = spool
        self._talk = talk
        self._waiting: dict[str, int] = {}
        self.new_bytes = 0

    def tree(self, folder: Path, name: str) -> Iterator[dict[str, Any]]:
        """Every file below `folder`; those of a folder before those of its folders."""
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink()):
            if not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    yield self.file(path, f"{name}/{path.name}")
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            if not path.name.startswith("."):
                yield from self.tree(path, f"{name}/{path.name}")

    def file(self, path: Path, name: str) -> dict[str, Any]:
        """Keep one file's content; returns its row."""
        stat = path.stat()
        # A text: nanoseconds are more than the whole numbers that every JSON reader agrees on.
        seen = (stat.st_size, str(stat.st_mtime_ns))
        known = self._known.get(name)
        is_as_it_was = known and (known["size_bytes"], known["mtime_ns"]) == seen
        if known and is_as_it_was and object_name(known["sha256"]) in self._there:
            return dict(known)
        digest, size_bytes = self._keep(path)
        return {
            "path": name,
            "sha256": digest,
            "size_bytes": size_bytes,
            "mtime_ns": str(stat.st_mtime_ns),
            "mode": stat.st_mode & 0o777,
        }

    def flush(self) -> None:
        """Transfer what waits."""
        if not self._waiting:
            return
        self._place.put(self._spool, list(self._waiting))
        for name in self._waiting:
            (self._spool / name).unlink(missing_ok=True)
        self._there |= self._waiting.keys()
        self.new_bytes += sum(self._waiting.values())
        self._waiting.clear()
        if self.new_bytes >= BATCH_BYTES:
            self._talk(f"{self.new_bytes / 1e9:.1f} GB so far")

    def _keep(self, path: Path) -> tuple[str, int]:
        temporary = self._spool / f".{secrets.token_hex(8)}.tmp-{os.getpid()}"
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with durable.os_errors(temporary):
                with path.open("rb") as reader, temporary.open("xb") as writer:
                    while block := reader.read(2**20):
                        digest.update(block)
                        size_bytes += len(block)
                        writer.write(block)
                    writer.flush()
                    durable.flush_file(writer.fileno())
                name = object_name(digest.hexdigest())
                if name not in self._there and name not in self._waiting:
                    (self._spool / name).parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(self._spool / name)
                    self._waiting[name] = size_bytes
        finally:
            temporary.unlink(missing_ok=True)
        if sum(self._waiting.values()) >= BATCH_BYTES or len(self._waiting) >= BATCH_FILES:
            self.flush()
        return digest.hexdigest(), size_bytes


def _home_rows(store: _Store, home: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(home.rglob("*")):
        relative = path.relative_to(home).as_posix()
        if not path.is_file() or path.is_symlink() or _NOT_OF_HOME.fullmatch(relative):
            continue
        if path.suffix == ".db":
            # A database that is in use is copied as SQLite sees it, not as its files lie there.
            copy = scratch / path.name
            _copy_database(path, copy)
            yield store.file(copy, f"home/{relative}")
        else:
            yield store.file(path, f"home/{relative}")


def _copy_database(path: Path, copy: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(path, timeout=30.0)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.DatabaseError as error:
        raise OperatorError(
            f"{path}: cannot be copied: {error}",
            remedy="For runs.db: `scf daemon rebuild-state`, then make the backup again.",
        ) from error


def _key_bytes(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())
            if path.suffix in {".key", ".pub"} or path.name == ROTATIONS_NAME}  # fmt: skip
