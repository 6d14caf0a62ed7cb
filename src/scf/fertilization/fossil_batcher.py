"""Minibatches of fossils: seeded, resumable, from shards, plain NDJSON files or a batch plan.

The order is a pure function of (fossils, seed, epoch); see `shuffle`. The whole state is a JSON
value of under 200 bytes; `set_state(get_state())` anywhere gives the same next minibatch, bit for
bit. With several ranks, each takes its share of every global minibatch: together they see exactly
what one rank would see. torch is imported only when tensors are asked for.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scf.core.errors import InputError, MissingTool, UsageError
from scf.fertilization.batch_plan import (
    ALL,
    HELD_OUT,
    HELD_OUT_FRACTION,
    TRAIN,
    BatchPlan,
    family_hash,
    held_out_threshold,
)
from scf.fertilization.fossil_table import FossilTable, Refusal, Refusals, TableFile
from scf.fertilization.shuffle import EpochOrder
from scf.storage.ndjson import is_shard_name, read_lines
from scf.vault.fields import Array, FieldSpec
from scf.vault.fossil import Fossil, parse_fossil
from scf.vault.provenance import file_sha256
from scf.vault.shard import ShardDamaged

if TYPE_CHECKING:
    import torch

Source = Path | str | Sequence[Path | str]
MEMORY_BYTES = 512 * 2**20
_STATE_VERSION = 1
# Shards whose digest this process has verified: (path, size, mtime) -> digest. The time is a key
# of this cache, never a proof: another process verifies anew.
_verified: dict[tuple[Path, int, int], str] = {}


class NoFossils(InputError):
    """Nothing in the source can be used."""

    kind = "empty"


class StateMismatch(UsageError):
    """A state belongs to other fossils or another seed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One rank's part of a global minibatch.

    `stop` is the position in the epoch at which the global minibatch ends, `end` the epoch's own.
    """

    rows: npt.NDArray[np.int64]
    arrays: dict[str, Array]
    stop: int
    end: int


class FossilBatcher:
    """Streams minibatches.

    Args:
        source: A folder (every NDJSON file under it), a file, a list of them, or a `BatchPlan`.
        batch_size: Fossils in a global minibatch, over all ranks; the last of an epoch may be
            smaller.
        seed: Of the order.
        rank: Which share of each global minibatch this process takes.
        world_size: How many processes share it.
        fields: Names of the fields wanted; all where None.
        window_records: Fossils that are shuffled among each other (and read together).
        verify: `cached` verifies each shard (or each CID, where no plan promises a digest) once
            in this process; `always` recomputes the CID at every reading.
        as_numpy: Yield numpy arrays instead of torch tensors.
        split: `train`, `held_out` or `all`. Default: `train` of a plan, `all` of plain files.
            Plain files are split by the same rule as a plan with this seed.
        vault_root: `fossil_vault`, for plans.
        memory_bytes: Numbers are kept in memory up to this size, and read again beyond it.

    Attributes:
        specs: Name, type, shape and unit of each field.
        condition_fields: Names of fields that are given, not modelled.
        num_fossils: Fossils of this split.
        refused: How many lines were not usable: wrong CID, verdict FAIL, not finite, duplicates.
        refusals: Why: `.kinds` counts by kind, `.first` keeps the first hundred.

    Raises:
        NoFossils: Nothing usable there.
        ShardDamaged: A shard of the plan is missing or is not what the plan promises.
    """

    def __init__(
        self,
        source: Source | BatchPlan,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        fields: Sequence[str] | None = None,
        window_records: int = 8192,
        verify: str = "cached",
        as_numpy: bool = False,
        split: str | None = None,
        vault_root: Path | str | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if not (0 <= rank < world_size <= batch_size):
            raise UsageError(
                f"rank {rank} of {world_size} with minibatches of {batch_size}: "
                "need 0 <= rank < world_size <= batch_size"
            )
        if verify not in {"cached", "always"}:
            raise UsageError(f"verify={verify!r}: known are 'cached' and 'always'")
        if split not in {None, TRAIN, HELD_OUT, ALL}:
            raise UsageError(f"split={split!r}: known are 'train', 'held_out' and 'all'")
        is_plan = isinstance(source, BatchPlan)
        self._split = split or (TRAIN if is_plan else ALL)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._window_records = window_records
        self._as_numpy = as_numpy
        if isinstance(source, BatchPlan):
            files = _plan_files(source, vault_root)
        else:
            files = [TableFile(path) for path in fossil_files(source)]
        self._table = FossilTable(
            files,
            fields=fields,
            excluded=frozenset(source.excluded) if isinstance(source, BatchPlan) else frozenset(),
            memory_bytes=memory_bytes,
            verify_always=verify == "always",
        )
        if len(self._table) == 0:
            raise NoFossils(_nothing_usable(self._table))
        self._table.select(self._members(source if isinstance(source, BatchPlan) else None))
        self.num_fossils = len(self._table)
        if self.num_fossils == 0:
            raise NoFossils(f"no family of the source is in the split {self._split!r}")
        self._order_digest = self._digest()
        self._epoch = self._position = 0

    @property
    def specs(self) -> tuple[FieldSpec, ...]:
        return self._table.specs

    @property
    def condition_fields(self) -> tuple[str, ...]:
        return self._table.condition_fields

    @property
    def refused(self) -> int:
        return self._table.refusals.count

    @property
    def refusals(self) -> Refusals:
        return self._table.refusals

    @property
    def epoch(self) -> int:
        """The epoch that the next minibatch belongs to, from 0."""
        return self._epoch

    @property
    def num_minibatches(self) -> int:
        """Minibatches of one epoch, the same for every rank."""
        return -(-self._end_of_epoch(0) // self._batch_size)

    def stream_minibatches(self) -> Iterator[dict[str, Any]]:
        """The rest of this epoch: field name to tensor [B, *shape], and `_cid`, `_family` lists.

        When an epoch is through, the next call gives the next epoch, in another order. Tensors
        share memory with fresh numpy arrays: nothing is copied, and writing into them is harmless.
        """
        convert = _identity if self._as_numpy else _to_torch()
        epoch = self._epoch
        for part in self._parts(epoch, self._position):
            self._move_to(epoch, part.stop, part.end)
            minibatch: dict[str, Any] = {name: convert(a) for name, a in part.arrays.items()}
            minibatch["_cid"] = self._table.cids(part.rows)
            minibatch["_family"] = self._table.family_of(part.rows)
            yield minibatch

    def iterate_fossils(self, shuffle: bool = True) -> Iterator[dict[str, Any]]:
        """One fossil at a time, as a dict of numpy arrays with `_cid` and `_family`.

        Shuffled, it is the rest of this epoch, in the order of the minibatches; unshuffled, it is
        the stored order, and the state stays as it is. Ranks share fossils as they share
        minibatches; with several ranks the state moves at the end of each global minibatch.
        """
        epoch = self._epoch
        for part in self._parts(epoch, self._position if shuffle else 0, shuffle=shuffle):
            cids, families = self._table.cids(part.rows), self._table.family_of(part.rows)
            for at, cid in enumerate(cids):
                left = len(cids) - 1 - at
                if shuffle and (self._world_size == 1 or left == 0):
                    self._move_to(epoch, part.stop - left, part.end)
                fossil: dict[str, Any] = {name: array[at] for name, array in part.arrays.items()}
                yield fossil | {"_cid": cid, "_family": families[at]}

    def get_state(self) -> dict[str, Any]:
        """Where we are: JSON of under 200 bytes."""
        return {
            "version": _STATE_VERSION,
            "order": self._order_digest,
            "epoch": self._epoch,
            "position": self._position,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called; rank, world size and batch size may differ.

        Raises:
            StateMismatch: The state belongs to other fossils, another split or another seed.
        """
        epoch, position = state.get("epoch"), state.get("position")
        if state.get("version") != _STATE_VERSION or not isinstance(epoch, int):
            raise StateMismatch(f"not a batcher state of version {_STATE_VERSION}")
        if state.get("order") != self._order_digest:
            raise StateMismatch(
                "the state belongs to other fossils, another split, window or seed",
                remedy="Resume with the plan and the seed of the run that wrote the state.",
            )
        if not isinstance(position, int) or not 0 <= position < self.num_fossils or epoch < 0:
            raise StateMismatch(f"position {position} of epoch {epoch} does not exist")
        self._epoch, self._position = epoch, position

    def close(self) -> None:
        """Close the files."""
        self._table.close()

    def _move_to(self, epoch: int, position: int, end: int) -> None:
        """The next minibatch begins here; at the end of an epoch, it is the first of the next."""
        self._epoch, self._position = (epoch, position) if position < end else (epoch + 1, 0)

    def _end_of_epoch(self, begin: int) -> int:
        """Where an epoch ends that goes on at `begin`.

        A last minibatch too small to give every rank one fossil is left out.
        """
        tail = (self.num_fossils - begin) % self._batch_size
        return self.num_fossils - (tail if tail < self._world_size else 0)

    def _parts(self, epoch: int, begin: int, *, shuffle: bool = True) -> "Iterator[_Part]":
        """This rank's part of each global minibatch from position `begin` on."""
        size, end = self._batch_size, self._end_of_epoch(begin)
        order = EpochOrder(
            self.num_fossils,
            seed=self._seed,
            epoch=epoch,
            window_records=self._window_records,
            shuffle=shuffle,
        )
        # What is read and not yet yielded: rows of the table, their positions in the epoch (only
        # ours, ascending), and their arrays.
        rows = positions = np.empty(0, np.int64)
        arrays: dict[str, Array] = {}
        first = begin  # of the next global minibatch
        for window in range(order.window_at(begin), order.num_windows):
            records = order.window(window)
            start = order.window_start(window)
            at = np.arange(start, start + len(records), dtype=np.int64)
            is_ours = (at >= begin) & (at < end)
            is_ours &= (at - begin) % size % self._world_size == self._rank
            arrays = _joined(arrays, self._table.gather(records[is_ours]))
            rows = np.concatenate([rows, records[is_ours]])
            positions = np.concatenate([positions, at[is_ours]])
            done = 0
            while first < end and (stop := min(first + size, end)) <= start + len(records):
                until = int(np.searchsorted(positions, stop))
                part = {name: array[done:until] for name, array in arrays.items()}
                yield _Part(rows[done:until], part, stop, end)
                first, done = stop, until
            rows, positions = rows[done:], positions[done:]
            arrays = {name: array[done:] for name, array in arrays.items()}

    def _members(self, plan: BatchPlan | None) -> npt.NDArray[np.bool_]:
        """Which rows of the table are on our side of the split."""
        names = self._table.family_names
        if self._split == ALL:
            return np.ones(len(self._table), bool)
        if plan is None:
            used = [names[number] for number in np.unique(self._table.families)]
            below = held_out_threshold(used, seed=self._seed, fraction=HELD_OUT_FRACTION)
            is_held_out = [family_hash(self._seed, name) < below for name in names]
        else:
            is_held_out = [plan.is_held_out(name) for name in names]
        held_out: npt.NDArray[np.bool_] = np.array(is_held_out, bool)[self._table.families]
        return held_out if self._split == HELD_OUT else ~held_out

    def _digest(self) -> str:
        """What the order depends on, in 16 digits."""
        about = f"{self._seed}:{self._window_records}:{self._split}:".encode()
        return hashlib.sha256(about + self._table.digests.tobytes()).hexdigest()[:16]


