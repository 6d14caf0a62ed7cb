"""Training fossils from a batch plan or from plain NDJSON files, through the batcher."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.core.errors import InputError, UsageError
from scf.fertilization.batch_plan import BatchPlan, read_plan
from scf.fertilization.fossil_batcher import FossilBatcher, read_records
from scf.fertilization.shard_cache import CACHE_SHARE
from scf.fertilization.shard_scan import Refusals
from scf.models.record import FieldLayout, LayoutMismatch, RecordLayout


class BatcherSource:
    """Training fossils over a `FossilBatcher`: a plan's training split, or all of some files."""

    def __init__(
        self,
        open_batcher: Callable[[int, int], FossilBatcher],
        plan: BatchPlan | None,
        *,
        batch_size: int,
        boundary: str = "",
        weights_sha256: str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._open_batcher = open_batcher
        self._batcher = open_batcher(rank, world_size)
        self._plan, self._boundary, self._weights_sha256 = plan, boundary, weights_sha256
        self._stream: Iterator[Mapping[str, Any]] = iter(())
        self._parts: list[BatcherSource] = []
        self.batch_size = batch_size
        self.layout = layout_of(self._batcher, boundary=boundary)

    def share(self, rank: int, world_size: int) -> "BatcherSource":
        """The same stream from the same place, every `world_size`-th row of each minibatch."""
        part = type(self)(
            self._open_batcher,
            self._plan,
            batch_size=self.batch_size,
            boundary=self._boundary,
            weights_sha256=self._weights_sha256,
            rank=rank,
            world_size=world_size,
        )
        part.set_state(self.get_state())
        self._parts.append(part)
        return part

    @property
    def refusals(self) -> Refusals:
        """What the batcher could not use, and why."""
        return self._batcher.refusals

    def epoch(self) -> Iterator[Mapping[str, Any]]:
        """The rest of the batcher's epoch; the stream before this one is over."""
        self._end_stream()
        self._stream = self._batcher.stream_minibatches()
        return self._stream

    def close(self) -> None:
        """End what is being read ahead.

        A reader thread that is in a C++ parser when the interpreter ends takes the process down
        ("terminate called without an active exception", seen once in 12 runs).
        """
        self._end_stream()
        for part in self._parts:
            part.close()

    def _end_stream(self) -> None:
        if isinstance(self._stream, Generator):
            self._stream.close()

    def get_state(self) -> dict[str, Any]:
        """The batcher's place."""
        return self._batcher.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the batcher to a place."""
        self._batcher.set_state(state)

    def describe(self) -> dict[str, Any]:
        """Plan, weights and refusals, for `config.json`."""
        return {
            "plan_id": self._plan.plan_id if self._plan else None,
            "merkle_root": self._plan.merkle_root if self._plan else None,
            "weights_sha256": self._weights_sha256,
            "refused": dict(self._batcher.refusals.kinds),
        }


class MixedBatcherSource(BatcherSource):
    """Fossils with weights, or a plan that mixes: an epoch has some oftener than others."""

    def every_fossil(self) -> Iterator[Mapping[str, Any]]:
        """Each fossil once; the batcher stays where it is."""
        return self._batcher.stream_minibatches(shuffle=False)


def open_source(
    paths: Sequence[Path] | None,
    *,
    plan: Path | None,
    vault: Path | None,
    batch_size: int,
    seed: int,
    memory_bytes: int,
    cache_share: float = CACHE_SHARE,
    weights: Path | None = None,
) -> BatcherSource:
    """Open the fossils that a run is to learn from.

    A plan's vault was validated when fossils were taken in, so what the batcher refuses there is
    counted and left out. Plain files are as somebody made them: records of several kinds, or
    numbers that are not finite, stop the run, because going on would train on something else than
    was meant.

    `weights` is a file that says how often fossils are used (docs/formats/weights.md).

    Raises:
        UsageError: A plan without a vault, or no file of weights there.
        LayoutMismatch, NonFiniteFossils, InputError: What is wrong with the fossils.
    """
    if plan is not None:
        if vault is None:
            raise UsageError("--plan needs --vault", remedy="Name the fossil_vault folder.")
        batch_plan = read_plan(plan)
        boundary = plan_boundary(batch_plan, vault)
    else:
        batch_plan, boundary = None, _boundary(list(paths or ()))

    digest = None
    if weights is not None:
        if not weights.is_file():
            raise UsageError(
                f"weights: there is no file {weights}",
                remedy="Name a file as docs/formats/weights.md describes it, or leave weights out.",
            )
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()

    def open_batcher(rank: int, world_size: int) -> FossilBatcher:
        return FossilBatcher(
            batch_plan or list(paths or ()),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            as_numpy=True,
            vault_root=vault if batch_plan else None,
            memory_bytes=memory_bytes,
            cache_share=cache_share,
            weights=weights,
        )

    is_mixed = weights is not None or (batch_plan is not None and batch_plan.mixture)
    kind = MixedBatcherSource if is_mixed else BatcherSource
    source = kind(
        open_batcher, batch_plan, batch_size=batch_size, boundary=boundary, weights_sha256=digest
    )
    for refusal in source.refusals.first if batch_plan is None else ():
        where = f"{refusal.path}, line {refusal.line}: {refusal.reason}"
        if refusal.kind == "other-kind":
            raise LayoutMismatch(where)
        if refusal.kind == "not-finite":
            raise NonFiniteFossils(where)
    return source


class NonFiniteFossils(InputError):
    """A fossil of a plain file holds NaN or an infinity."""

    def __init__(self, where: str) -> None:
        super().__init__(where, remedy="Remove the record; `scf fossil validate` lists all such.")


def layout_of(batcher: FossilBatcher, *, boundary: str = "") -> RecordLayout:
    """The record's layout as the batcher found it, with the boundary that its params name."""
    fields = [
        FieldLayout(spec.name, spec.dtype, tuple(spec.shape), spec.unit) for spec in batcher.specs
    ]
    return RecordLayout.of(fields, batcher.condition_fields, boundary=boundary)


def plan_boundary(plan: BatchPlan, vault: Path) -> str:
    """`params.boundary` of a plan's first fossil, or ""."""
    return _boundary([vault / plan.shards[0].path]) if plan.shards else ""


def _boundary(paths: Sequence[Path]) -> str:
    # What is wrong with a file is the batcher's to say.
    for fossil in read_records(*paths, on_refused=lambda _: None):
        return str(fossil.obj.get("params", {}).get("boundary", ""))
    return ""
