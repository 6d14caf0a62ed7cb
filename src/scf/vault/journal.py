"""The vault: shards, and the journal that says which of them count.

A shard is in the vault once its line is in `fossil_vault/journal.log`, and not before. The order of
a commit is: shard, signed manifest, journal line, index. `Vault.writing` finishes or sets aside
what a crash left between any two; the index catches up whenever the vault is opened.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Self

from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import InputError, OperatorError, VerificationFailed
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.instance_lock import instance_lock
from scf.storage.partitions import Drive, Folder
from scf.vault.fossil import Fossil
from scf.vault.index import Index, IndexPart, Location
from scf.vault.journal_file import JOURNAL, ShardEntry, ShardSummary, journal_size, read_journal
from scf.vault.manifest import (
    PAYLOAD_TYPE,
    manifest_path,
    manifest_payload,
    read_manifest,
)
from scf.vault.quarantine import Quarantine
from scf.vault.retraction import Retraction, Retractions
from scf.vault.shard import (
    ShardDamaged,
    StagedShard,
    check_shard,
    read_fossil,
    read_shard,
)

PARTITION = "fossil_vault"
SHARD_BYTES = 256 * 10**6
# How long a writer waits for another one, such as an ingest beside the daemon's own.
_WRITER_WAIT_S = 10.0


class VaultReadOnly(OperatorError):
    """The vault was opened without its key, so nothing can be committed."""


class Vault:
    """An opened vault. Reading needs no key; `writing` does.

    Attributes:
        folder: `fossil_vault` on the drive.
        quarantine: Where refused records go.
        retractions: Fossils that were taken back.
    """

    def __init__(self, drive: Drive, home: Path, signer: Signer | None, clock: Clock) -> None:
        self.folder: Folder = drive.folder(PARTITION)
        self.quarantine = Quarantine(self.folder.folder("quarantine"))
        self.retractions = Retractions(Folder(self.folder.path / "retracted", drive), _keys(home))
        self._drive = drive
        self._home = home
        self._signer = signer
        self._clock = clock
        self._index = Index(home / "vault_index.db")

    @classmethod
    def open(
        cls, drive: Drive, home: Path, signer: Signer | None = None, *, clock: Clock | None = None
    ) -> "Vault":
        """Open the vault of `drive`; its index in `home` catches up with the journal.

        Raises:
            DriveMissing: The drive is not there.
            ShardDamaged: A shard that the index has not read yet is not as its journal line says.
            OperatorError: There is no home to keep the index in.
        """
        if not home.is_dir():
            raise OperatorError(f"there is no home at {home}", remedy="Make one: `scf init`.")
        vault = cls(drive, home, signer, clock or SystemClock())
        try:
            vault._catch_up()
        except BaseException:
            vault.close()
            raise
        return vault

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Reading

    def refresh(self) -> None:
        """Let the index catch up with shards that another process committed."""
        self._catch_up()

    def journal_size(self) -> int:
        """Bytes of the journal: the cheapest way to see that something changed."""
        return journal_size(self.folder.path)

    def entries(self, since_offset: int = 0) -> Iterator[ShardEntry]:
        """Shards in the order of their commits, from a byte offset of the journal on."""
        for entry, _ in read_journal(self.folder.path, since_offset):
            yield entry

    def contains(self, cid: str) -> bool:
        """Whether the vault holds this fossil. Raises InputError if `cid` is not a CID."""
        return self._index.contains(cid)

    def locate(self, cid: str) -> Location | None:
        """In which shard and line a fossil lies, None if it is not in the vault."""
        return self._index.locate(cid)

    def read(self, cid: str) -> Fossil | None:
        """The fossil itself, its CID recomputed; None if it is not in the vault."""
        location = self._index.locate(cid)
        if location is None:
            return None
        path = self.folder.path / location.shard
        fossil = read_fossil(path, location.line)
        if fossil is None or fossil.cid != cid:
            raise ShardDamaged(path, f"fossil {cid} is not on line {location.line + 1}")
        return fossil

    def num_fossils(self) -> int:
        """How many fossils the vault holds."""
        return self._index.num_fossils()

    def families(self) -> Iterator[tuple[str, int]]:
        """Each family with its number of fossils."""
        return self._index.families()

    def blocks_of(self, family: str) -> list[int]:
        """The numbers `line // 64` at which fossils of this family stand in their shards."""
        return self._index.blocks_of(family)

    def retracted(self) -> dict[str, Retraction]:
        """Every fossil that was taken back, by CID."""
        return self.retractions.all()

    def cids(self) -> Iterator[str]:
        """Every CID, ascending: the leaves of the fossils' root."""
        return self._index.cids()

    def within(self, shards: Iterable[str]) -> IndexPart:
        """What the index knows of these shards alone (paths as in the journal)."""
        return self._index.within(shards)

    # Writing

    @contextlib.contextmanager
    def writing(self, *, origin: str, shard_bytes: int = SHARD_BYTES) -> Iterator["VaultWriter"]:
        """Be the one writer while the block runs; what the last one left is put right first.

        The last shard is committed when the block ends without an error. When it raises, shards
        committed before stay, the one being written is dropped.

        Raises:
            VaultReadOnly: The vault was opened without a signer.
            AlreadyRunning: Somebody else is writing.
            BudgetExceeded: The disk or the budget of `fossil_vault` is full.
        """
        if self._signer is None:
            raise VaultReadOnly(
                "the vault was opened without its signing key",
                remedy="Run `scf init`, which makes the keys.",
            )
        with instance_lock(
            self._home / "vault.lock", holder="a vault writer", wait_s=_WRITER_WAIT_S
        ):
            self.recover()
            self._index.begin_session()
            writer = VaultWriter(self, self._index, origin, shard_bytes)
            try:
                yield writer
                writer.flush()
            finally:
                writer.discard()

    def retract(self, cid: str, reason: str) -> Retraction:
        """Take a fossil back: it leaves every later plan. Doing it twice is success.

        Raises:
            VaultReadOnly: The vault was opened without a signer.
            InputError: The vault does not hold it.
        """
        if self._signer is None:
            raise VaultReadOnly(
                "the vault was opened without its signing key",
                remedy="Run `scf init`, which makes the keys.",
            )
        if not self.contains(cid):
            raise InputError(f"{cid} is not in the vault")
        self.folder.folder("retracted")
        return self.retractions.add(cid, reason, signer=self._signer, clock=self._clock)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator["Rehearsal"]:
        """Learn what a writer would say, without writing anything."""
        self._index.begin_session()
        yield Rehearsal(self._index)

    def recover(self) -> None:
        """Put right what a crash left behind. Called by `writing`, under its lock.

        A shard with a signed manifest and no journal line gets its line: the commit is finished. A
        shard without a manifest that fits was never vouched for: it is moved to quarantine, and
        ingesting its origin again repeats it. Nothing is deleted but hidden staging folders.
        """
        shards = self.folder.folder("shards")
        durable.sweep(shards.path)
        self._catch_up()
        known = {entry.path: entry.size_bytes for entry in self.entries()}
        self._drive.learn_usage(PARTITION, sum(known.values()))
        for path in sorted(shards.path.glob("??/*.ndjson")):
            name = path.relative_to(self.folder.path).as_posix()
            if path.name.startswith(".") or name in known:
                continue
            summary = self._vouched_for(path, name)
            if summary is not None:
                self._append_entry(summary, "(finished after a crash)")
            else:
                self.folder.check()
                path.replace(self.folder.folder("quarantine").path / f"shard-{path.stem}.jsonl")
        self._catch_up()

    def commit_shard(self, staged: StagedShard, *, origin: str) -> ShardEntry:
        """Make a staged shard part of the vault. Doing it twice is success.

        Raises:
            BudgetExceeded: The disk is full; the vault is as it was.
        """
        summary = staged.publish()
        with durable.os_errors(self.folder.path):
            failpoint("vault.shard_written")
        self._write_manifest(summary)
        with durable.os_errors(self.folder.path):
            failpoint("vault.manifest_written")
        entry = self._append_entry(summary, origin)
        with durable.os_errors(self.folder.path):
            failpoint("vault.journalled")
        with self._index.change():
            self._index.add_pending(entry.path)
            self._index.set_journal_offset(self.journal_size())
        return entry

    def _write_manifest(self, summary: ShardSummary) -> None:
        assert self._signer is not None
        path = manifest_path(self.folder.path / summary.path)
        with contextlib.suppress(InputError, VerificationFailed):
            if read_manifest(path, [self._signer.public_key]) == summary:
                return
        envelope = self._signer.sign_envelope(PAYLOAD_TYPE, manifest_payload(summary))
        self.folder.folder(*Path(summary.path).parts[:-1]).write_json(path.name, envelope.to_json())

    def _append_entry(self, summary: ShardSummary, origin: str) -> ShardEntry:
        entry = ShardEntry(
            **asdict(summary), committed_at=utc_text(self._clock.now()), origin=origin
        )
        line = json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.folder.append_line(JOURNAL, line.encode())
        return entry

    def _vouched_for(self, shard: Path, name: str) -> ShardSummary | None:
        """What we signed about a shard that the journal does not name, if its bytes still fit."""
        assert self._signer is not None
        try:
            summary = read_manifest(manifest_path(shard), [self._signer.public_key])
            check_shard(shard, summary)
        except (InputError, VerificationFailed):
            return None
        return summary if summary.path == name else None

    def _catch_up(self) -> None:
        """Bring the index to the end of the journal, a shard a transaction.

        The offset stays at the end of the last whole line: a torn tail, or one that another process
        is just writing, is looked at again next time.
        """
        if self._is_index_current():
            return
        while True:
            with self._index.change():
                drive, offset = self._index.applied()
                if drive != self._drive.uuid or offset > self.journal_size():
                    self._index.start_anew(self._drive.uuid)
                    offset = 0
                known = self._index.shard_paths()
                for entry, end in read_journal(self.folder.path, offset):
                    offset = end
                    if entry.path not in known:
                        path = self.folder.path / entry.path
                        if not path.is_file():
                            raise ShardDamaged(path, "the journal names it, but it is missing")
                        self._index.add_fossils(entry.path, read_shard(path))
                        break
                else:
                    self._index.set_journal_offset(offset)
                    return
                self._index.set_journal_offset(offset)

    def _is_index_current(self) -> bool:
        return self._index.applied() == (self._drive.uuid, self.journal_size())


