"""Several processes, one run: shares of a minibatch, sums over all, and one voice.

Started by `torchrun`, each process reads the same fossils, takes every W-th row of each minibatch
and adds its gradient to the others'. After the sum all hold the same numbers and take the same
step, so nothing else is sent. Only the first process writes, talks and needs `--out`.

Gradients are summed here, in one flat buffer, not by `DistributedDataParallel`. An energy is not
trained through `forward` of one module but through its derivatives, twice; DDP's hooks count on
`forward` and fire per parameter, and second-order gradients are not promised to be synchronised
(pytorch issue 63929, open). One buffer after the last microbatch is first-order, sums in one order
and can be read in ten lines. What it gives up is sending while computing (docs/adr/0005).

Two groups of connections: gloo on the CPU for words (stop, save, counts), NCCL for gradients on
CUDA. Every wait has the limit `peer_limit_s`.
"""

import contextlib
import datetime as dt
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from scf.core.errors import TrainingError, UsageError

# Bytes sent at once when one process tells the others: NCCL and gloo count in 32 bits.
_CHUNK_BYTES = 2**30
# What the libraries say when a peer is gone; they give it no type of its own.
_SIGNS_OF_LOSS = (
    "connection closed", "connection reset", "connection refused", "connection was", "broken pipe",
    "timed out", "timeout", "closed by peer", "socket", "remote process",
)  # fmt: skip


class PeerLost(TrainingError):
    """Another process of this run ended, or did not answer within the limit."""

    def __init__(self, rank: int, world_size: int, doing: str, limit_s: float, why: str) -> None:
        super().__init__(
            f"process {rank} of {world_size} lost the others while {doing} "
            f"(limit {limit_s:g} s): {why}",
            remedy="Read the log of the process that ended first, then start all again with "
            "--resume: the last checkpoint stands.",
        )


class PeersDiffer(TrainingError):
    """The processes of a run do not see the same fossils or settings."""

    def __init__(self, rank: int, what: str) -> None:
        super().__init__(
            f"process {rank} has other {what} than process 0",
            remedy="Give every process the same files, plan, vault and settings.",
        )


class Peers:
    """The processes of a run, as one of them sees them; alone, every method is a no-op.

    Attributes:
        rank: Which one this is, from 0.
        world_size: How many there are.
        local_rank: Which one on this machine: the number of its CUDA device.
        local_world_size: How many there are on this machine.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        local_rank: int = 0,
        local_world_size: int = 1,
        limit_s: float = 0.0,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self._limit_s = limit_s

    @classmethod
    def join(cls, environment: Mapping[str, str], *, limit_s: float) -> "Peers":
        """Meet the processes that torchrun started with this one; alone where it started none.

        Where this process has met them already (Ray Train introduces its own), that stands.

        Raises:
            UsageError: The environment is torchrun's, but a variable is missing or no number.
            PeerLost: Not all came within `limit_s`.
        """
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_rank = int(environment.get("LOCAL_RANK", "0"))
            local_world_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
            address = f"{environment['MASTER_ADDR']}:{int(environment['MASTER_PORT'])}"
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"WORLD_SIZE is set, but not all that belongs to it: {error}",
                remedy="Start with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
                "MASTER_PORT.",
            ) from error
        if world_size == 1:
            return cls()
        peers = cls(
            rank,
            world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            limit_s=limit_s,
        )
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with peers.waiting(f"meeting at {address}"):
            if not dist.is_initialized():
                limit = dt.timedelta(seconds=limit_s)
                dist.init_process_group(backend, timeout=limit, rank=rank, world_size=world_size)
            peers.agree(0.0)
        return peers

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def share(self, size: int) -> Tensor:
        """Which of `size` rows are this process's: every W-th, as the batcher deals them."""
        return torch.arange(self.rank, size, self.world_size)

    def agree(self, *values: float) -> list[float]:
        """For each value, the largest that any process has."""
        if self.is_alone:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        with self.waiting("agreeing on what comes next"):
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return [float(value) for value in told]

    def add_up(self, gradients: Sequence[Tensor], sums_S: Tensor) -> Tensor:
        """Sum gradients (in place) and `sums_S` (returned), all of one type, over all processes."""
        if self.is_alone:
            return sums_S
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), sums_S])
        with self.waiting("summing gradients"):
            dist.all_reduce(flat)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return flat[at:]

    def gather(self, rows_BX: Tensor, place_B: Tensor, num_places: int) -> tuple[Tensor, Tensor]:
        """The rows of all processes in the order of their places, and those places.

        Args:
            rows_BX: Rows of this process, float32.
            place_B: Their places among `num_places`, ascending; no two processes share one.
            num_places: Places that there are; some may be empty.
        """
        if self.is_alone:
            return rows_BX, place_B
        sheet_PX = torch.zeros(num_places, rows_BX.shape[1] + 1)
        sheet_PX[place_B, :-1] = rows_BX
        sheet_PX[place_B, -1] = 1
        with self.waiting("showing records to each other"):
            dist.all_reduce(sheet_PX)
        is_taken_P = sheet_PX[:, -1] > 0
        return sheet_PX[is_taken_P, :-1], is_taken_P.nonzero().squeeze(1)

    def tell(self, data: bytes | None) -> bytes:
        """What the first process says; the others give None."""
        if self.is_alone:
            assert data is not None
            return data
        size = int(self.agree(float(len(data or b"")))[0])
        if not size:
            return b""
        buffer = torch.zeros(size, dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(data or b""), dtype=torch.uint8))
        for chunk in torch.split(buffer, _CHUNK_BYTES):
            with self.waiting("hearing from process 0"):
                dist.broadcast(chunk, src=0)
        return buffer.numpy().tobytes()

    def check_same(self, what: str, parts: Iterable[bytes]) -> None:
        """Make sure that this process sees what the first one sees.

        Raises:
            PeersDiffer: It does not; on all processes, so that none waits for another.
        """
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        ours = digest.digest()
        differs = self.tell(ours if self.is_first else None) != ours
        if self.agree(float(differs))[0]:
            raise PeersDiffer(self.rank, what)

    @contextlib.contextmanager
    def waiting(self, doing: str) -> Iterator[None]:
        """Name the loss of a peer, whatever the library calls it.

        Raises:
            PeerLost: In place of the library's error.
        """
        try:
            yield
        except RuntimeError as error:
            if self.is_alone or not is_loss(error):
                raise
            why = str(error).strip().splitlines()[0][:200]
            raise PeerLost(self.rank, self.world_size, doing, self._limit_s, why) from error

    def leave(self) -> None:
        """End the connections; the run is over."""
        if not self.is_alone and dist.is_initialized():
            dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process with `code`.

    One of several (torchrun's WORLD_SIZE) ends without the interpreter's own end: threads of torch
    outlive that, and abort a process whose work is done and written ("terminate called without an
    active exception", twice in about 20 runs of two processes).
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_loss(error: RuntimeError) -> bool:
    """Whether an error of torch says that another process is gone or silent."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS_OF_LOSS)


ALONE = Peers()
