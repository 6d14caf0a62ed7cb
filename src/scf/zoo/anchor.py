"""The anchor set: held-out fossils, frozen at the first promotion, that every candidate must meet.

It is drawn from the first generation's plan: from each shard the first held-out fossils, as many as
make at most about 1,024 in all, so that every origin is in it and a large vault need not be read to
its end. `model_zoo/anchor.json` (schema scf.anchor/1) is written once
and named by its digest in the audit log and in every report. What is held out stays held out in
every later plan, so no generation has trained on it.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from scf.core.canonical import canonical_json
from scf.fertilization.batch_plan import HELD_OUT, BatchPlan
from scf.storage.partitions import Folder
from scf.vault.shard import read_shard

ANCHOR_NAME = "anchor.json"
SCHEMA = "scf.anchor/1"
FOSSILS_MAX = 1024
EVENT = "anchor.frozen"


def anchor_set(generation: str, plan: BatchPlan, vault_root: Path) -> bytes:
    """The anchor set's file: the same for the same plan, whenever it is made.

    Args:
        generation: The first one.
        plan: Its plan.
        vault_root: `fossil_vault`.

    Raises:
        ShardDamaged: A shard is missing or unreadable.
    """
    quota = max(1, FOSSILS_MAX // max(1, len(plan.shards)))
    cids = [
        cid
        for shard in plan.shards
        for cid in itertools.islice(_held_out(plan, vault_root / shard.path), quota)
    ]
    value = {"generation": generation, "plan_id": plan.plan_id, "cids": sorted(cids)}
    return canonical_json({"schema": SCHEMA, **value})


def _held_out(plan: BatchPlan, path: Path) -> Iterator[str]:
    """CIDs of a shard that the plan holds out, in their order."""
    left_out = frozenset(plan.excluded)
    for fossil in read_shard(path, verify_cid=False):
        is_usable = fossil.verdict == "PASS" and fossil.cid not in left_out
        if is_usable and plan.split_of(fossil.family, fossil.position) == HELD_OUT:
            yield fossil.cid


def anchor_of(folder: Folder) -> Path | None:
    """The anchor set's file, if it was frozen."""
    path = folder.path / ANCHOR_NAME
    return path if path.is_file() else None