class VaultWriter:
    """Takes fossils in, a shard at a time. Made by `Vault.writing`."""

    def __init__(self, vault: Vault, index: Index, origin: str, shard_bytes: int) -> None:
        self._vault = vault
        self._index = index
        self._origin = origin
        self._shard_bytes = shard_bytes
        self._staged: StagedShard | None = None

    def add(self, fossil: Fossil) -> bool:
        """Add a fossil; False if the vault (or this session) has it already.

        A shard that has reached its size is committed on the way.
        """
        line = 0 if self._staged is None else self._staged.count
        if not self._index.offer(fossil, line):
            return False
        if self._staged is None:
            self._staged = StagedShard(self._vault.folder.folder("shards"))
        self._staged.add(fossil)
        if self._staged.size_bytes >= self._shard_bytes:
            self.flush()
        return True

    def flush(self) -> ShardEntry | None:
        """Commit what was added since the last commit; None if that is nothing."""
        if self._staged is None:
            return None
        entry = self._vault.commit_shard(self._staged, origin=self._origin)
        self._staged = None
        return entry

    def discard(self) -> None:
        """Drop what is not committed."""
        if self._staged is not None:
            self._staged.discard()
            self._staged = None

    def fossils_root(self) -> str:
        """RFC 6962 root over the CIDs (as text, ascending) of all fossils offered, hex."""
        return self._index.offered_root()


class Rehearsal:
    """Answers as a `VaultWriter` would, and stores nothing. Made by `Vault.rehearsing`."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def add(self, fossil: Fossil) -> bool:
        """Whether the fossil would be new."""
        return self._index.offer(fossil, 0)

    def fossils_root(self) -> str:
        """As `VaultWriter.fossils_root`."""
        return self._index.offered_root()


def _keys(home: Path) -> list[PublicKey]:
    """The vault's public key, where this home has one."""
    path = home / "keys" / "vault.pub"
    return [PublicKey.from_pem(path.read_bytes())] if path.is_file() else []
