"""What a source of fossils means: which files, and how they share an epoch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scf.core.errors import InputError, UsageError
from scf.fertilization.batch_plan import BatchPlan
from scf.fertilization.fossil_table import FossilTable
from scf.fertilization.mixture import Group, Mixture, check_shares
from scf.fertilization.shard_cache import SourceFile
from scf.fertilization.shard_scan import Refusal
from scf.fertilization.weights import WeightOf, weights_of
from scf.storage.ndjson import is_shard_name, read_lines
from scf.vault.fossil import Fossil, parse_fossil

Source = Path | str | Sequence[Path | str]


class NoFossils(InputError):
    """Nothing in the source can be used."""

    kind = "empty"


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


def plan_files(plan: BatchPlan, vault_root: Path | str | None) -> list[SourceFile]:
    """A plan's shards, with the digests that it promises."""
    if vault_root is None:
        raise UsageError("a plan needs vault_root: where its shards lie")
    return [SourceFile(Path(vault_root) / shard.path, shard.sha256) for shard in plan.shards]


@dataclass(frozen=True)
class Item:
    """Some files, in their order, that have a share together."""

    name: str
    num_files: int
    share: float
    must_have_some: bool = True


def items_of(source: Source | BatchPlan, shares: Sequence[float] | None) -> list[Item]:
    """The files of a source, in groups that have a share each. Raises UsageError."""
    if isinstance(source, BatchPlan):
        if shares is not None:
            raise UsageError("shares are for a list of sources: a plan has its own mixture")
        mixture, num_shards = source.mixture, len(source.shards)
        if mixture is None:
            return [Item("plan", num_shards, 1.0, must_have_some=False)]
        fresh = num_shards - mixture.replay_shards
        return [
            Item("replay", mixture.replay_shards, 1 - mixture.fresh_share, must_have_some=False),
            Item("fresh", fresh, mixture.fresh_share, must_have_some=False),
        ]
    if shares is None:
        return [Item("source", len(fossil_files(source)), 1.0, must_have_some=False)]
    if isinstance(source, str | Path) or len(shares) != len(source):
        given = 1 if isinstance(source, str | Path) else len(source)
        raise UsageError(f"{len(shares)} shares for {given} sources: one for each item of a list")
    check_shares(shares)
    return [
        Item(str(item), len(fossil_files(item)), share)
        for item, share in zip(source, shares, strict=True)
    ]


def mixture_of(
    table: FossilTable,
    items: Sequence[Item],
    weights: WeightOf | Path | str | None,
    *,
    seed: int,
) -> Mixture | None:
    """The mixture that shares and weights ask for; None where all fossils are alike.

    Args:
        table: The fossils of one split, not settled yet.
        items: What its files are of, in their order.
        weights: Of single fossils.
        seed: Of the batcher.

    Raises:
        NoFossils: An item has a share, and no fossil.
        WeightsInvalid: See `weights_of`.
    """
    if weights is None and len(items) < 2:
        return None
    whole = None if weights is None else weights_of(weights, table.selected_digests())
    counts = np.array(table.selected_counts(), np.int64)
    starts = np.cumsum(counts) - counts
    item_of_file = [at for at, item in enumerate(items) for _ in range(item.num_files)]
    item_of = np.array([item_of_file[file] for file in table.segment_files], np.int64)
    groups = []
    for at, item in enumerate(items):
        mine = item_of == at
        where = [np.arange(f, f + n) for f, n in zip(starts[mine], counts[mine], strict=True)]
        chosen = None if whole is None else whole[np.concatenate([np.zeros(0, int), *where])]
        group = Group(starts[mine], counts[mine], item.share, chosen)
        if group.num_usable:
            groups.append(group)
        elif item.must_have_some:
            raise NoFossils(f"{item.name}: no usable fossil to have a share of {item.share}")
    return Mixture(groups, seed=seed)
