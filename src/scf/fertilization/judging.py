"""From what a reader yields to a fossil or a rejection: one record at a time, and nothing else.

This is the part of ingest that may run anywhere: here, or on another machine (`remote_work`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from scf.core.errors import InputError
from scf.fertilization.fossil_validator import FossilValidator
from scf.fertilization.minting import Mint, numbers_bytes
from scf.fertilization.readers.base import Draft, Origin, Reader, Record
from scf.storage.ndjson import Line
from scf.vault.fossil import Fossil, parse_fossil
from scf.vault.quarantine import Rejection

Outcome = Fossil | Rejection


class Unreadable(Rejection):
    """The rest of an origin cannot be read; what else it holds is not known."""


class Entry(Protocol):
    """A record of an origin, not judged yet: one that is known already need not be."""

    @property
    def offset(self) -> int | None:
        """Byte of the uncompressed origin at which it begins, where known."""

    def judged(self) -> Outcome:
        """The fossil, its CID computed and its verdict given; or why it is none."""


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """A record as a reader of this process yielded it."""

    record: Record
    judge: "Judge"

    @property
    def offset(self) -> int | None:
        """Where it begins."""
        return self.record.offset

    def judged(self) -> Outcome:
        """Judged here."""
        return self.judge(self.record)


class Judge:
    """Makes fossils of the records of one origin, and judges them."""

    def __init__(self, origin: Origin, reader: Reader, validator: FossilValidator) -> None:
        self._record_max_bytes = origin.record_max_bytes
        self._mint = Mint(origin, reader)
        self._validator = validator

    def __call__(self, record: Record) -> Outcome:
        """The fossil, or why the record is none."""
        if isinstance(record, Rejection):
            return record
        try:
            return self._of_line(record) if isinstance(record, Line) else self._of_draft(record)
        except InputError as error:
            kind = getattr(error, "kind", "form")
            if isinstance(record, Line):
                return Rejection(kind, str(error), record.number, record.offset, data=record.data)
            return Rejection(kind, str(error), record.line, record.offset, record.index)

    def _of_draft(self, draft: Draft) -> Outcome:
        size_bytes = numbers_bytes(draft)
        if size_bytes > self._record_max_bytes:
            reason = f"{size_bytes} bytes of numbers, at most {self._record_max_bytes}"
            return Rejection("size", reason, draft.line, draft.offset, draft.index)
        fossil = self._mint.fossil(draft)
        verdict = self._validator.judge(fossil)
        if verdict.ok:
            return fossil.judged(verdict.verifier())
        return Rejection(verdict.kind, verdict.reason, draft.line, draft.offset, draft.index)

    def _of_line(self, line: Line) -> Outcome:
        if line.fault is not None:
            return Rejection("line", line.fault, line.number, line.offset)
        fossil = parse_fossil(line.data, position=line.number - 1)
        verdict = self._validator.validate(fossil)
        if verdict.ok:
            return fossil
        return Rejection(verdict.kind, verdict.reason, line.number, line.offset, data=line.data)


def read_entries(reader: Reader, origin: Origin, validator: FossilValidator) -> Iterator[Entry]:
    """The reader's records; where reading ends in an error, that error as a last rejection."""
    judge = Judge(origin, reader, validator)
    try:
        for record in reader.read(origin):
            yield ReadEntry(record, judge)
    except InputError as error:
        yield ReadEntry(Unreadable(getattr(error, "kind", "unreadable"), str(error)), judge)


@dataclass(frozen=True, slots=True)
class Fault:
    """An origin that could not be looked into at all: a single rejection."""

    reason: str
    offset: int | None = None

    def judged(self) -> Outcome:
        """Always refused."""
        return Unreadable("unreadable", self.reason)