def read_records(
    *sources: Source, on_refused: Callable[[Refusal], None] | None = None
) -> Iterator[Fossil]:
    """Every well-formed fossil of files and folders, in the order of the input; for scoring.

    The verdict does not matter here, nor do duplicates. CIDs are recomputed.

    Args:
        sources: Files, folders or lists of them.
        on_refused: Called with each line that is no fossil; without it, the first one raises.

    Raises:
        InputError: No such file; or a line is no fossil and `on_refused` is None.
    """
    for source in sources:
        for path in fossil_files(source):
            for position, line in enumerate(read_lines(path)):
                try:
                    if line.fault is not None:
                        raise InputError(line.fault)
                    fossil = parse_fossil(line.data, position=position)
                except InputError as error:
                    if on_refused is None:
                        raise InputError(f"{path}, line {line.number}: {error}") from error
                    word = getattr(error, "kind", "line")
                    on_refused(Refusal(path, line.number, word, str(error)))
                else:
                    yield fossil


def fossil_files(source: Source) -> list[Path]:
    """The NDJSON files of a source: files as named, folders searched, in a fixed order.

    Raises:
        InputError: No such file, or a folder without NDJSON.
    """
    if not isinstance(source, str | Path):
        return [path for item in source for path in fossil_files(item)]
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if is_shard_name(p.name) and p.is_file())
        if not found:
            raise NoFossils(f"{path}: no NDJSON files there")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return [path]


