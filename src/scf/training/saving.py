"""Checkpoints on the way: by one process, or by all where the weights are dealt out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scf.models.record_energy import RecordEnergy
from scf.storage.partitions import Folder
from scf.training.checkpoint import write_resume, write_resume_shares
from scf.training.distributed import Peers
from scf.training.sharding import is_sharded
from scf.training.weights import Weights


def save(
    out: Folder | None,
    described: dict[str, Any],
    energy: RecordEnergy,
    weights: Weights,
    peers: Peers,
    talk: Callable[[str], object],
) -> Path | None:
    """Publish a checkpoint to resume from; all processes call this together.

    Sharded weights are written by every process, each its share; where the processes share no file
    system, gathered on the first one and written there, as all others are.

    Returns:
        Its folder, where this process knows it.
    """
    if is_sharded(weights.parameters):
        tensors = weights.tensors()
        path = write_resume_shares(out, described, energy, tensors, weights.progress, peers)
        if path is not None:
            return path
        talk("the processes share no file system: the checkpoint is gathered on the first")
    snapshot = weights.snapshot()
    if out is None or snapshot is None:
        return None
    return write_resume(out, described, snapshot)
