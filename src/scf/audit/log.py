"""Append events to the audit log, and read them back with proofs.

An event is in the log once `AuditLog.append` returns, and not before. The order of work is:
stage the new tiles on the drive, commit the signed tree head in the home, publish tiles and head on
the drive. A crash between any two leaves a log that `AuditLog.open` finishes: a staged entry whose
head was not committed never happened, one whose head was committed is published.

The committed head lives on the internal disk, so that a drive which was rolled back (an old copy,
a restored snapshot) is noticed: its log is shorter than the head that was signed over it. Processes
take turns through a lock in the home. Readers need no lock: the head on the drive is published
after its tiles, and tiles never change. Format: docs/formats/audit-log.md.
"""

import base64
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.audit.entry import Entry
from scf.audit.tiles import (
    WIDTH,
    Edge,
    TileInvalid,
    decode_bundle,
    decode_tile,
    entry_paths,
    level_width,
    num_levels,
    tile_path,
    tile_paths,
)
from scf.audit.tree_head import TreeHead, origin_of, verify_note
from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import OperatorError, UsageError, VerificationFailed
from scf.core.merkle import inclusion_proof, root_of_hashes
from scf.signing.keys import public_keys
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.instance_lock import instance_lock
from scf.storage.partitions import Folder

CHECKPOINT_NAME = "checkpoint"
STAGED_NAME = "staged.json"
STAGED_SCHEMA = "scf.audit-staged/1"
LOCK_WAIT_S = 60.0


class AuditLogDamaged(VerificationFailed):
    """Tiles and tree head of the log do not fit together, or one of them is missing."""

    def __init__(self, where: Path, what: str) -> None:
        super().__init__(
            f"{where}: {what}",
            remedy="Run `scf audit check`; restore zk_proofs/audit from a backup of this drive.",
        )


class AuditLogRolledBack(VerificationFailed):
    """The drive's log is shorter than what was signed, or has another history."""

    def __init__(self, where: Path, what: str) -> None:
        super().__init__(
            f"{where}: {what}; the drive was rolled back, or its log was rewritten",
            remedy="Bring back the newest copy of zk_proofs/audit. Nothing was changed.",
        )


class NoSigner(OperatorError):
    """The log was opened for reading: it has no key to sign a new head."""


@dataclass(frozen=True)
class LoggedEntry:
    """An entry, its place, and the bytes that were hashed."""

    index: int
    entry: Entry
    data: bytes


@dataclass(frozen=True)
class Inclusion:
    """Proof that an entry stands in the log, for whoever trusts the log's key.

    Attributes:
        index: Place of the entry.
        data: Its bytes (canonical JSON).
        proof: Sibling hashes from the leaf upward (RFC 6962, 2.1.1).
        checkpoint: The signed note whose root the proof leads to.
    """

    index: int
    data: bytes
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def to_json(self) -> dict[str, Any]:
        """As kept in proof records."""
        return {
            "index": self.index,
            "entry": self.data.decode(),
            "proof": [digest.hex() for digest in self.proof],
            "checkpoint": self.checkpoint.decode(),
        }


