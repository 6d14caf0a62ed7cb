"""Checkpoints of a sharded run, written and read by all its processes: each its own share.

By `torch.distributed.checkpoint` with its safetensors storage: a file for each process, whose JSON
header says where every piece lies in its tensor. So any number of processes reads them, one
alone too, and nothing on disk is pickled (`FileSystemWriter`, the library's own format, pickles its
metadata). The folder, below `resume/`:

    shard-0000R-model-00001-of-00001.safetensors   weights, averages, moments: process R's share
    frame.safetensors                              what is no weight: frame, Gaussian, given numbers
    config.json state.json digests.json            as in any checkpoint

It is filled under a staged name and published by one rename, after every process has flushed its
file and told its digest: complete or absent. The final checkpoint of a run is the usual one.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from scf.core.errors import TrainingError, UsageError
from scf.storage.durable import os_errors
from scf.training.checkpoint_files import CheckpointDamaged, share_name
from scf.training.distributed import Peers

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException


class NotWritten(TrainingError):
    """A process could not write its share of a checkpoint."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(
            f"{folder}: a process could not write its share: {why}",
            remedy="The checkpoint before stands: start again with --resume. With sharding = "
            "'none' or one process checkpoints are written by the first process alone.",
        )


def is_seen_by_all(path: Path | None, peers: Peers) -> Path | None:
    """The first process's `path`, where every process has the same file system; None elsewhere."""
    told = Path(os.fsdecode(peers.tell(os.fsencode(path or "") if peers.is_first else None)))
    is_missing = path is None if peers.is_first else not told.is_file()
    return None if peers.agree(float(is_missing))[0] else told


def write_shares(folder: Path, tensors: dict[str, Tensor], peers: Peers) -> dict[str, str]:
    """Write this process's share into `folder`; on all processes the digests of all shares.

    Args:
        folder: The same for all, on a file system that all see.
        tensors: By name, sharded (`DTensor`) or the same everywhere.
        peers: The processes; all call this together.

    Raises:
        NotWritten, BudgetExceeded, DriveError: A process could not write.
        PeerLost: Another process ended.
    """
    # Here, not above: the library takes half a second to import, and most runs are not sharded.
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with peers.waiting("writing a checkpoint"), os_errors(folder), _named(folder):
        save(tensors, storage_writer=writer)
    ours = folder / share_name(peers.rank)
    digest = hashlib.sha256()
    if ours.is_file():
        with ours.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    told = [0.0] * (33 * peers.world_size)
    mine = 33 * peers.rank
    told[mine : mine + 33] = [float(ours.is_file()), *map(float, digest.digest())]
    heard = peers.agree(*told)
    return {
        share_name(rank): bytes(map(int, heard[33 * rank + 1 : 33 * rank + 33])).hex()
        for rank in range(peers.world_size)
        if heard[33 * rank]
    }


def read_shares(folder: Path, tensors: dict[str, Tensor], peers: Peers) -> None:
    """Fill `tensors` in place, however many processes wrote them.

    Raises:
        CheckpointDamaged: A tensor is missing or has another shape.
        PeerLost: Another process ended.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    try:
        with peers.waiting("reading a checkpoint"), warnings.catch_warnings():
            # Said where there is one process; it is meant so.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, storage_reader=reader, no_dist=peers.is_alone)
    except CheckpointException as error:
        raise CheckpointDamaged(folder, f"shares do not fit the model: {_why(error)}") from error


def unseen(path: Path) -> UsageError:
    """Shares lie where not all processes see them."""
    return UsageError(
        f"{path} was written by several processes, and not all of this run's see it",
        remedy="Give --out on a file system that all processes share, or resume with one process.",
    )


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """The library's error as ours; where a disk is full, the operating system's."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from error
        raise NotWritten(folder, _why(error)) from error


def _why(error: "CheckpointException") -> str:
    failures = [str(failure).strip() for failure, _ in error.failures.values()]
    return (failures or [""])[0].splitlines()[0][:200] if any(failures) else repr(error)[:200]
