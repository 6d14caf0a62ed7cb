"""Take files in as fossils: find the reader, read, validate, store or quarantine.

The counts add up: each record that a reader meets ends in exactly one of three ways. It is accepted
(new in the vault), a duplicate (its CID is there already), or quarantined with its place and the
reason. What cannot be read at all (a file, or the rest of one) counts as one quarantined record.

An origin that was ingested whole before is known by its bytes (`origin_memory`): its fossils are
counted as duplicates without being parsed. One that was interrupted goes on where the last shard
was committed: the records before are skipped, but for those that were refused, so that quarantine
tells of them again.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from scf.core.errors import InputError, UsageError
from scf.core.identity import sha256_hex
from scf.fertilization.fossil_validator import FossilValidator
from scf.fertilization.ingest_report import IngestProgress, IngestReport, Understood
from scf.fertilization.judging import Entry, Fault, Unreadable, read_entries
from scf.fertilization.origin_memory import NAME, Known, OriginMemory, Recorder, key_of
from scf.fertilization.origins import Found, digest_of, find_origins
from scf.fertilization.readers.base import RECORD_MAX_BYTES, Origin, Reader
from scf.fertilization.readers.describe import Describer, describe
from scf.fertilization.readers.options import ReadOptions, options_of
from scf.fertilization.readers.registry import READERS, UnknownFormat, reader_named
from scf.fertilization.remote_work import Machines, RemoteOrigin, call_of, work
from scf.storage.ndjson import LINE_MAX_BYTES
from scf.vault.fossil import Fossil
from scf.vault.journal import SHARD_BYTES, Vault
from scf.vault.journal_file import JOURNAL
from scf.vault.quarantine import QuarantineFile, Rejection

__all__ = ["IngestProgress", "IngestReport", "PrimordialSoupIngestor", "Understood"]

_PROGRESS_EVERY = 256
# Files from this size on are asked how many records they hold, to tell how far the reading is.
_DESCRIBED_FROM_BYTES = 2**25


class _Sink(Protocol):
    """Where accepted fossils go: the vault's writer, or a rehearsal that writes nothing."""

    def add(self, fossil: Fossil) -> bool:
        """Take a fossil; False if it is there already."""

    def fossils_root(self) -> str:
        """Root over all fossils offered."""


