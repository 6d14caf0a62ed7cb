"""Take files in as fossils: find the reader, read, validate, store or quarantine.

The counts add up: each record that a reader meets ends in exactly one of three ways. It is accepted
(new in the vault), a duplicate (its CID is there already), or quarantined with its place and the
reason. What cannot be read at all (a file, or the rest of one) counts as one quarantined record.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from scf.core.errors import InputError
from scf.core.identity import sha256_hex
from scf.fertilization.fossil_validator import FossilValidator
from scf.fertilization.readers.base import Draft, Origin, Reader, Record
from scf.fertilization.readers.registry import READERS, UnknownFormat, reader_for, reader_named
from scf.storage.ndjson import LINE_MAX_BYTES, Line
from scf.vault.fields import field_of_array
from scf.vault.fossil import PASS, SCHEMA, Fossil, make_fossil, parse_fossil
from scf.vault.journal import SHARD_BYTES, Vault
from scf.vault.provenance import Provenance, file_sha256
from scf.vault.quarantine import QuarantineFile, Rejection

_PROGRESS_EVERY = 256


@dataclass
class IngestProgress:
    """How far an ingest is.

    Attributes:
        origin: The file that is being read.
        files_done: Files that are finished.
        files_total: Files in all.
        read: Records met so far.
    """

    origin: str
    files_done: int
    files_total: int
    read: int


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
        shard_bytes: A shard is committed when it has reached this size.
    """

    def __init__(
        self,
        vault: Vault,
        validator: FossilValidator | None = None,
        registry: Mapping[str, Reader] = READERS,
        progress: Callable[[IngestProgress], None] | None = None,
        *,
        line_max_bytes: int = LINE_MAX_BYTES,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.vault = vault
        self.validator = validator or FossilValidator()
        self.registry = registry
        self.progress = progress or (lambda _: None)
        self.line_max_bytes = line_max_bytes
        self.shard_bytes = shard_bytes

    def ingest(
        self, path: Path, *, reader: str | None = None, dry_run: bool = False
    ) -> IngestReport:
        """Ingest a file, or every file under a folder that a reader knows.

        Doing it again finds duplicates only. A crash in the middle keeps whole shards; doing it
        again completes the rest.

        Args:
            path: A file or a folder.
            reader: Name of the reader to use; found by content where it is None.
            dry_run: Do everything but write.

        Raises:
            InputError: There is no such path; UnknownFormat where no reader knows the one file.
            UsageError: No reader of this name.
            BudgetExceeded: The disk is full. What was committed before stays.
            DriveError: The drive is gone.
        """
        chosen = None if reader is None else reader_named(reader, self.registry)
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        report = IngestReport(origin=path.name or path.resolve().name)
        context: AbstractContextManager[_Sink] = (
            self.vault.rehearsing()
            if dry_run
            else self.vault.writing(origin=report.origin, shard_bytes=self.shard_bytes)
        )
        with context as sink:
            session = _Session(self, path, chosen, sink, report, dry_run=dry_run)
            session.run()
            report.fossils_root = sink.fossils_root()
        assert report.read == report.accepted + report.duplicates + report.quarantined
        return report


class _Session:
    """One call of `ingest`: its files, its report, and where its fossils go."""

    def __init__(
        self,
        ingestor: PrimordialSoupIngestor,
        path: Path,
        chosen: Reader | None,
        sink: _Sink,
        report: IngestReport,
        *,
        dry_run: bool,
    ) -> None:
        self._ingestor = ingestor
        self._path = path
        self._chosen = chosen
        self._sink = sink
        self._report = report
        self._dry_run = dry_run
        self._files = _files(path)
        self._readers: list[str] = []

    def run(self) -> None:
        """Ingest every file, in order."""
        for done, file in enumerate(self._files):
            self._tell(file.name, done)
            self._ingest_file(file, _origin_name(self._path, file), done)
        self._tell(self._report.origin, len(self._files))
        self._report.reader = ",".join(self._readers)

    def _ingest_file(self, path: Path, name: str, done: int) -> None:
        report = self._report
        fault: InputError | None = None
        reader = self._chosen
        sha256 = sha256_hex(name.encode())  # names the quarantine file of what cannot be read
        try:
            reader = reader or reader_for(path, self._ingestor.registry)
            if reader is not None:
                sha256 = file_sha256(path)
        except InputError as error:
            fault = error
        if reader is None and fault is None:
            self._skip(path, name)
            return
        if reader is not None and reader.name not in self._readers:
            self._readers.append(reader.name)
        origin = Origin(path, name, sha256, self._ingestor.line_max_bytes)
        with self._quarantine_file(name, sha256) as file:
            for record in _read(reader, origin, fault):
                outcome = self._take(record, origin, reader)
                report.read += 1
                if isinstance(outcome, Rejection):
                    report.quarantined += 1
                    report.reasons[outcome.kind] += 1
                    if file is not None:
                        file.add(outcome)
                elif outcome:
                    report.accepted += 1
                else:
                    report.duplicates += 1
                if report.read % _PROGRESS_EVERY == 0:
                    self._tell(name, done)
        if file is not None and file.count:
            report.quarantine.append(f"quarantine/{file.name}")

    def _take(self, record: Record, origin: Origin, reader: Reader | None) -> Rejection | bool:
        """Store a record (True: new, False: known), or say why not."""
        if isinstance(record, Rejection):
            return record
        try:
            if isinstance(record, Line):
                return self._take_line(record)
            assert reader is not None
            fossil = _mint(record, origin, reader)
            verdict = self._ingestor.validator.judge(fossil)
            if verdict.ok:
                return self._sink.add(replace(fossil, verifier=verdict.verifier()))
            return Rejection(verdict.kind, verdict.reason, record.line, record.offset, record.index)
        except InputError as error:
            return _rejection(error, record)

    def _take_line(self, line: Line) -> Rejection | bool:
        if line.fault is not None:
            return Rejection("line", line.fault, line.number, line.offset)
        fossil = parse_fossil(line.data, position=line.number - 1)
        verdict = self._ingestor.validator.validate(fossil)
        if verdict.ok:
            return self._sink.add(fossil)
        return Rejection(verdict.kind, verdict.reason, line.number, line.offset, data=line.data)

    def _skip(self, path: Path, name: str) -> None:
        if path == self._path:
            raise UnknownFormat(
                f"{path}: no reader knows this file",
                remedy=f"Name one with --reader: {', '.join(self._ingestor.registry)}.",
            )
        self._report.skipped.append(name)

    def _quarantine_file(
        self, name: str, sha256: str
    ) -> AbstractContextManager[QuarantineFile | None]:
        if self._dry_run:
            return nullcontext()
        return self._ingestor.vault.quarantine.file(name, sha256)

    def _tell(self, origin: str, done: int) -> None:
        self._ingestor.progress(IngestProgress(origin, done, len(self._files), self._report.read))


def _files(path: Path) -> list[Path]:
    """The file itself, or all files under a folder, in a fixed order; hidden ones are left out.

    A link that leads nowhere is kept, to be quarantined; pipes and devices are not files of data.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: is neither a file nor a folder")
        return [path]
    found = [
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if (file.is_file() or (file.is_symlink() and not file.exists()))
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return [file for _, file in sorted(found)]


def _origin_name(path: Path, file: Path) -> str:
    return file.name if file == path else file.relative_to(path).as_posix()


def _read(reader: Reader | None, origin: Origin, fault: InputError | None) -> Iterator[Record]:
    """The reader's records; where reading ends in an error, that error as a last rejection."""
    if fault is not None or reader is None:
        yield Rejection("unreadable", str(fault))
        return
    try:
        yield from reader.read(origin)
    except InputError as error:
        yield Rejection(getattr(error, "kind", "unreadable"), str(error))


def _mint(draft: Draft, origin: Origin, reader: Reader) -> Fossil:
    """A fossil out of a draft; its verifier is still to come."""
    provenance = Provenance(
        origin=origin.name,
        origin_sha256=origin.sha256,
        reader=reader.name,
        index=draft.index,
        licence=draft.licence,
        family=draft.family,
        flags=draft.flags,
    )
    block = {
        "schema": SCHEMA,
        "source": draft.source,
        "observed_at": draft.observed_at,
        "fields": {
            name: field_of_array(array, draft.units.get(name, ""))
            for name, array in draft.arrays.items()
        },
        "params": dict(draft.params),
        "provenance": provenance.to_json(),
    }
    return make_fossil(block, {"name": "unjudged", "verdict": PASS})


def _rejection(error: InputError, record: Draft | Line) -> Rejection:
    kind = getattr(error, "kind", "form")
    if isinstance(record, Line):
        return Rejection(kind, str(error), record.number, record.offset, data=record.data)
    return Rejection(kind, str(error), record.line, record.offset, record.index)
