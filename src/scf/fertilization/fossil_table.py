"""All usable fossils of some files, as columns: what the batcher gathers minibatches from.

Building it reads every file once. Each line is parsed and, unless its shard's digest was verified,
its CID recomputed; what is not usable is counted, never yielded. The fossils of a table have the
same fields: where files mix several kinds, the most frequent kind is taken and the rest is refused.

While the numbers fit into `memory_bytes` they stay in memory; beyond that, only the places of the
lines do (about 60 bytes a fossil), and `gather` reads them again in the order of the disk.
"""

import shutil
import tempfile
import weakref
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from scf.core.errors import InputError
from scf.core.identity import cid_from_digest
from scf.storage.ndjson import open_text, read_lines
from scf.vault.fields import Array, FieldInvalid, FieldSpec
from scf.vault.fossil import PASS, Fossil, parse_fossil
from scf.vault.shard import ShardDamaged

_REFUSALS_KEPT = 100
_LINE_MAX_BYTES = 2**30
# Files kept open at a time; a process may usually have 1,024, and others need some.
_OPEN_MAX = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that is not used: where, and why."""

    path: Path
    line: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of fossils.

    Attributes:
        path: Where it is.
        is_verified: Its digest was compared with a promise, so CIDs need not be recomputed.
    """

    path: Path
    is_verified: bool = False


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


@dataclass
class _Kind:
    """The fossils that share fields and condition fields, while files are being read."""

    specs: tuple[FieldSpec, ...]
    condition_fields: tuple[str, ...]
    places: "array[int]" = field(default_factory=lambda: array("q"))  # file, offset, length, ...
    digests: bytearray = field(default_factory=bytearray)
    families: "array[int]" = field(default_factory=lambda: array("i"))
    columns: dict[str, bytearray] | None = None
    first: tuple[Path, int] = (Path(), 0)

    @property
    def count(self) -> int:
        return len(self.families)