def _plan_files(plan: BatchPlan, vault_root: Path | str | None) -> list[TableFile]:
    """The shards of a plan, each one's digest verified once in this process."""
    if vault_root is None:
        raise UsageError("a plan needs vault_root: where its shards lie")
    files = []
    for shard in plan.shards:
        path = Path(vault_root) / shard.path
        try:
            stat = path.stat()
        except OSError as error:
            raise ShardDamaged(path, f"the plan names it: {error.strerror}") from error
        key = (path.resolve(), stat.st_size, stat.st_mtime_ns)
        digest = _verified.get(key) or file_sha256(path)
        if digest != shard.sha256:
            raise ShardDamaged(path, f"digest {digest}, the plan promises {shard.sha256}")
        _verified[key] = digest
        files.append(TableFile(path, is_verified=True))
    return files


def _joined(old: dict[str, Array], new: dict[str, Array]) -> dict[str, Array]:
    if not old or not len(next(iter(old.values()))):
        return new
    return {name: np.concatenate([old[name], new[name]]) for name in new}


def _identity(array: Array) -> Array:
    return array


def _to_torch() -> "Callable[[Array], torch.Tensor]":
    try:
        import torch
    except ImportError as error:
        raise MissingTool(
            "tensors need torch, which is not installed",
            remedy="Install the extra: `pip install 'scf[train]'`, or pass as_numpy=True.",
        ) from error
    convert: Callable[[Array], torch.Tensor] = torch.from_numpy
    return convert


def _nothing_usable(table: FossilTable) -> str:
    kinds: Iterable[tuple[str, int]] = table.refusals.kinds.most_common()
    told = ", ".join(f"{count} {kind}" for kind, count in kinds) or "there are no lines"
    first = f"; first: {table.refusals.first[0].reason}" if table.refusals.first else ""
    return f"no usable fossil in the source ({told}{first})"
