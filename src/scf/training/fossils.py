"""Training fossils from a batch plan or from plain NDJSON files, through the batcher."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.core.errors import InputError, UsageError
from scf.fertilization.batch_plan import BatchPlan, read_plan
from scf.fertilization.fossil_batcher import FossilBatcher, read_records
from scf.fertilization.shard_cache import CACHE_SHARE
from scf.models.record import FieldLayout, LayoutMismatch, RecordLayout


class BatcherSource:
    """Training fossils over a `FossilBatcher`: a plan's training split, or all of some files."""

    def __init__(
        self, batcher: FossilBatcher, plan: BatchPlan | None, *, boundary: str = ""
    ) -> None:
        self._batcher = batcher
        self._plan = plan
        self.layout = layout_of(batcher, boundary=boundary)

    def epoch(self) -> Iterator[Mapping[str, Any]]:
        """The rest of the batcher's epoch."""
        return self._batcher.stream_minibatches()

    def get_state(self) -> dict[str, Any]:
        """The batcher's place."""
        return self._batcher.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the batcher to a place."""
        self._batcher.set_state(state)

    def describe(self) -> dict[str, Any]:
        """Plan and refusals, for `config.json`."""
        return {
            "plan_id": self._plan.plan_id if self._plan else None,
            "merkle_root": self._plan.merkle_root if self._plan else None,
            "refused": dict(self._batcher.refusals.kinds),
        }


class MixedBatcherSource(BatcherSource):
    """A plan whose fresh and replayed fossils are mixed: an epoch has some oftener than others."""

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
) -> BatcherSource:
    """Open the fossils that a run is to learn from.

    A plan's vault was validated when fossils were taken in, so what the batcher refuses there is
    counted and left out. Plain files are as somebody made them: records of several kinds, or
    numbers that are not finite, stop the run, because going on would train on something else than
    was meant.

    Raises:
        UsageError: A plan without a vault.
        LayoutMismatch, NonFiniteFossils, InputError: What is wrong with the fossils.
    """
    if plan is not None:
        if vault is None:
            raise UsageError("--plan needs --vault", remedy="Name the fossil_vault folder.")
        batch_plan = read_plan(plan)
        batcher = FossilBatcher(
            batch_plan,
            batch_size=batch_size,
            seed=seed,
            as_numpy=True,
            vault_root=vault,
            memory_bytes=memory_bytes,
            cache_share=cache_share,
        )
        kind = MixedBatcherSource if batch_plan.mixture else BatcherSource
        return kind(batcher, batch_plan, boundary=plan_boundary(batch_plan, vault))
    batcher = FossilBatcher(
        list(paths or ()),
        batch_size=batch_size,
        seed=seed,
        as_numpy=True,
        memory_bytes=memory_bytes,
    )
    for refusal in batcher.refusals.first:
        where = f"{refusal.path}, line {refusal.line}: {refusal.reason}"
        if refusal.kind == "other-kind":
            raise LayoutMismatch(where)
        if refusal.kind == "not-finite":
            raise NonFiniteFossils(where)
    return BatcherSource(batcher, None, boundary=_boundary(list(paths or ())))


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
    for fossil in read_records(*paths):
        return str(fossil.obj.get("params", {}).get("boundary", ""))
    return ""
