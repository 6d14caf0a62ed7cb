"""Minibatches of fossils: seeded, resumable, from shards, plain NDJSON files or a batch plan.

The order is a pure function of (fossils, seed, epoch); see `shuffle`. The whole state is a JSON
value of under 200 bytes; `set_state(get_state())` anywhere gives the same next minibatch, bit for
bit. With several ranks, each takes its share of every global minibatch: together they see exactly
what one rank would see. How numbers are read is `windows`' matter and never changes the order.
torch is imported only when tensors are asked for.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scf.core.errors import MissingTool, UsageError
from scf.core.identity import cid_from_digest
from scf.fertilization.batch_plan import (
    ALL,
    HELD_OUT,
    HELD_OUT_FRACTION,
    TRAIN,
    BatchPlan,
    family_hash,
    held_out_threshold,
    split_units,
)
from scf.fertilization.fossil_table import FossilTable, block_name
from scf.fertilization.rows_file import Heads
from scf.fertilization.shard_cache import CACHE_SHARE, ShardCache, SourceFile
from scf.fertilization.shard_scan import Refusals
from scf.fertilization.shuffle import EpochOrder
from scf.fertilization.sources import (
    NoFossils,
    Source,
    fossil_files,
    items_of,
    mixture_of,
    plan_files,
    read_records,
)
from scf.fertilization.texts import Texts
from scf.fertilization.weights import WeightOf
from scf.fertilization.windows import ALWAYS, BLOCK, CACHED, Window, loader_for, read_windows
from scf.storage.partitions import Folder
from scf.vault.fields import Array, FieldSpec
from scf.vault.provenance import FAMILY_BLOCK

if TYPE_CHECKING:
    import torch

__all__ = ["FossilBatcher", "NoFossils", "StateMismatch", "fossil_files", "read_records"]

MEMORY_BYTES = 512 * 2**20
CACHE_BYTES = 50 * 10**9
_STATE_VERSION = 2


class StateMismatch(UsageError):
    """A state belongs to other fossils, another mixture or another seed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One rank's part of a global minibatch, or a piece of it.

    `stop` is the position in the epoch at which the global minibatch ends, `end` the epoch's own.
    """

    heads: Heads
    segments: npt.NDArray[np.int64]
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
        verify: What is verified beyond the one time when a shard (its digest, where a plan promises
            one, else every CID) is first read. `cached`: of the shard cache, one block of a
            hundred in each epoch, always others. `block`: also each block's digest at its first
            reading in this process. `always`: each block's digest (without cache: each CID) at
            every reading.
        as_numpy: Yield numpy arrays instead of torch tensors.
        split: `train`, `held_out` or `all`. Default: `train` of a plan, `all` of plain files.
            Plain files are split by the same rule as a plan with this seed.
        vault_root: `fossil_vault`, for plans.
        memory_bytes: Numbers are kept in memory up to this size, and read again beyond it.
        cache_root: Folder of the shard cache. Default: `system_cache/shards` on the drive of a
            plan's vault; none for plain files.
        cache_bytes: Its budget; 0 switches it off. Default: what the drive's budgets say, or 50 GB
            for a folder that is on no drive of ours.
        cache_share: What the drive's budget of `system_cache` gives it; 0 switches it off.
        shares: Where `source` is a list: the part of each epoch that each of its items has, against
            the others. The training split of a plan with a mixture has shares of its own.
        weights: How often a fossil is used against others (of its item): a callable from a list of
            CIDs to numbers, pure since a resumed run asks again; or a file
            (docs/formats/weights.md). See `mixture` for what is promised. Neither these nor shares
            go with `held_out`: what is measured on is used once.

    Attributes:
        specs: Name, type, shape and unit of each field.
        condition_fields: Names of fields that are given, not modelled.
        num_fossils: Fossils of this split.
        fossils_per_epoch: As many, but for a mixture: fossils with a weight above 0.
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
        cache_root: Path | str | None = None,
        cache_bytes: int | None = None,
        cache_share: float = CACHE_SHARE,
        shares: Sequence[float] | None = None,
        weights: WeightOf | Path | str | None = None,
    ) -> None:
        if not (0 <= rank < world_size <= batch_size):
            raise UsageError(
                f"rank {rank} of {world_size} with minibatches of {batch_size}: "
                "need 0 <= rank < world_size <= batch_size"
            )
        if verify not in {CACHED, BLOCK, ALWAYS}:
            raise UsageError(f"verify={verify!r}: known are 'cached', 'block' and 'always'")
        if split not in {None, TRAIN, HELD_OUT, ALL}:
            raise UsageError(f"split={split!r}: known are 'train', 'held_out' and 'all'")
        plan = source if isinstance(source, BatchPlan) else None
        if split == HELD_OUT and (shares is not None or weights is not None):
            raise UsageError("held-out fossils are used once each: no shares, no weights")
        self._split = split or (ALL if plan is None else TRAIN)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._window_records = window_records
        self._as_numpy = as_numpy
        if isinstance(source, BatchPlan):
            files = plan_files(source, vault_root)
        else:
            files = [SourceFile(path) for path in fossil_files(source)]
        self._table = FossilTable(
            files,
            cache=_cache_of(
                cache_root, cache_bytes, vault_root if plan is not None else None, cache_share
            ),
            fields=fields,
            excluded=frozenset(plan.excluded) if plan is not None else frozenset(),
            memory_bytes=memory_bytes,
            verify_always=verify == ALWAYS,
            may_repeat=plan is None or plan.may_repeat,
        )
        if len(self._table) == 0:
            raise NoFossils(_nothing_usable(self._table))
        self._blocked: frozenset[str] = frozenset()
        self._select(plan)
        self.num_fossils = len(self._table)
        if self.num_fossils == 0:
            raise NoFossils(f"no family of the source is in the split {self._split!r}")
        items = items_of(source, shares)
        self._mixture = (
            None if self._split == HELD_OUT else mixture_of(self._table, items, weights, seed=seed)
        )
        self.fossils_per_epoch = self._mixture.num_slots if self._mixture else self.num_fossils
        about = f"{seed}:{window_records}:{self._split}:".encode()
        mixture = self._mixture.digest if self._mixture else b""
        fossils = self._table.settle()
        self._order_digest = hashlib.sha256(about + fossils + mixture).hexdigest()[:16]
        self._loader = loader_for(
            self._table, verify=verify, window_records=window_records, memory_bytes=memory_bytes
        )
        self._epoch = self._position = 0

    @property
    def specs(self) -> tuple[FieldSpec, ...]:
        """Name, type, shape and unit of each field."""
        return self._table.kind.specs

    @property
    def condition_fields(self) -> tuple[str, ...]:
        """Names of fields that are given, not modelled."""
        return self._table.kind.condition_fields

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
        return -(-self._end_of_epoch(0, self.fossils_per_epoch) // self._batch_size)

    def stream_minibatches(self, shuffle: bool = True) -> Iterator[dict[str, Any]]:
        """The rest of this epoch: field name to tensor [B, *shape]; `_cid` and `_family` texts.

        Unshuffled, it is every fossil once in the stored order, and the state stays as it is.
        When an epoch is through, the next call gives the next epoch, in another order. Tensors
        share memory with fresh numpy arrays: nothing is copied, and writing into them is harmless.
        The texts are sequences whose strings are made when they are looked at.

        Raises:
            ShardDamaged: A file changed, vanished or cannot be read any more.
            DriveError: The drive was pulled. The state is that of the last minibatch.
        """
        convert = _identity if self._as_numpy else _to_torch()
        epoch = self._epoch
        for part in self._parts(epoch, self._position if shuffle else 0, shuffle=shuffle):
            if shuffle:
                self._move_to(epoch, part.stop, part.end)
            minibatch: dict[str, Any] = {name: convert(a) for name, a in part.arrays.items()}
            minibatch["_cid"] = self._cids(part)
            minibatch["_family"] = self._families(part)
            yield minibatch

    def iterate_fossils(self, shuffle: bool = True) -> Iterator[dict[str, Any]]:
        """One fossil at a time, as a dict of numpy arrays with `_cid` and `_family`.

        Shuffled, it is the rest of this epoch, in the order of the minibatches; unshuffled, it is
        the stored order, and the state stays as it is. Ranks share fossils as they share
        minibatches; with several ranks the state moves at the end of each global minibatch.
        """
        epoch = self._epoch
        for part in self._parts(epoch, self._position if shuffle else 0, shuffle=shuffle):
            cids, families = self._cids(part), self._families(part)
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
                "the state belongs to other fossils, another split, mixture, window or seed",
                remedy="Resume with the plan and the seed of the run that wrote the state.",
            )
        is_position = isinstance(position, int) and 0 <= position < self.fossils_per_epoch
        if not isinstance(position, int) or not is_position or epoch < 0:
            raise StateMismatch(f"position {position} of epoch {epoch} does not exist")
        self._epoch, self._position = epoch, position

    def close(self) -> None:
        """Close the files."""
        self._loader.close()

    def _move_to(self, epoch: int, position: int, end: int) -> None:
        """The next minibatch begins here; at the end of an epoch, it is the first of the next."""
        self._epoch, self._position = (epoch, position) if position < end else (epoch + 1, 0)

    def _end_of_epoch(self, begin: int, total: int) -> int:
        """Where an epoch of `total` fossils ends that goes on at `begin`.

        A last minibatch too small to give every rank one fossil is left out.
        """
        tail = (total - begin) % self._batch_size
        return total - (tail if tail < self._world_size else 0)

    def _parts(self, epoch: int, begin: int, *, shuffle: bool = True) -> "Iterator[_Part]":
        """This rank's part of each global minibatch from position `begin` on."""
        mixture = self._mixture if shuffle else None
        total = self.num_fossils if mixture is None else mixture.num_slots
        size, end = self._batch_size, self._end_of_epoch(begin, total)
        order = EpochOrder(
            total,
            seed=self._seed,
            epoch=epoch,
            window_records=self._window_records,
            shuffle=shuffle,
        )

        def ours(number: int) -> npt.NDArray[np.int64]:
            at = np.arange(order.window_start(number), order.window_start(number + 1))
            is_ours = (at >= begin) & (at < end)
            is_ours &= (at - begin) % size % self._world_size == self._rank
            return np.asarray(at[is_ours], np.int64)

        def rows(number: int) -> npt.NDArray[np.int64]:
            places = order.window(number)[ours(number) - order.window_start(number)]
            if mixture is not None:
                places = mixture.places(epoch, places)
            return self._table.rows_at(places)

        numbers = range(order.window_at(begin), order.num_windows)
        first = begin  # of the next global minibatch
        waiting: _Part | None = None  # what is read of it
        windows = read_windows(self._loader, rows, numbers, epoch)
        for number, window in zip(numbers, windows, strict=True):
            positions = ours(number)
            window_end = order.window_start(number + 1)
            done = 0
            while first < end and (stop := min(first + size, end)) <= window_end:
                if self._world_size == 1:  # the usual case, and a search costs 5 us
                    until = stop - max(begin, order.window_start(number))
                else:
                    until = int(np.searchsorted(positions, stop))
                yield _joined(waiting, _piece(window, done, until, stop, end))
                first, done, waiting = stop, until, None
            if done < len(positions):
                rest = _piece(window, done, len(positions), first + size, end)
                waiting = _joined(waiting, rest)

    def _cids(self, part: _Part) -> Texts:
        digests = part.heads["digest"]
        return Texts(len(digests), lambda: [cid_from_digest(d.tobytes()) for d in digests])

    def _families(self, part: _Part) -> Texts:
        return Texts(len(part.heads), lambda: self._family_names(part))

    def _family_names(self, part: _Part) -> list[str]:
        segments = self._table.segments
        numbers, positions = part.heads["family"].tolist(), part.heads["position"].tolist()
        names = [
            segments[s].family_names[n]
            for s, n in zip(part.segments.tolist(), numbers, strict=True)
        ]
        if self._blocked:
            names = [
                block_name(name, at // FAMILY_BLOCK) if name in self._blocked else name
                for name, at in zip(names, positions, strict=True)
            ]
        return names

    def _select(self, plan: BatchPlan | None) -> None:
        """Keep the fossils of our side of the split."""
        if plan is not None:
            below, seed, self._blocked = plan.held_out_below, plan.seed, frozenset(plan.in_blocks)
        elif self._split == ALL:
            return
        else:
            seed = self._seed
            units, in_blocks = split_units(self._table.family_counts(), self._table.blocks_of)
            self._blocked = frozenset(in_blocks)
            below = held_out_threshold(
                units, seed=seed, fraction=HELD_OUT_FRACTION, at_least=2 if in_blocks else 1
            )
        if self._split != ALL:
            wants_held_out = self._split == HELD_OUT
            self._table.select(
                lambda family: (family_hash(seed, family) < below) == wants_held_out,
                in_blocks=self._blocked,
            )


def _cache_of(
    root: Path | str | None,
    budget_bytes: int | None,
    vault_root: Path | str | None,
    share: float,
) -> ShardCache | None:
    if budget_bytes == 0:
        return None
    if root is not None:
        folder = Folder.at(Path(root))
        return ShardCache(folder, budget_bytes=budget_bytes or CACHE_BYTES)
    if vault_root is None or share <= 0:
        return None
    cache = ShardCache.beside(Path(vault_root), share=share)
    if cache is not None and budget_bytes is not None:
        cache.budget_bytes = budget_bytes
    return cache


def _piece(window: Window, low: int, high: int, stop: int, end: int) -> _Part:
    arrays = window.gather(low, high)
    return _Part(window.heads[low:high], window.segments[low:high], arrays, stop, end)


def _joined(first: _Part | None, second: _Part) -> _Part:
    if first is None:
        return second
    return _Part(
        np.concatenate([first.heads, second.heads]),
        np.concatenate([first.segments, second.segments]),
        {
            name: np.concatenate([first.arrays[name], array])
            for name, array in second.arrays.items()
        },
        second.stop,
        second.end,
    )


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
