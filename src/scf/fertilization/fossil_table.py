"""All usable fossils of some files as one sequence of rows, on one side of a split.

Files are looked up in the shard cache or, without one, indexed by one reading. The fossils of a
table have the same fields: where files mix several kinds, the most frequent kind is taken and the
rest is refused. Rows keep the stored order: files as given, kinds of a file one after another,
fossils as they stand.

What is held in memory does not grow with the numbers: an offset and a digest for 64 fossils, 24
bytes for each run of neighbours on our side of the split, and for streamed files 60 bytes a fossil.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.core.identity import cid_digest
from scf.fertilization.rows_file import GROUP_ROWS, Names, RowsFile
from scf.fertilization.segments import CachedSegment, LineIndex, LineSegment, Segment
from scf.fertilization.shard_cache import ShardCache, SourceFile
from scf.fertilization.shard_scan import (
    FossilKind,
    Refusal,
    Refusals,
    check_promise,
    kind_of,
    scan,
)
from scf.vault.fields import Array
from scf.vault.provenance import FAMILY_BLOCK
from scf.vault.shard import ShardDamaged

Rows = npt.NDArray[np.int64]
_DIGESTS_AT_ONCE = 8192
# Which of some families are on our side, and which are split into blocks of neighbours.
Membership = Callable[[str], bool]


@dataclass
class _File:
    """A file, as cached rows or as indexed lines."""

    source: SourceFile
    rows: RowsFile | None = None
    indices: tuple[LineIndex, ...] = ()
    names: Names | None = None
    stat: tuple[int, int] = (0, 0)

    def kinds(self) -> list[tuple[FossilKind, int, int]]:
        """Each kind with its number of fossils and its first line."""
        if self.rows is not None:
            return [(k.kind, k.count, k.first_line) for k in self.rows.kinds]
        return [(i.kind, i.count, i.first_line) for i in self.indices]


class FossilTable:
    """Fossils by their row.

    Args:
        files: In the stored order.
        cache: Where rows are kept; None to index the files instead.
        fields: Names of the fields wanted; all where None.
        excluded: CIDs that are left out.
        memory_bytes: Numbers of files that are not cached are kept up to this size.
        verify_always: Recompute CIDs at each reading of a line.
        may_repeat: Look for fossils that occur twice; the first is used.

    Attributes:
        kind: What the fossils are.
        segments: Where they are.
        segment_files: Which of the files each segment is of, by its number.
        refusals: What is not used.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        *,
        cache: ShardCache | None = None,
        fields: Iterable[str] | None = None,
        excluded: frozenset[str] = frozenset(),
        memory_bytes: int,
        verify_always: bool = False,
        may_repeat: bool = True,
    ) -> None:
        self._wanted = None if fields is None else frozenset(fields)
        self._verify_always = verify_always
        self._memory_left = memory_bytes
        self.refusals = Refusals()
        opened: list[_File] = []
        keep = {cache.path_of(file) for file in files} if cache is not None else set()
        for source in files:
            rows = cache.open(source, keep=keep) if cache is not None else None
            opened.append(_File(source, rows) if rows is not None else self._index(source))
            if rows is not None:
                self.refusals.merge(rows.refusals)
        self.kind = self._most_frequent(opened)
        self.segments: list[Segment] = []
        self.segment_files: list[int] = []
        for number, file in enumerate(opened):
            mine = self._segments_of(file)
            self.segments += mine
            self.segment_files += [number] * len(mine)
        counts = [segment.count for segment in self.segments]
        groups = [-(-count // GROUP_ROWS) for count in counts]
        self.first_rows = np.cumsum([0, *counts], dtype=np.int64)
        self.first_groups = np.cumsum([0, *groups], dtype=np.int64)
        self._keep = np.ones(sum(counts), bool)
        if may_repeat:
            self._drop_repeats()
        self._drop_excluded(excluded)
        self._set_runs()

    def __len__(self) -> int:
        return int(self._run_ends[-1]) if len(self._run_ends) else 0

    @property
    def num_groups(self) -> int:
        """Groups of all segments."""
        return int(self.first_groups[-1])

    def rows_at(self, places: Rows) -> Rows:
        """The rows at these places among the selected ones."""
        run = np.searchsorted(self._run_ends, places, side="right")
        result: Rows = self._run_rows[run] + (places - self._run_starts[run])
        return result

    def segment_of(self, rows: Rows) -> Rows:
        """The number of the segment of each row."""
        result: Rows = np.searchsorted(self.first_rows, rows, side="right") - 1
        return result

    def group_of(self, rows: Rows, segments: Rows) -> Rows:
        """The number of the group of each row, counted over all segments."""
        result: Rows = self.first_groups[segments] + (rows - self.first_rows[segments]) // 64
        return result

    def selected_groups(self) -> Rows:
        """The groups that hold selected rows, ascending."""
        found = []
        for first, start, end in zip(self._run_rows, self._run_starts, self._run_ends, strict=True):
            ends = np.array([first, first + (end - start) - 1])
            low, high = self.group_of(ends, self.segment_of(ends)).tolist()
            found.append(np.arange(low, high + 1))
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def family_counts(self) -> dict[str, int]:
        """Each family with its number of selected fossils."""
        counts: dict[str, int] = {}
        for number, segment in enumerate(self.segments):
            mine = self._keep[self.first_rows[number] : self.first_rows[number + 1]]
            numbers = np.bincount(segment.heads()["family"][mine])
            for at in np.flatnonzero(numbers).tolist():
                name = segment.family_names[at]
                counts[name] = counts.get(name, 0) + int(numbers[at])
        return counts

    def blocks_of(self, family: str) -> list[int]:
        """The numbers of the blocks of neighbours that this family's selected fossils are in."""
        blocks: set[int] = set()
        for number, segment in enumerate(self.segments):
            mine = self._keep[self.first_rows[number] : self.first_rows[number + 1]]
            heads = segment.heads()[mine]
            wanted = [i for i, name in enumerate(segment.family_names) if name == family]
            positions = heads["position"][np.isin(heads["family"], wanted)]
            blocks.update(np.unique(positions // FAMILY_BLOCK).tolist())
        return sorted(blocks)

    def select(self, is_ours: Membership, *, in_blocks: frozenset[str] = frozenset()) -> None:
        """Keep only the fossils of some families.

        Args:
            is_ours: Whether a family (or `FAMILY#BLOCK` of one that is split) is kept.
            in_blocks: Families that are split into blocks of 64 neighbours in their file.
        """
        for number, segment in enumerate(self.segments):
            heads = segment.heads()
            names = segment.family_names
            keep = np.array([n not in in_blocks and is_ours(n) for n in names], bool)[
                heads["family"]
            ]
            for at, name in enumerate(names):
                if name in in_blocks:
                    rows = np.flatnonzero(heads["family"] == at)
                    blocks, inverse = np.unique(
                        heads["position"][rows] // FAMILY_BLOCK, return_inverse=True
                    )
                    ours = [is_ours(block_name(name, block)) for block in blocks.tolist()]
                    keep[rows] = np.array(ours, bool)[inverse]
            self._keep[self.first_rows[number] : self.first_rows[number + 1]] &= keep
        self._set_runs()

    def selected_counts(self) -> list[int]:
        """How many fossils of each segment are selected. Before `settle`."""
        return [
            int(np.count_nonzero(self._keep[self.first_rows[n] : self.first_rows[n + 1]]))
            for n in range(len(self.segments))
        ]

    def selected_digests(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The digests inside the CIDs of the selected fossils, some at a time. Before `settle`."""
        for number, segment in enumerate(self.segments):
            mine = np.flatnonzero(self._keep[self.first_rows[number] : self.first_rows[number + 1]])
            digests = segment.heads()["digest"]
            for first in range(0, len(mine), _DIGESTS_AT_ONCE):
                yield digests[mine[first : first + _DIGESTS_AT_ONCE]]

    def settle(self) -> bytes:
        """End selecting; returns a digest of which fossils stand in which order.

        It is the same whether files are cached or not.
        """
        digest = hashlib.sha256(repr(self.kind).encode())
        for segment in self.segments:
            digest.update(segment.heads_digest())
        digest.update(self._run_rows.tobytes())
        digest.update(self._run_ends.tobytes())
        self._keep = np.empty(0, bool)
        return digest.digest()

    def resident(self) -> tuple[Array, dict[str, Array]] | None:
        """Heads and numbers of all rows, where every file's numbers are in memory already."""
        kept = []
        for segment in self.segments:
            columns = segment.columns() if isinstance(segment, LineSegment) else None
            if columns is None:
                return None
            kept.append(columns)
        heads = [segment.heads() for segment in self.segments]
        if len(kept) == 1:
            return heads[0], kept[0]
        names = [spec.name for spec in self.kind.specs]
        columns = {name: np.concatenate([c[name] for c in kept]) for name in names}
        for segment in self.segments:
            assert isinstance(segment, LineSegment)
            segment.index.columns = None
        return np.concatenate(heads), columns

    # Reading files once

    def _index(self, source: SourceFile) -> _File:
        """Index a file that is not cached, and keep its numbers while there is room for them."""
        kinds: dict[FossilKind, LineIndex] = {}
        families: dict[str, int] = {}
        try:
            stat = source.path.stat()
        except OSError as error:
            raise ShardDamaged(source.path, f"cannot be read: {error.strerror}") from error
        if source.sha256 is not None:
            check_promise(source.path, source.sha256)
        verify_cid = self._verify_always or source.sha256 is None
        for fossil, line in scan(source.path, self.refusals, verify_cid=verify_cid):
            kind = kind_of(fossil)
            if kind not in kinds:
                kinds[kind] = LineIndex(kind, line.number, with_numbers=self._memory_left > 0)
            family = families.setdefault(fossil.family, len(families))
            self._memory_left -= kinds[kind].add(fossil, family, line.offset, len(line.data))
            if self._memory_left < 0:
                kinds[kind].columns = None
        names = Names(list(families))
        known = (stat.st_size, stat.st_mtime_ns)
        return _File(source, None, tuple(kinds.values()), names, known)

    def _most_frequent(self, files: Sequence[_File]) -> FossilKind:
        counts: dict[FossilKind, int] = {}
        first: dict[FossilKind, tuple[_File, int]] = {}
        for file in files:
            for kind, count, line in file.kinds():
                wanted = kind.only(self._wanted)
                if wanted is None:
                    missing = (self._wanted or frozenset()) - {spec.name for spec in kind.specs}
                    reason = f"it has no field {', '.join(sorted(missing))}"
                    refusal = Refusal(file.source.path, line, "field", reason)
                    self.refusals.add(refusal, times=count)
                    continue
                counts[wanted] = counts.get(wanted, 0) + count
                first.setdefault(wanted, (file, line))
        if not counts:
            return FossilKind((), ())
        chosen = max(counts, key=lambda kind: counts[kind])  # the first of equals
        for kind, count in counts.items():
            if kind != chosen:
                file, line = first[kind]
                reason = f"other fields than most fossils here: {kind.describe()}"
                refusal = Refusal(file.source.path, line, "other-kind", reason)
                self.refusals.add(refusal, times=count)
        return chosen

    def _segments_of(self, file: _File) -> list[Segment]:
        specs = self.kind.specs
        if file.rows is not None:
            rows = [r for r in file.rows.kinds if r.kind.only(self._wanted) == self.kind]
            return [CachedSegment(one, specs) for one in rows]
        segments: list[Segment] = []
        for index in file.indices:
            if index.kind.only(self._wanted) == self.kind:
                assert file.names is not None
                segments.append(
                    LineSegment(
                        file.source.path,
                        file.stat,
                        index,
                        file.names,
                        specs,
                        verify_always=self._verify_always,
                    )
                )
        return segments

    # Selecting rows

    def _drop_repeats(self) -> None:
        """A fossil that occurs twice is used once: the first place counts."""
        if not self.segments:
            return
        # Eight bytes of each digest find the candidates; whole digests decide.
        starts = np.concatenate([_first_words(segment) for segment in self.segments])
        order = np.argsort(starts, kind="stable")
        same = starts[order[1:]] == starts[order[:-1]]
        if not same.any():
            return
        candidates = np.union1d(order[1:][same], order[:-1][same])
        seen: set[bytes] = set()
        repeats = []
        numbers = self.segment_of(candidates)
        for number in np.unique(numbers).tolist():
            mine = candidates[numbers == number]
            digests = self.segments[number].heads()["digest"][mine - self.first_rows[number]]
            for row, digest in zip(mine.tolist(), digests, strict=True):
                key = digest.tobytes()
                if key in seen:
                    repeats.append(row)
                seen.add(key)
        if repeats:
            self._keep[repeats] = False
            path = self.segments[int(self.segment_of(np.array(repeats[:1]))[0])].path
            refusal = Refusal(path, 0, "duplicate", "the same CID occurs more than once")
            self.refusals.add(refusal, times=len(repeats))

    def _drop_excluded(self, excluded: frozenset[str]) -> None:
        if not excluded:
            return
        gone = np.sort(np.array([cid_digest(cid) for cid in excluded], "S32"))
        for number, segment in enumerate(self.segments):
            digests = np.ascontiguousarray(segment.heads()["digest"]).view("S32")[:, 0]
            is_gone = np.isin(digests, gone)
            self._keep[self.first_rows[number] : self.first_rows[number + 1]] &= ~is_gone

    def _set_runs(self) -> None:
        """The selected rows as runs of neighbours."""
        edges = np.flatnonzero(np.diff(self._keep.view("i1"), prepend=0, append=0))
        self._run_rows, ends = edges[0::2].astype(np.int64), edges[1::2]
        self._run_ends = np.cumsum(ends - self._run_rows, dtype=np.int64)
        self._run_starts = self._run_ends - (ends - self._run_rows)


def block_name(family: str, block: int) -> str:
    """What a block of a family that is split is called, as if it were a family."""
    return f"{family}#{block}"


def _first_words(segment: Segment) -> npt.NDArray[Any]:
    digests = np.ascontiguousarray(segment.heads()["digest"])
    return digests.view("<u8")[:, 0].copy()
