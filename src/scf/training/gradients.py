"""The gradient of one global minibatch: in parts, over all processes, within the memory there is.

The loss is a mean over the rows of the global minibatch, so its gradient is a sum over rows divided
by their number, whoever computes them and in how many parts. Each process adds up its rows part by
part; then sums and gradients are added over the processes, and divided.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scf.core.errors import TrainingError
from scf.models.energy_model import EnergyModel
from scf.models.losses import Losses
from scf.training.compiled import CompiledLoss, plain_loss, wants_compiled
from scf.training.distributed import Peers
from scf.training.noising import Batch
from scf.training.sharding import is_sharded
from scf.training.train_config import TrainConfig

# What torch says, without a type of its own, when memory is short on a CPU or on MPS.
_SIGNS_OF_WANT = ("can't allocate memory", "out of memory", "not enough memory")


class OutOfMemory(TrainingError):
    """One fossil's pass does not fit the memory, or parts cannot be made smaller."""

    def __init__(self, num: int, why: str) -> None:
        super().__init__(
            f"out of memory with {num} fossils in one pass: {why}",
            remedy="Set a smaller microbatch, or a smaller width or field_width; or use a larger "
            "device.",
        )


class DoesNotFit(TrainingError):
    """Memory ended outside of a step: the network, its moments or the fossils are too large."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"out of memory outside of a training step: {why}",
            remedy="Set a smaller width or field_width, or a smaller memory_max_bytes for the "
            "fossils; or use a larger machine.",
        )


@contextlib.contextmanager
def naming_want_of_memory() -> Iterator[None]:
    """Name what torch only says.

    Raises:
        DoesNotFit: In place of its error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_want_of_memory(error):
            raise
        raise DoesNotFit(str(error).strip().splitlines()[0][:200]) from error


class Means(NamedTuple):
    """Losses over the global minibatch, as numbers."""

    total: float
    denoising: float
    dual: float


class Gradients:
    """Computes gradients of the training loss.

    Args:
        model: What is trained.
        config: Settings: `dual_weight`, `microbatch`.
        peers: The processes that share a minibatch.
        is_paired: Rows come with a noise and with its opposite.
        num_rows_max: Most rows that any process gets.
        talk: Told when memory was short, or compiling did not work.
        interrupting: Entered while compiling, since that takes long.
    """

    def __init__(
        self,
        model: EnergyModel,
        config: TrainConfig,
        peers: Peers,
        *,
        is_paired: bool,
        num_rows_max: int,
        talk: Callable[[str], object],
        interrupting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._model = model
        self._parameters: list[nn.Parameter] = list(model.parameters())
        self._config = config
        self._peers = peers
        self._is_paired = is_paired
        self._is_sharded = is_sharded(self._parameters)
        self._num_rows_max = num_rows_max
        self._talk = talk
        self.microbatch = min(config.microbatch or num_rows_max, num_rows_max)
        self._body_dtype = torch.bfloat16 if config.precision == "bf16" else None
        device = self._parameters[0].device
        self._loss: Callable[[EnergyModel, Batch, bool], Losses] = plain_loss
        if wants_compiled(config.compile, device):
            self._loss = CompiledLoss(talk, interrupting=interrupting)

    def of(self, batch: Batch) -> Means | None:
        """Set `.grad` of every parameter; None where no process has a row.

        Raises:
            OutOfMemory: Even one row at a time does not fit; or weights are sharded, and others
                wait for this process's sums.
            PeerLost: Another process ended.
        """
        while True:
            try:
                sums = self._summed(batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_want_of_memory(error):
                    raise
                why = str(error).strip().splitlines()[0][:200]
            # Outside of the handler: the error's traceback holds the tensors of the failed pass.
            self._make_smaller(why)
        for parameter in self._parameters:
            if parameter.grad is None:  # this process had no row
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        sums = self._peers.add_up([] if self._is_sharded else gradients, sums)
        count, denoising, dual = sums.tolist()
        if count == 0:
            return None
        # FSDP2 averages over processes where we sum (gloo knows no sum with another factor).
        num = count / self._peers.world_size if self._is_sharded else count
        torch._foreach_div_(gradients, num)
        denoising, dual = denoising / count, dual / count
        return Means(denoising + self._config.dual_weight * dual, denoising, dual)

    def _summed(self, batch: Batch) -> Tensor:
        """Rows, denoising and dual loss, summed over this process's rows; `.grad` likewise."""
        for parameter in self._parameters:
            parameter.grad = None
        sums = torch.zeros(3)  # float32, as they are sent
        # Where weights are sharded each pass is a meeting: all hold as many, empty or not.
        num_rows = self._num_rows_max if self._is_sharded else len(batch)
        num_parts = math.ceil(num_rows / self.microbatch)
        for number in range(num_parts):
            # Every so manyth row, as processes share them: two parts here are two processes there.
            part = batch.part(slice(number, None, num_parts)) if num_parts > 1 else batch
            is_empty = len(part) == 0
            if is_empty:
                part = _one_row_like(batch)
            losses = self._losses(part)
            denoising, dual = losses.denoising_B.sum(), losses.dual_B.sum()
            loss = denoising + self._config.dual_weight * dual
            self._backward(0 * loss if is_empty else loss)
            if not is_empty:
                sums += torch.tensor([len(part), float(denoising.detach()), float(dual.detach())])
        return sums

    def _losses(self, part: Batch) -> Losses:
        """Denoising score matching with EDM's weight, and the dual term (models/losses.py)."""
        is_steady = self._is_paired or part.true_score_BD is not None
        self._model.body_dtype = self._body_dtype
        try:
            return self._loss(self._model, part, is_steady)
        finally:
            self._model.body_dtype = None  # whatever is measured is measured in float32

    def _backward(self, loss: Tensor) -> None:
        if self._is_sharded:
            # FSDP2's hooks follow; its parameters are not the tensors in the graph.
            with self._peers.waiting("summing gradients"):
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            # Naming the parameters leaves out the second derivative by the records themselves:
            # 10 % of a step.
            loss.backward(inputs=self._parameters)  # type: ignore[no-untyped-call]

    def _make_smaller(self, why: str) -> None:
        if self._is_sharded or self.microbatch <= 1:
            raise OutOfMemory(self.microbatch, why)
        had, self.microbatch = self.microbatch, math.ceil(self.microbatch / 2)
        for parameter in self._parameters:
            parameter.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._talk(
            f"out of memory with {had} fossils in one pass: going on with {self.microbatch}, "
            "the minibatch and its gradient stay the same"
        )


def is_want_of_memory(error: BaseException) -> bool:
    """Whether torch could not get the memory that it asked for, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS_OF_WANT)


def _one_row_like(batch: Batch) -> Batch:
    """A row that means nothing, for a pass in which only the meeting counts."""

    def row(part: Tensor) -> Tensor:
        return part.new_zeros((1, *part.shape[1:]))

    s_BD = batch.true_score_BD
    return Batch(
        row(batch.clean_BD),
        row(batch.noise_BD),
        row(batch.sigma_B) + 1.0,
        row(batch.c_BK),
        None if s_BD is None else row(s_BD),
    )