class PrimordialSoupIngestor:
    """Makes fossils out of files.

    Args:
        vault: Where they go; opened with its key, unless every ingest is a rehearsal.
        validator: Judges each fossil.
        registry: Readers by name.
        progress: Called now and then, and at the end of each file.
        line_max_bytes: Longer lines are quarantined.
        record_max_bytes: Records with more numbers, in bytes, are quarantined.
        shard_bytes: A shard is committed when it has reached this size.
        home: Where to remember what was ingested; with None, or with a validator of your own,
            every origin is read anew.
        machines: Where origins are read and judged, by the standard readers and validator; here
            where it is None. The vault is written here in any case.
    """

    def __init__(
        self,
        vault: Vault,
        validator: FossilValidator | None = None,
        registry: Mapping[str, Reader] = READERS,
        progress: Callable[[IngestProgress], None] | None = None,
        *,
        line_max_bytes: int = LINE_MAX_BYTES,
        record_max_bytes: int = RECORD_MAX_BYTES,
        shard_bytes: int = SHARD_BYTES,
        home: Path | None = None,
        machines: Machines | None = None,
    ) -> None:
        if machines is not None and (validator is not None or registry is not READERS):
            raise UsageError("machines have the standard readers and the standard validator")
        self.vault = vault
        self.validator = validator or FossilValidator()
        self.registry = registry
        self.progress = progress or (lambda _: None)
        self.line_max_bytes = line_max_bytes
        self.record_max_bytes = record_max_bytes
        self.shard_bytes = shard_bytes
        self._home = home if validator is None else None
        self.machines = machines

    def ingest(
        self,
        path: Path,
        *,
        reader: str | None = None,
        options: ReadOptions | None = None,
        dry_run: bool = False,
    ) -> IngestReport:
        """Ingest a file, or every file under a folder that a reader knows.

        Doing it again finds duplicates only. A crash in the middle keeps whole shards; doing it
        again completes the rest.

        Args:
            path: A file or a folder.
            reader: Name of the reader to use; found by content where it is None.
            options: Settings of the readers: windows, stride, fields, patches, masks.
            dry_run: Do everything but write.

        Raises:
            InputError: There is no such path; UnknownFormat where no reader knows the one file.
            UsageError: No reader of this name, or a reader that does not know an option.
            BudgetExceeded: The disk is full. What was committed before stays.
            DriveError: The drive is gone.
        """
        files = self._find(path, reader, options)
        report = IngestReport(origin=path.name or path.resolve().name)
        context: AbstractContextManager[_Sink] = (
            self.vault.rehearsing()
            if dry_run
            else self.vault.writing(origin=report.origin, shard_bytes=self.shard_bytes)
        )
        with self._memory() as memory:
            with context as sink:
                session = _Session(self, files, options or {}, sink, report, memory, dry_run)
                session.run()
                report.fossils_root = session.fossils_root()
            session.remember()
        assert report.read == report.accepted + report.duplicates + report.quarantined
        return report

    def understand(
        self, path: Path, *, reader: str | None = None, options: ReadOptions | None = None
    ) -> Iterator[Understood]:
        """What the readers make of a file or of each file under a folder, from their beginnings.

        Raises:
            InputError: As `ingest`.
            UsageError: As `ingest`.
        """
        for found in self._find(path, reader, options):
            if found.reader is None:
                continue
            about = Understood(found.name, found.reader.name, found.size_bytes)
            try:
                yield replace(about, description=describe(found.reader, found.path))
            except InputError as error:
                yield replace(about, fault=str(error))

    def _find(self, path: Path, reader: str | None, options: ReadOptions | None) -> list[Found]:
        chosen = None if reader is None else reader_named(reader, self.registry)
        files = find_origins(path, self.registry, chosen, options or {})
        if len(files) == 1 and files[0].path == path and not (files[0].reader or files[0].fault):
            raise UnknownFormat(
                f"{path}: no reader knows this file",
                remedy=f"Name one with --reader: {', '.join(self.registry)}.",
            )
        return files

    def _memory(self) -> AbstractContextManager[OriginMemory | None]:
        drive = self.vault.folder.drive
        if self._home is None or drive is None:
            return nullcontext()
        return closing(
            OriginMemory(
                self._home / NAME,
                drive=drive.uuid,
                journal_size=self.vault.journal_size,
                contains=self.vault.contains,
            )
        )


