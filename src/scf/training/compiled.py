"""The training loss, compiled where that pays and works, and plain where not.

`torch.compile` has no double backward through `autograd.grad`; with `torch.func.grad` inside of
what is compiled (`EnergyModel.derivatives`) it sees first-order code only. On one CPU thread the
residual MLP's step takes half the time then (8.4 against 15.9 ms), a lattice's as long as before;
compiling takes a minute or two. So on a CPU it is done when asked for, on CUDA always.
"""

import contextlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from scf.models.energy_model import EnergyModel
from scf.models.losses import Losses, denoising_and_dual
from scf.training.noising import Batch

# Relative difference from the plain loss at which the compiled one is not believed.
_TOLERANCE = 1e-2


def plain_loss(model: EnergyModel, part: Batch, is_steady: bool) -> Losses:
    """Both losses of some rows, ready for backward."""
    return denoising_and_dual(
        model,
        part.clean_BD,
        part.noise_BD,
        part.sigma_B,
        part.c_BK,
        true_score_BD=part.true_score_BD,
        expected=part.expected,
        is_steady=is_steady,
    )


def wants_compiled(setting: str, device: torch.device) -> bool:
    """Whether the loss is to be compiled: `on`, or `auto` on CUDA."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")


class CompiledLoss:
    """`plain_loss`, compiled; plain again from the first call that does not work.

    The first result is compared with the plain one. Parts of another length than the first are
    computed plainly: compiling for each costs a minute.

    Args:
        talk: Told when and why the compiled loss is given up.
        interrupting: Entered while compiling: `StopSignal.interrupting`.
        backend: What `torch.compile` compiles with.
    """

    def __init__(
        self,
        talk: Callable[[str], object],
        *,
        interrupting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        backend: str = "inductor",
    ) -> None:
        self._talk, self._backend = talk, backend
        self._interrupting = interrupting
        self._compiled: Callable[[EnergyModel, Batch, bool], Losses] | None = None
        self._length = 0
        self.reason = ""  # why it was given up; "" while it was not

    def __call__(self, model: EnergyModel, part: Batch, is_steady: bool) -> Losses:
        """As `plain_loss`."""
        if self._compiled is None and not self.reason:
            self._begin(model, part, is_steady)
        if self._compiled is None or len(part) != self._length:
            return plain_loss(model, part, is_steady)
        return self._compiled(model, part, is_steady)

    def _begin(self, model: EnergyModel, part: Batch, is_steady: bool) -> None:
        device = part.clean_BD.device
        if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            self._give_up("there is no C++ compiler here")
            return
        self._talk("compiling the training step; this takes a minute or two")
        compiled = torch.compile(plain_loss, dynamic=False, backend=self._backend)
        plain = plain_loss(model, part, is_steady).denoising_B.detach()
        try:
            with self._interrupting():
                found = compiled(model, part, is_steady).denoising_B
                inputs = list(model.parameters())
                found.sum().backward(inputs=inputs)  # type: ignore[no-untyped-call]
        except (RuntimeError, NotImplementedError, TypeError, ImportError) as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            return
        finally:
            for parameter in model.parameters():
                parameter.grad = None
        gap = float((found.detach() - plain).abs().max() / plain.abs().max())
        if not gap <= _TOLERANCE:
            self._give_up(f"its loss differs from the plain one by {gap:.1e}")
            return
        self._compiled, self._length = compiled, len(part)

    def _give_up(self, why: str) -> None:
        self.reason, self._compiled = why, None
        self._talk(f"the training step is not compiled: {why}; going on without")
