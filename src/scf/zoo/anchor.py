"""The anchor set: held-out fossils, frozen at the first promotion, that every candidate must meet.

It is drawn from the first generation's plan: its held-out fossils, the first 1,024 by CID, which is
a digest, so that nobody chooses them. `model_zoo/anchor.json` (schema scf.anchor/1) is written once
and named by its digest in the audit log and in every report. What is held out stays held out in
every later plan, so no generation has trained on it.
"""

import heapq
from collections.abc import Iterable
from pathlib import Path

from scf.core.canonical import canonical_json
from scf.storage.partitions import Folder

ANCHOR_NAME = "anchor.json"
SCHEMA = "scf.anchor/1"
FOSSILS_MAX = 1024
EVENT = "anchor.frozen"


def anchor_set(generation: str, plan_id: str, held_out: Iterable[str]) -> bytes:
    """The anchor set's file: the same for the same plan, whenever it is made.

    Args:
        generation: The first one.
        plan_id: Of its plan.
        held_out: CIDs that the plan holds out.
    """
    cids = heapq.nsmallest(FOSSILS_MAX, held_out)
    return canonical_json(
        {"schema": SCHEMA, "generation": generation, "plan_id": plan_id, "cids": cids}
    )


def anchor_of(folder: Folder) -> Path | None:
    """The anchor set's file, if it was frozen."""
    path = folder.path / ANCHOR_NAME
    return path if path.is_file() else None
