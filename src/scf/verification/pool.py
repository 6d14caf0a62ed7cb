"""The sealed pool: held-out fossils of a plan, without near-duplicates of what was trained on."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import NothingToDo
from scf.fertilization.batch_plan import BatchPlan
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.fertilization.shard_cache import CACHE_SHARE
from scf.models.record import Floats, LayoutMismatch
from scf.models.record_energy import RecordEnergy
from scf.training.fossils import layout_of, plan_boundary
from scf.verification.denoising import HeldOut
from scf.verification.harm import prefix_of
from scf.verification.near_duplicates import find_near_duplicates

# At most so many held-out fossils are measured.
FOSSILS_MAX = 4096
# With more near-duplicates than this share, held-out families are not apart from the others.
LEAK_SHARE = 0.1


@dataclass(frozen=True)
class Pool:
    """What is measured on.

    Attributes:
        held_out: At most 4096 fossils that no run trains on.
        anchor: Those of the anchor set; empty where there is none.
        near_duplicates: What was found of these, for the report.
    """

    held_out: HeldOut
    anchor: HeldOut
    near_duplicates: dict[str, Any]


def open_pool(
    plan: BatchPlan,
    vault: Path,
    energy: RecordEnergy,
    anchor: Collection[str] = (),
    *,
    cache_share: float = CACHE_SHARE,
) -> Pool:
    """Read the held-out fossils and leave out near-duplicates, if they are few.

    Args:
        plan: What was trained on, and what was not.
        vault: Where its shards lie.
        energy: The model, for layout and frame.
        anchor: CIDs of the anchor set.
        cache_share: What the shard cache may take of `system_cache`.

    Raises:
        LayoutMismatch: They are of another kind than the model's.
        NothingToDo: The plan holds nothing out.
    """
    fossils = read_held_out(plan, vault, energy, anchor, cache_share=cache_share)
    near = find_near_duplicates(
        energy.frame.to_model(fossils.x_ND),
        training_rows(plan, vault, energy, cache_share=cache_share),
    )
    is_sealed = bool(near.is_near_N.sum() <= LEAK_SHARE * len(fossils.cids))
    keep_N = ~near.is_near_N if is_sealed else np.ones_like(near.is_near_N)
    is_first_N = np.arange(len(keep_N)) < FOSSILS_MAX
    is_anchor_N = np.array([cid in anchor for cid in fossils.cids], bool)
    return Pool(
        held_out=fossils.take(keep_N & is_first_N),
        anchor=fossils.take(keep_N & is_anchor_N),
        near_duplicates={**near.to_json(fossils.families), "left_out": is_sealed},
    )


def slices(families: Iterable[str]) -> dict[str, list[str]]:
    """Families by slice of the domain: what stands before the last `/` or `#` (a station)."""
    found: dict[str, list[str]] = {}
    for family in sorted(set(families)):
        found.setdefault(prefix_of(family), []).append(family)
    return found


def read_held_out(
    plan: BatchPlan,
    vault: Path,
    energy: RecordEnergy,
    also: Collection[str] = (),
    *,
    cache_share: float = CACHE_SHARE,
) -> HeldOut:
    """The held-out fossils of a plan by CID: the first 4096, and those in `also`.

    Raises:
        LayoutMismatch: They are of another kind than the model's.
        NothingToDo: The plan holds nothing out.
    """
    batcher = FossilBatcher(
        plan,
        batch_size=512,
        as_numpy=True,
        split="held_out",
        vault_root=vault,
        cache_share=cache_share,
    )
    if layout_of(batcher, boundary=plan_boundary(plan, vault)) != energy.layout:
        raise LayoutMismatch("the plan's fossils have other fields than the model")
    # By CID: (modelled, given, family). Pruned on the way, so that memory is bounded.
    rows: dict[str, tuple[Floats, Floats, str]] = {}
    for minibatch in batcher.stream_minibatches():
        x_BD, c_BK = energy.layout.pack(minibatch)
        families = list(minibatch["_family"])
        for at, cid in enumerate(minibatch["_cid"]):
            rows[cid] = x_BD[at], c_BK[at], families[at]
        if len(rows) > 4 * (FOSSILS_MAX + len(also)):
            rows = {cid: rows[cid] for cid in _wanted(rows, also)}
    if not rows:
        raise NothingToDo("the plan holds no fossils out, so there is nothing to measure on")
    cids = _wanted(rows, also)
    x_ND, c_NK = (np.stack([rows[cid][part] for cid in cids]) for part in (0, 1))
    return HeldOut(x_ND, c_NK, cids, [rows[cid][2] for cid in cids])


def _wanted(rows: Mapping[str, Any], also: Collection[str]) -> list[str]:
    ordered = sorted(rows)
    return ordered[:FOSSILS_MAX] + [cid for cid in ordered[FOSSILS_MAX:] if cid in also]


def training_rows(
    plan: BatchPlan, vault: Path, energy: RecordEnergy, *, cache_share: float = CACHE_SHARE
) -> Iterator[Floats]:
    """What was trained on, in the model's coordinates, piece by piece in a random order."""
    batcher = FossilBatcher(
        replace(plan, mixture=None),  # each fossil once
        batch_size=2048,
        as_numpy=True,
        split="train",
        vault_root=vault,
        cache_share=cache_share,
    )
    for minibatch in batcher.stream_minibatches():
        x_BD, _ = energy.layout.pack(minibatch)
        yield energy.frame.to_model(x_BD)
