"""Read a file of fossils once: what is usable, of which kind, and what is refused and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scf.core.errors import InputError
from scf.storage.ndjson import Line, read_lines
from scf.vault.fields import FieldSpec
from scf.vault.fossil import PASS, Fossil, parse_fossil
from scf.vault.provenance import file_sha256
from scf.vault.shard import ShardDamaged

_REFUSALS_KEPT = 100
_LINE_MAX_BYTES = 2**30


# Files whose digest this process has verified: (path, size, mtime) -> digest. The time is a key of
# this cache, never a proof: another process verifies anew.
_verified: dict[tuple[Path, int, int], str] = {}


class VerdictFail(InputError):
    """The fossil's own verifier refused it."""

    kind = "verdict"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that is not used: where, and why."""

    path: Path
    line: int
    kind: str
    reason: str


@dataclass
class Refusals:
    """What was refused: all counted, the first hundred kept."""

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: list[Refusal] = field(default_factory=list)

    def add(self, refusal: Refusal, *, times: int = 1) -> None:
        """Count a refusal."""
        self.count += times
        self.kinds[refusal.kind] += times
        if len(self.first) < _REFUSALS_KEPT:
            self.first.append(refusal)

    def merge(self, other: "Refusals") -> None:
        """Count what another file's reading refused."""
        self.count += other.count
        self.kinds.update(other.kinds)
        self.first += other.first[: _REFUSALS_KEPT - len(self.first)]


@dataclass(frozen=True, slots=True)
class FossilKind:
    """What fossils must share to stand in one minibatch.

    Attributes:
        specs: Their fields, in the order of their names.
        condition_fields: Names of those that are given, not modelled.
    """

    specs: tuple[FieldSpec, ...]
    condition_fields: tuple[str, ...]

    def only(self, wanted: frozenset[str] | None) -> "FossilKind | None":
        """The same with the wanted fields alone; None where it lacks one."""
        if wanted is None:
            return self
        specs = tuple(spec for spec in self.specs if spec.name in wanted)
        given = tuple(name for name in self.condition_fields if name in wanted)
        return FossilKind(specs, given) if len(specs) == len(wanted) else None

    def describe(self) -> str:
        """For people: names, shapes, types and units."""
        return ", ".join(f"{s.name} {list(s.shape)} {s.dtype} {s.unit}" for s in self.specs)


def kind_of(fossil: Fossil) -> FossilKind:
    """The kind of a fossil."""
    return FossilKind(fossil.specs, fossil.condition_fields)


def scan(path: Path, refusals: Refusals, *, verify_cid: bool) -> Iterator[tuple[Fossil, Line]]:
    """Every usable fossil of a file with its line; the others go to `refusals`.

    Raises:
        ShardDamaged: The file cannot be opened.
    """
    position = -1
    try:
        path.stat()
        for line in read_lines(path, line_max_bytes=_LINE_MAX_BYTES):
            position += 1
            try:
                if line.fault is not None:
                    raise InputError(line.fault)
                fossil = parse_fossil(line.data, position=position, verify_cid=verify_cid)
                if fossil.verdict != PASS:
                    raise VerdictFail(f"verifier {fossil.verifier['name']} said FAIL")
            except InputError as error:
                word = getattr(error, "kind", "line")
                refusals.add(Refusal(path, line.number, word, str(error)))
                continue
            yield fossil, line
    except InputError as error:  # the rest of the file cannot be read
        refusals.add(Refusal(path, position + 2, "unreadable", str(error)))
    except OSError as error:
        raise ShardDamaged(path, f"cannot be read: {error.strerror}") from error


def check_promise(path: Path, sha256: str) -> None:
    """Make sure, once in this process, that a shard is the one that the plan promises.

    Raises:
        ShardDamaged: It is missing or holds other bytes.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ShardDamaged(path, f"the plan names it: {error.strerror}") from error
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns)
    digest = _verified.get(key) or file_sha256(path)
    if digest != sha256:
        raise ShardDamaged(path, f"digest {digest}, the plan promises {sha256}")
    _verified[key] = digest