class AuditLog:
    """One log, opened. `AuditLog.open` makes it."""

    def __init__(
        self, folder: Folder, home: Path, signer: Signer | None, key: PublicKey, clock: Clock
    ) -> None:
        self._folder = folder
        self._signer = signer
        self._key = key
        self._clock = clock
        log_id = folder.drive.uuid if folder.drive else key.key_id[:16]
        self.origin = origin_of(log_id)
        self._lock_path = home / "audit" / "lock"
        self._head_path = home / "audit" / f"{log_id}.{CHECKPOINT_NAME}"
        # What memory knows: the note that `_edge` fits. None means: read the disks again.
        self._note: bytes | None = None
        self._edge = Edge()
        self._index_of_key: dict[str, int] = {}
        self._keys_read = 0

    @classmethod
    def open(
        cls,
        folder: Folder,
        home: Path,
        signer: Signer | None = None,
        *,
        public_key: PublicKey | None = None,
        clock: Clock | None = None,
    ) -> "AuditLog":
        """Open the log in `folder` (`zk_proofs/audit`), finishing what a crash left unfinished.

        Args:
            folder: Where the log lies.
            home: Where the committed head and the lock lie.
            signer: The foundry's; None opens for reading.
            public_key: Whose heads to believe; default: the signer's, else the home's foundry.pub.
            clock: Gives entries their time.

        Raises:
            AuditLogDamaged: Tiles and head do not fit.
            AuditLogRolledBack: The drive holds less than was committed, or something else.
            SignatureInvalid: The head is not signed by this foundry.
            KeyMissing: No key was given, and the home has none.
        """
        if public_key is None:
            public_key = signer.public_key if signer else public_keys(home / "keys")["foundry"]
        log = cls(folder, home, signer, public_key, clock or SystemClock())
        with instance_lock(log._lock_path, holder="audit log", wait_s=LOCK_WAIT_S):
            log._refresh()
        return log

    @classmethod
    def at(cls, folder: Folder, home: Path, clock: Clock) -> "AuditLog":
        """The log as it is published, for a look that must not write.

        What a crash left unfinished stays so: an entry that was committed and not published is not
        seen.

        Raises:
            KeyMissing: The home has no foundry.pub.
        """
        return cls(folder, home, None, public_keys(home / "keys")["foundry"], clock)

    def append(
        self,
        event: str,
        subject: str,
        details: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> int:
        """Add an event; returns its index, once it is durable.

        With a `key`, appending the same event again (after a crash, say) adds nothing and returns
        the index of the first: the caller need not know whether an attempt that failed was written.

        Raises:
            NoSigner: Opened for reading.
            UsageError: The entry is too large.
            DriveError, BudgetExceeded: Not written, or written but not yet published; append with
                the same key to find out.
        """
        if self._signer is None:
            raise NoSigner(
                f"{self._folder.path}: the audit log is open for reading only",
                remedy="Open it with the foundry's key.",
            )
        with instance_lock(self._lock_path, holder="audit log", wait_s=LOCK_WAIT_S):
            self._refresh()
            if key is not None and (known := self._find(key)) is not None:
                return known
            entry = Entry(utc_text(self._clock.now()), event, subject, dict(details or {}), key)
            edge = self._edge.copy()
            files = edge.append(entry.encode())
            head = TreeHead(self.origin, edge.size, edge.root())
            try:
                note = self._commit(head, files, self._signer)
            except BaseException:
                # Whether it was written is for the next refresh to find out.
                self._note = None
                raise
            self._note, self._edge = note, edge
            if key is not None:
                self._index_of_key[key] = edge.size - 1
            return edge.size - 1

    def tree_head(self) -> TreeHead | None:
        """The published head, its signature verified; None while the log is empty."""
        note = self.checkpoint()
        return None if note is None else verify_note(note, self._key, origin=self.origin)

    def checkpoint(self) -> bytes | None:
        """The published head as a signed note; None while the log is empty."""
        return _read_if_there(self._folder.path / CHECKPOINT_NAME)

    def entries(self, start: int = 0) -> Iterator[LoggedEntry]:
        """Published entries from `start` on, in order. Whether all fits is for `check_log`."""
        for index, data in self._published(start):
            yield LoggedEntry(index, Entry.decode(data), data)

    def inclusion_proof(self, index: int) -> Inclusion:
        """Proof that entry `index` stands under the published head.

        Raises:
            UsageError: No such entry.
            AuditLogDamaged: The tiles do not lead to the head.
        """
        note = self.checkpoint()
        head = None if note is None else verify_note(note, self._key, origin=self.origin)
        if note is None or head is None or not 0 <= index < head.size:
            size = 0 if head is None else head.size
            raise UsageError(f"the audit log has {size} entries, there is no entry {index}")
        hashes = self._leaf_hashes(head.size)
        if root_of_hashes(hashes) != head.root:
            raise AuditLogDamaged(self._folder.path, "the leaf hashes do not lead to the tree head")
        data = next(self.entries(index)).data
        return Inclusion(index, data, tuple(inclusion_proof(hashes, index)), note)

    # -- writing: stage, commit, publish ----------------------------------------------------------

    def _commit(self, head: TreeHead, files: Mapping[str, bytes], signer: Signer) -> bytes:
        staged = {
            "schema": STAGED_SCHEMA,
            "size": head.size,
            "root": head.root.hex(),
            "files": {path: base64.b64encode(data).decode() for path, data in files.items()},
        }
        self._folder.write_json(STAGED_NAME, staged)
        with durable.os_errors(self._folder.path):
            failpoint("audit.staged")
        # The one moment that counts: before this write the event did not happen, after it it did.
        note = head.sign(signer)
        durable.write_file(self._head_path, note)
        with durable.os_errors(self._folder.path):
            failpoint("audit.committed")
        self._publish(files, note)
        return note

    def _publish(self, files: Mapping[str, bytes], note: bytes) -> None:
        """Tiles first, then the head that needs them; every step may be repeated."""
        for path, data in files.items():
            parent, _, name = path.rpartition("/")
            self._folder_for(parent).write_file(name, data)
        self._folder.write_file(CHECKPOINT_NAME, note)
        with durable.os_errors(self._folder.path):
            for path in files:
                if ".p/" not in path:  # a full tile: its partial forerunners have served
                    shutil.rmtree(self._folder.path / f"{path}.p", ignore_errors=True)
            (self._folder.path / STAGED_NAME).unlink(missing_ok=True)

    def _folder_for(self, path: str) -> Folder:
        """A folder inside the log; each new name on the way is flushed, to outlive a crash."""
        folder = self._folder
        for part in path.split("/"):
            is_new = not (folder.path / part).exists()
            inner = folder.folder(part)
            if is_new:
                with durable.os_errors(folder.path):
                    durable.flush_folder(folder.path)
            folder = inner
        return folder

    # -- opening: find out what is, finish what is unfinished -------------------------------------

    def _refresh(self) -> None:
        """Bring memory and drive up to the committed head. Called with the lock held."""
        self._folder.check()
        committed = _read_if_there(self._head_path)
        published = self.checkpoint()
        if committed == published == self._note and not self._has_staged():
            return
        self._note = None
        note = self._reconcile(committed, published)
        if note is None:
            if (self._folder.path / "tile").exists():
                raise AuditLogDamaged(self._folder.path, "there are tiles, but no tree head")
            self._edge = Edge()
        else:
            self._edge = self._load_edge(verify_note(note, self._key, origin=self.origin))
        self._note = note

    def _reconcile(self, committed: bytes | None, published: bytes | None) -> bytes | None:
        """The head that holds, after both disks have been made to agree on it."""
        home = committed and verify_note(committed, self._key, origin=self.origin)
        drive = published and verify_note(published, self._key, origin=self.origin)
        if drive and (not home or home.size < drive.size):
            # The home is new, or older than the drive (restored from a backup): follow the drive,
            # if what the home knows is the beginning of what the drive has.
            assert published is not None
            if home:
                self._require_prefix(home, drive)
            durable.write_file(self._head_path, published)
            committed = published
        elif home and (not drive or drive.size < home.size):
            assert committed is not None
            self._finish(home, committed, published_size=drive.size if drive else 0)
        elif home and drive and home.root != drive.root:
            raise AuditLogRolledBack(
                self._folder.path, f"two different logs of {home.size} entries were signed"
            )
        with durable.os_errors(self._folder.path):
            # Staged and not committed: that entry never happened.
            (self._folder.path / STAGED_NAME).unlink(missing_ok=True)
        return committed

    def _finish(self, home: TreeHead, note: bytes, *, published_size: int) -> None:
        """Publish the one entry whose head was committed before a crash."""
        staged = self._read_staged()
        if (
            staged is None
            or published_size != home.size - 1
            or (staged["size"], staged["root"]) != (home.size, home.root.hex())
        ):
            raise AuditLogRolledBack(
                self._folder.path,
                f"the drive holds {published_size} entries of the {home.size} that were signed",
            )
        try:
            files = {
                path: base64.b64decode(data, validate=True)
                for path, data in staged["files"].items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise AuditLogDamaged(self._folder.path, f"{STAGED_NAME}: {error}") from error
        self._publish(files, note)

    def _require_prefix(self, old: TreeHead, new: TreeHead) -> None:
        hashes = self._leaf_hashes(new.size)
        if root_of_hashes(hashes[: old.size]) != old.root or root_of_hashes(hashes) != new.root:
            raise AuditLogRolledBack(
                self._folder.path,
                f"its {new.size} entries do not begin with the {old.size} that this home has seen",
            )

    def _load_edge(self, head: TreeHead) -> Edge:
        levels = []
        for level in range(num_levels(head.size)):
            full, width = divmod(level_width(head.size, level), WIDTH)
            levels.append(self._read_tile(tile_path(level, full, width), width) if width else [])
        full, width = divmod(head.size, WIDTH)
        bundle = self._read_bundle(tile_path("entries", full, width), width) if width else []
        edge = Edge(head.size, levels, bundle)
        if edge.root() != head.root:
            raise AuditLogDamaged(self._folder.path, "the last tiles do not lead to the tree head")
        return edge

    def _find(self, key: str) -> int | None:
        """The index of the entry with this key; reads only what is new since the last time."""
        if self._keys_read < self._edge.size:
            for index, data in self._published(self._keys_read):
                # Only the key is wanted: decoding with all its checks would take ten times as long.
                known = json.loads(data).get("key")
                if known is not None:
                    self._index_of_key.setdefault(known, index)
            self._keys_read = self._edge.size
        return self._index_of_key.get(key)

    # -- reading ----------------------------------------------------------------------------------

    def _published(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Index and bytes of the published entries from `start` on."""
        head = self.tree_head()
        for number, (path, width) in enumerate(entry_paths(head.size if head else 0)):
            first = number * WIDTH
            if first + width > start:
                for index, data in enumerate(self._read_bundle(path, width), start=first):
                    if index >= start:
                        yield index, data

    def _leaf_hashes(self, size: int) -> list[bytes]:
        return [h for path, width in tile_paths(size, 0) for h in self._read_tile(path, width)]

    def _read_tile(self, path: str, width: int) -> list[bytes]:
        try:
            return decode_tile(self._read(path), width)
        except TileInvalid as error:
            raise AuditLogDamaged(self._folder.path / path, str(error)) from error

    def _read_bundle(self, path: str, width: int) -> list[bytes]:
        try:
            return decode_bundle(self._read(path), width)
        except TileInvalid as error:
            raise AuditLogDamaged(self._folder.path / path, str(error)) from error

    def _read(self, path: str) -> bytes:
        return read_log_file(self._folder.path, path)

    def _has_staged(self) -> bool:
        return (self._folder.path / STAGED_NAME).exists()

    def _read_staged(self) -> dict[str, Any] | None:
        if not self._has_staged():
            return None
        staged = durable.read_json(self._folder.path / STAGED_NAME)
        if not isinstance(staged, dict) or staged.get("schema") != STAGED_SCHEMA:
            raise AuditLogDamaged(self._folder.path, f"{STAGED_NAME} is not {STAGED_SCHEMA}")
        return staged


def read_log_file(folder: Path, path: str) -> bytes:
    """A tile or bundle of the log in `folder`; a partial one is cut out of the full one if need be.

    Raises:
        AuditLogDamaged: It is not there, or cannot be read.
    """
    try:
        return (folder / path).read_bytes()
    except FileNotFoundError:
        full, partial, width = path.partition(".p/")
        if partial and (folder / full).exists():
            # A larger head was published while we read: the full tile begins with the partial one.
            return _cut((folder / full).read_bytes(), int(width), is_bundle="/entries/" in path)
        raise AuditLogDamaged(folder / path, "this part of the log is missing") from None
    except OSError as error:
        raise AuditLogDamaged(folder / path, f"cannot be read: {error.strerror}") from error


def _cut(data: bytes, width: int, *, is_bundle: bool) -> bytes:
    if not is_bundle:
        return data[: 32 * width]
    position = 0
    for _ in range(width):
        position += 2 + int.from_bytes(data[position : position + 2], "big")
    return data[:position]


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
