"""Ingest on many machines: workers read, validate and pack; the overseer alone writes.

A worker is handed one origin. It reads it with the reader that the overseer found, makes fossils,
judges them and sends them back as lines, in order, some megabytes at a time. The overseer
recomputes every CID, offers fossils to the vault in the order of the origins, and so writes the
very shards that it would have written alone. What goes over the wire is plain bytes, nothing
pickled of ours:

    first    JSON: {"scf": version, "host": name, "sha256": digest of the origin} or "fault"
    others   4 bytes: length of a JSON text, little-endian; that text; the bytes that it tells of

The text is a list, one item a record: `[length, offset]` for a fossil's line, or a rejection.
"""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import scf
from scf.core.errors import InputError, OperatorError, VerificationFailed
from scf.fertilization.fossil_validator import FossilValidator
from scf.fertilization.judging import Entry, Outcome, Unreadable, read_entries
from scf.fertilization.origins import Found, digest_of
from scf.fertilization.readers.base import Origin
from scf.fertilization.readers.options import ReadOptions, configured
from scf.fertilization.readers.registry import reader_named
from scf.vault.fossil import Fossil, encode_fossil, parse_fossil
from scf.vault.quarantine import Rejection

_BLOCK_BYTES = 8 * 2**20
_BLOCK_RECORDS = 8192
# Of the work on one origin: (path, name, size, reader, options, longest line, largest record).
Call = tuple[str, str, int, str, dict[str, Any], int, int]


class Machines(Protocol):
    """Something that runs a function on other machines. `dispatch.ray_machines` is one."""

    def stream(
        self, work: Callable[..., Iterator[bytes]], calls: Sequence[Call]
    ) -> Iterator[Iterator[bytes]]:
        """What `work(*call)` yields, for each call in order; several are under way at a time.

        An iterator that is left before its end ends its work.

        Raises:
            DoorError: The machines do not answer.
        """


def call_of(found: Found, options: ReadOptions, line_max: int, record_max: int) -> Call:
    """The work on one origin."""
    assert found.reader is not None
    path = str(found.path.resolve())
    return (
        path,
        found.name,
        found.size_bytes,
        found.reader.name,
        dict(options),
        line_max,
        record_max,
    )


def work(
    path: str,
    name: str,
    size_bytes: int,
    reader: str,
    options: ReadOptions,
    line_max_bytes: int,
    record_max_bytes: int,
) -> Iterator[bytes]:
    """Runs on a worker: everything about one origin, as bytes."""
    hello: dict[str, Any] = {"scf": scf.__version__, "host": socket.gethostname()}
    try:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder")
        if Path(path).is_file() and Path(path).stat().st_size != size_bytes:
            raise InputError(f"{path}: not {size_bytes} bytes")
        hello["sha256"] = digest_of(Path(path))
    except (InputError, OSError) as error:
        yield json.dumps({**hello, "fault": str(error)}).encode()
        return
    yield json.dumps(hello).encode()
    origin = Origin(Path(path), name, hello["sha256"], line_max_bytes, record_max_bytes)
    block = _Block()
    for entry in read_entries(configured(reader_named(reader), options), origin, FossilValidator()):
        block.add(entry.judged(), entry.offset)
        if block.size_bytes >= _BLOCK_BYTES or len(block.items) >= _BLOCK_RECORDS:
            yield block.encode()
            block = _Block()
    if block.items:
        yield block.encode()


class _Block:
    """Some judged records on their way."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.size_bytes = 0
        self._parts: list[bytes] = []

    def add(self, outcome: Outcome, offset: int | None) -> None:
        data = encode_fossil(outcome) if isinstance(outcome, Fossil) else outcome.data
        self.size_bytes += len(data)
        self._parts.append(data)
        if isinstance(outcome, Fossil):
            self.items.append([len(data), offset])
        else:
            told = {"kind": outcome.kind, "reason": outcome.reason, "line": outcome.line}
            told |= {"offset": outcome.offset, "index": outcome.index}
            is_end = isinstance(outcome, Unreadable)
            self.items.append([len(data), offset, told, is_end])

    def encode(self) -> bytes:
        text = json.dumps(self.items).encode()
        return len(text).to_bytes(4, "little") + text + b"".join(self._parts)


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """A fossil's line as a worker sent it. Its CID is recomputed: a worker is not believed."""

    data: bytes
    offset: int | None

    def judged(self) -> Outcome:
        """The fossil. Raises VerificationFailed where the line is not what its CID says."""
        try:
            return parse_fossil(self.data)
        except InputError as error:
            raise VerificationFailed(
                f"a worker sent a fossil that is none: {error}",
                remedy="Look for the machine with bad memory; a new ingest goes on.",
            ) from error


@dataclass(frozen=True, slots=True)
class RefusedEntry:
    """A record that a worker refused."""

    rejection: Rejection
    offset: int | None

    def judged(self) -> Outcome:
        """Why."""
        return self.rejection


class RemoteOrigin:
    """One origin as a worker reads it.

    Args:
        blocks: What the worker sends.
        path: For messages.

    Attributes:
        sha256: Of the origin.

    Raises:
        OperatorError: The worker runs another version, or does not see the origin.
        DoorError: It does not answer.
    """

    def __init__(self, blocks: Iterator[bytes], path: Path) -> None:
        self._blocks = blocks
        hello = json.loads(next(blocks))
        host = hello["host"]
        if hello["scf"] != scf.__version__:
            raise OperatorError(
                f"the worker {host} runs scf {hello['scf']}, this is {scf.__version__}",
                remedy="Install the same version on every machine of the cluster.",
            )
        if "fault" in hello:
            raise OperatorError(
                f"the worker {host} cannot read {path}: {hello['fault']}",
                remedy="Mount the folder at the same path on every machine, or leave out --ray.",
            )
        self.sha256: str = hello["sha256"]

    def entries(self) -> Iterator[Entry]:
        """Its records in order."""
        for block in self._blocks:
            length = int.from_bytes(block[:4], "little")
            at = 4 + length
            for size, offset, *refusal in json.loads(block[4:at]):
                data = block[at : at + size]
                at += size
                if refusal:
                    told, is_end = refusal
                    kind = Unreadable if is_end else Rejection
                    yield RefusedEntry(kind(**told, data=data), offset)
                else:
                    yield PackedEntry(data, offset)