class _Session:
    """One call of `ingest`: its files, its report, and where its fossils go."""

    def __init__(
        self,
        ingestor: PrimordialSoupIngestor,
        files: list[Found],
        options: ReadOptions,
        sink: _Sink,
        report: IngestReport,
        memory: OriginMemory | None,
        dry_run: bool,
    ) -> None:
        self._ingestor = ingestor
        self._files = files
        self._sink = sink
        self._report = report
        self._memory = memory
        self._dry_run = dry_run
        self._readers: list[str] = []
        self._bytes_total = sum(found.size_bytes for found in files)
        self._bytes_done = 0
        # Origins that are read to their end, until the vault has committed all of them.
        self._finished: list[Recorder] = []
        # Those of this session, by key: the same bytes may lie there twice.
        self._met: dict[bytes, Known] = {}
        self._has_skipped = False
        # Looked at after each new fossil, so without the 8 us that `Path` takes.
        self._journal = str(ingestor.vault.folder.path / JOURNAL)
        self._journal_bytes = self._journal_size()
        self._remote: Iterator[Iterator[bytes]] | None = None
        if ingestor.machines is not None:
            line_max, record_max = ingestor.line_max_bytes, ingestor.record_max_bytes
            readable = [f for f in files if f.reader is not None and f.fault is None]
            calls = [call_of(f, options, line_max, record_max) for f in readable]
            self._remote = ingestor.machines.stream(work, calls)

    def run(self) -> None:
        """Ingest every file, in order."""
        for done, found in enumerate(self._files):
            self._tell(found.name, done)
            self._ingest_file(found, done)
            self._bytes_done += found.size_bytes
        self._tell(self._report.origin, len(self._files))
        self._report.reader = ",".join(self._readers)

    def remember(self) -> None:
        """The vault has committed everything: note it."""
        if not self._dry_run:
            for recorder in self._finished:
                recorder.finish()

    def fossils_root(self) -> str:
        """Root over all accepted and duplicate fossils, hex."""
        if self._memory is not None and self._has_skipped:
            return self._memory.root_of_met()
        return self._sink.fossils_root()

    def _ingest_file(self, found: Found, done: int) -> None:
        reader = found.reader
        if reader is None and found.fault is None:
            self._report.skipped.append(found.name)
            return
        if reader is not None and reader.name not in self._readers:
            self._readers.append(reader.name)
        sha256, entries = self._open(found, done)
        ingestor = self._ingestor
        recorder = known = None
        if reader is not None and not isinstance(entries, Fault) and self._memory is not None:
            limits = (ingestor.line_max_bytes, ingestor.record_max_bytes)
            key = key_of(sha256, reader.name, options_of(reader), *limits)
            known = self._met.get(key) or self._memory.find(key)
            if known is not None and known.is_whole and self._count_known(key, known):
                return
            if known is None or known.is_whole:  # unknown, or its quarantine file was taken away
                self._forget(key)
                known = None
            recorder = Recorder(self._memory, key, found.name, known)
        each = iter([entries]) if isinstance(entries, Fault) else entries
        self._read_file(each, sha256, found, recorder, known, done)

    def _open(self, found: Found, done: int) -> tuple[str, Iterator[Entry] | Fault]:
        """The digest of an origin and its records, read here or by a worker."""
        ingestor = self._ingestor
        fault, reader = found.fault, found.reader
        if self._remote is not None and reader is not None and fault is None:
            origin = RemoteOrigin(next(self._remote), found.path)
            return origin.sha256, origin.entries()
        if reader is not None and fault is None:
            try:
                sha256 = digest_of(
                    found.path, lambda size_bytes: self._tell(found.name, done, size_bytes)
                )
            except InputError as error:
                fault = error
            else:
                limits = (ingestor.line_max_bytes, ingestor.record_max_bytes)
                here = Origin(found.path, found.name, sha256, *limits)
                return sha256, read_entries(reader, here, ingestor.validator)
        # The name stands for the bytes in the name of the quarantine file.
        return sha256_hex(found.name.encode()), Fault(str(fault))

    def _read_file(
        self,
        entries: Iterator[Entry],
        sha256: str,
        found: Found,
        recorder: Recorder | None,
        known: Known | None,
        done: int,
    ) -> None:
        report = self._report
        is_whole = True
        far = _how_far(found)
        again = self._refused_again(recorder, known)
        next_again = next(again, None)
        with self._quarantine_file(found.name, sha256) as file:
            for position, entry in enumerate(entries):
                report.read += 1
                if known is not None and position < known.position and position != next_again:
                    report.duplicates += 1
                    continue
                if position == next_again:
                    next_again = next(again, None)
                outcome = self._take(entry)
                if isinstance(outcome, Rejection):
                    report.quarantined += 1
                    report.reasons[outcome.kind] += 1
                    is_whole = not isinstance(outcome, Unreadable)
                    if file is not None:
                        file.add(outcome)
                    if recorder is not None:
                        recorder.refused(position, outcome.kind)
                else:
                    is_new, digest = outcome
                    report.accepted += is_new
                    report.duplicates += not is_new
                    if recorder is not None:
                        recorder.stored(digest)
                        if is_new:
                            self._remember_committed(recorder)
                if report.read % _PROGRESS_EVERY == 0:
                    self._tell(found.name, done, here_bytes=far(position, entry.offset))
        if file is not None and file.count:
            report.quarantine.append(f"quarantine/{file.name}")
        if recorder is not None:
            recorder.end()
        if recorder is not None and is_whole:
            recorder.quarantine = file.name if file is not None and file.count else None
            self._finished.append(recorder)
            self._met[recorder.key] = recorder.known

    def _count_known(self, key: bytes, known: Known) -> bool:
        """Count an origin without reading it; False where its quarantine file is no more."""
        report = self._report
        if known.quarantine is not None:
            name = f"quarantine/{known.quarantine}"
            if not (self._ingestor.vault.folder.path / name).is_file():
                return False
            if name not in report.quarantine:
                report.quarantine.append(name)
        elif known.refused and not self._dry_run:
            return False
        report.read += known.position
        report.duplicates += known.position - known.refused
        report.quarantined += known.refused
        report.reasons.update(known.reasons)
        assert self._memory is not None
        if key not in self._met:
            self._memory.meet_known(key)
            self._has_skipped = True
        return True

    def _refused_again(self, recorder: Recorder | None, known: Known | None) -> Iterator[int]:
        """Which of the records that were dealt with before have to be judged again."""
        if self._memory is None or recorder is None or known is None:
            return iter(())
        self._memory.meet_known(recorder.key)
        self._has_skipped = True
        return self._memory.refused_positions(recorder.key)

    def _forget(self, key: bytes) -> None:
        if self._memory is not None and not self._dry_run:
            self._memory.forget(key)

    def _remember_committed(self, recorder: Recorder) -> None:
        """Note what is committed, where adding the last fossil has filled a shard."""
        if self._dry_run:
            return
        journal_bytes = self._journal_size()
        if journal_bytes == self._journal_bytes:
            return
        self._journal_bytes = journal_bytes
        for finished in self._finished:
            finished.finish()
        self._finished.clear()
        recorder.checkpoint()

    def _journal_size(self) -> int:
        try:
            return os.stat(self._journal).st_size  # noqa: PTH116
        except FileNotFoundError:
            return 0

    def _take(self, entry: Entry) -> Rejection | tuple[bool, bytes]:
        """Store a record (whether it is new, and its digest), or say why not."""
        outcome = entry.judged()
        if isinstance(outcome, Rejection):
            return outcome
        return self._sink.add(outcome), outcome.digest

    def _quarantine_file(
        self, name: str, sha256: str
    ) -> AbstractContextManager[QuarantineFile | None]:
        if self._dry_run:
            return nullcontext()
        return self._ingestor.vault.quarantine.file(name, sha256)

    def _tell(
        self, origin: str, done: int, digested: int | None = None, here_bytes: int = 0
    ) -> None:
        self._ingestor.progress(
            IngestProgress(
                origin,
                done,
                len(self._files),
                self._report.read,
                self._bytes_done + here_bytes,
                self._bytes_total,
                digested,
            )
        )


def _how_far(found: Found) -> Callable[[int, int | None], int]:
    """A function from a record's position and offset to the bytes of the file behind it."""
    num_records = None
    if found.size_bytes >= _DESCRIBED_FROM_BYTES and isinstance(found.reader, Describer):
        try:
            num_records = found.reader.describe(found.path).num_records
        except InputError:
            num_records = None  # reading will say what is wrong

    def far(position: int, offset: int | None) -> int:
        if num_records:
            return min(found.size_bytes, found.size_bytes * (position + 1) // num_records)
        # In a compressed file the offset is that of the text; the file's size bounds what is told.
        return min(found.size_bytes, offset or 0)

    return far