class FossilTable:
    """Fossils by their place in the stored order.

    Attributes:
        specs: Name, type, shape and unit of each field.
        condition_fields: Names of fields that are given, not modelled.
        digests: (N, 32) bytes: what the CIDs hold.
        families: (N,) index into `family_names`.
        family_names: Every family once.
        refusals: What was not used.
    """

    def __init__(
        self,
        files: Sequence[TableFile],
        *,
        fields: Iterable[str] | None = None,
        excluded: frozenset[str] = frozenset(),
        memory_bytes: int,
        verify_always: bool = False,
    ) -> None:
        self._files = files
        self._wanted = None if fields is None else frozenset(fields)
        self._verify_always = verify_always
        self._memory_left = memory_bytes
        self._stats: list[tuple[int, int]] = []
        self._opened: OrderedDict[int, BinaryIO] = OrderedDict()
        weakref.finalize(self, _close_all, self._opened)
        self.digests: npt.NDArray[np.uint8]
        self.families: npt.NDArray[np.int32]
        self._places: npt.NDArray[np.int64]
        self._columns: dict[str, Array] | None = None
        self.refusals = Refusals()
        self.family_names: list[str] = []
        self._family_ids: dict[str, int] = {}
        kinds: dict[tuple[object, ...], _Kind] = {}
        for number, file in enumerate(files):
            self._read_file(number, file, kinds, excluded)
        self._adopt(self._most_frequent(kinds))

    def __len__(self) -> int:
        return len(self.families)

    def cids(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The CIDs of these rows."""
        return [cid_from_digest(digest.tobytes()) for digest in self.digests[rows]]

    def family_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The families of these rows."""
        return [self.family_names[number] for number in self.families[rows]]

    def select(self, keep: npt.NDArray[np.bool_]) -> None:
        """Keep only these rows."""
        rows = np.flatnonzero(keep)
        self.digests, self.families = self.digests[rows], self.families[rows]
        self._places = self._places[rows]
        if self._columns is not None:
            self._columns = {name: column[rows] for name, column in self._columns.items()}

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Fresh arrays [len(rows), *shape] of these rows.

        Raises:
            ShardDamaged: A file changed, vanished or cannot be read any more.
        """
        if self._columns is not None:
            return {name: column[rows] for name, column in self._columns.items()}
        out = {
            spec.name: np.empty((len(rows), *spec.shape), spec.numpy_dtype) for spec in self.specs
        }
        places = self._places[rows]
        for at in np.lexsort((places[:, 1], places[:, 0])):  # in the order of the disk
            arrays = self._read_again(*places[at].tolist()).arrays()
            for name, column in out.items():
                column[at] = arrays[name]
        return out

    def close(self) -> None:
        """Close the files."""
        _close_all(self._opened)

    # Reading everything once

    def _read_file(
        self,
        number: int,
        file: TableFile,
        kinds: dict[tuple[object, ...], _Kind],
        excluded: frozenset[str],
    ) -> None:
        verify_cid = self._verify_always or not file.is_verified
        position = -1
        try:
            stat = file.path.stat()
            self._stats.append((stat.st_size, stat.st_mtime_ns))
            for line in read_lines(file.path, line_max_bytes=_LINE_MAX_BYTES):
                position += 1
                try:
                    if line.fault is not None:
                        raise InputError(line.fault)
                    fossil = parse_fossil(line.data, position=position, verify_cid=verify_cid)
                    if fossil.cid in excluded:
                        continue
                    kind = self._kind_of(fossil, kinds)
                except InputError as error:
                    word = getattr(error, "kind", "line")
                    self.refusals.add(Refusal(file.path, line.number, word, str(error)))
                    continue
                self._add(kind, fossil, (number, line.offset, len(line.data)), line.number)
        except InputError as error:  # the rest of the file cannot be read
            self.refusals.add(Refusal(file.path, position + 2, "unreadable", str(error)))
        except OSError as error:
            raise ShardDamaged(file.path, f"cannot be read: {error.strerror}") from error

    def _kind_of(self, fossil: Fossil, kinds: dict[tuple[object, ...], _Kind]) -> _Kind:
        if fossil.verdict != PASS:
            raise VerdictFail(f"verifier {fossil.verifier['name']} said FAIL")
        specs = fossil.specs
        if self._wanted is not None:
            specs = tuple(spec for spec in specs if spec.name in self._wanted)
            missing = self._wanted - {spec.name for spec in specs}
            if missing:
                raise FieldInvalid(f"it has no field {', '.join(sorted(missing))}")
        names = {spec.name for spec in specs}
        given = tuple(name for name in fossil.condition_fields if name in names)
        key = (specs, given)
        if key not in kinds:
            columns = {spec.name: bytearray() for spec in specs} if self._memory_left > 0 else None
            kinds[key] = _Kind(specs, given, columns=columns)
        return kinds[key]

    def _add(self, kind: _Kind, fossil: Fossil, place: tuple[int, int, int], line: int) -> None:
        if kind.count == 0:
            kind.first = (self._files[place[0]].path, line)
        family = self._family_ids.setdefault(fossil.family, len(self.family_names))
        if family == len(self.family_names):
            self.family_names.append(fossil.family)
        kind.places.extend(place)
        kind.digests += fossil.digest
        kind.families.append(family)
        if kind.columns is not None:
            for name in kind.columns:
                data = fossil.block["fields"][name]["data"]
                kind.columns[name] += data
                self._memory_left -= len(data)
            if self._memory_left < 0:
                kind.columns = None

    def _most_frequent(self, kinds: dict[tuple[object, ...], _Kind]) -> _Kind:
        if not kinds:
            return _Kind((), ())
        chosen = max(kinds.values(), key=lambda kind: kind.count)  # the first of equals
        for kind in kinds.values():
            if kind is not chosen:
                told = ", ".join(f"{s.name} {list(s.shape)} {s.dtype} {s.unit}" for s in kind.specs)
                reason = f"other fields than most fossils here: {told}"
                self.refusals.add(Refusal(*kind.first, "other-kind", reason), times=kind.count)
        return chosen

    def _adopt(self, kind: _Kind) -> None:
        self.specs, self.condition_fields = kind.specs, kind.condition_fields
        self.digests = np.frombuffer(kind.digests, np.uint8).reshape(-1, 32)
        self.families = np.frombuffer(kind.families, np.int32)
        self._places = np.frombuffer(kind.places, np.int64).reshape(-1, 3)
        if kind.columns is not None:
            self._columns = {
                spec.name: np.frombuffer(kind.columns[spec.name], spec.numpy_dtype).reshape(
                    -1, *spec.shape
                )
                for spec in kind.specs
            }
        self._drop_duplicates()

    def _drop_duplicates(self) -> None:
        """A fossil that occurs twice is used once: the first place counts."""
        words = np.ascontiguousarray(self.digests).view("<u8")
        order = np.lexsort((*words.T,))  # stable: equal digests keep their order
        is_repeat = np.zeros(len(order), bool)
        if len(order) > 1:
            is_repeat[order[1:]] = (words[order[1:]] == words[order[:-1]]).all(axis=1)
        repeats = int(is_repeat.sum())
        if repeats:
            number, _, _ = self._places[int(np.argmax(is_repeat))]
            path = self._files[int(number)].path
            refusal = Refusal(path, 0, "duplicate", "the same CID occurs more than once")
            self.refusals.add(refusal, times=repeats)
            self.select(~is_repeat)

    # Reading some again

    def _read_again(self, number: int, offset: int, length: int) -> Fossil:
        path = self._files[number].path
        try:
            file = self._open(number)
            file.seek(offset)
            return parse_fossil(file.read(length), verify_cid=self._verify_always)
        except (OSError, InputError) as error:
            raise ShardDamaged(path, f"at byte {offset}: {error}") from error

    def _open(self, number: int) -> BinaryIO:
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            while len(self._opened) >= _OPEN_MAX:
                self._opened.popitem(last=False)[1].close()
            path = self._files[number].path
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) != self._stats[number]:
                raise InputError("the file changed since it was first read")
            if path.name.endswith(".ndjson"):
                self._opened[number] = path.open("rb")
            else:  # compressed: unpacked once into a nameless temporary file, to be able to seek
                unpacked = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
                with open_text(path) as packed:
                    shutil.copyfileobj(packed, unpacked)
                self._opened[number] = unpacked
        return self._opened[number]


def _close_all(opened: "OrderedDict[int, BinaryIO]") -> None:
    for file in opened.values():
        file.close()
    opened.clear()


class VerdictFail(InputError):
    """The fossil's own verifier refused it."""

    kind = "verdict"
