"""All that changes while a model is trained: weights, AdamW's moments, two averages, the progress.

The running average follows the weights; the best is the running average that did best on the
validation fossils at one of the looks. Looks are taken at fixed steps and nowhere else, so that a
run that was cut chooses as one that was not.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.record_energy import RecordEnergy
from scf.training.checkpoint import Progress, Snapshot
from scf.training.distributed import Peers
from scf.training.ema import PowerAverage
from scf.training.sharding import dealt, is_sharded, local, placed, release, whole
from scf.training.shares import read_shares
from scf.training.train_config import TrainConfig
from scf.training.validation import Validation

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Weights:
    """Weights in training.

    Args:
        energy: The model, on its device, sharded or not.
        config: Settings of the optimiser and the average.
        decay: Weight decay.
        peers: The processes that train together.

    Attributes:
        progress: Where the run stands.
    """

    def __init__(
        self, energy: RecordEnergy, config: TrainConfig, decay: float, peers: Peers
    ) -> None:
        self._energy = energy
        self._model = energy.model
        self._config = config
        self._peers = peers
        self.parameters = list(self._model.parameters())
        self.progress = Progress()
        is_fused = self.parameters[0].device.type in {"cpu", "cuda"}
        self._optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=is_fused
        )
        # Where AdamW keeps the number of its step: fused on the weights' device, else on the CPU.
        self._step_device = self.parameters[0].device if is_fused else torch.device("cpu")
        self._average = PowerAverage(self._shares(), gamma=config.ema_gamma)
        self._best = _copy(self._average.weights)

    def step(self, step: int) -> None:
        """Take the step that the gradients ask for."""
        self._shorten(self._config.gradient_norm_max)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate_at(step)
        self._optimizer.step()
        self._average.update(self._shares(), step)
        self.progress.step = step

    def _shorten(self, norm_max: float) -> None:
        """`clip_grad_norm_`, which on a CPU takes longer than AdamW for a small network."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if is_sharded(self.parameters) or self.parameters[0].device.type != "cpu":
            torch.nn.utils.clip_grad_norm_(self.parameters, norm_max)
            return
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not norm <= norm_max:
            torch._foreach_mul_(gradients, norm_max / (norm + 1e-6))

    def are_finite(self) -> bool:
        """Whether every weight is a finite number, on all processes."""
        ours = all(bool(share.isfinite().all()) for share in self._shares())
        return self._peers.agree(float(not ours))[0] == 0

    def look(self, validation: Validation) -> None:
        """Try the average on the validation fossils, and keep it if it does best."""
        if not validation.num_fossils:
            return
        latest = _copy(self._shares())
        self._average.copy_to(self._shares())
        release(self._model)
        found = validation.look(self._model, self._peers)
        for share, value in zip(self._shares(), latest, strict=True):
            share.copy_(value)
        release(self._model)
        progress = self.progress
        progress.validation.append([progress.step, round(found.loss, 6)])
        progress.energy_gap_nats = round(found.energy_gap_nats, 6)
        progress.score_error = round(found.score_error, 6)
        if progress.best_loss is None or found.loss < progress.best_loss:
            progress.best_loss, progress.best_step = found.loss, progress.step
            self._best = _copy(self._average.weights)

    def snapshot(self) -> Snapshot | None:
        """Everything that a checkpoint holds, on the CPU of the first process; None elsewhere.

        All processes call it together where weights are sharded.
        """
        progress = self.progress
        if progress.best_loss is None:  # no validation fossils, or not looked at yet
            self._best, progress.best_step = _copy(self._average.weights), progress.step
        names = [name for name, _ in self._model.named_parameters()]
        weights = self._whole(self._shares())
        running_average, best = self._whole(self._average.weights), self._whole(self._best)
        moments: dict[str, Tensor] = {}
        for name, parameter in zip(names, self.parameters, strict=True):
            # In one order everywhere: gathering is a meeting, and a mix-up would not be noticed.
            for key, value in sorted(self._optimizer.state.get(parameter, {}).items()):
                if key == "step":
                    moments[f"{name}/{key}"] = torch.as_tensor(value).to("cpu", copy=True)
                elif (full := whole(local(value), parameter, self._peers)) is not None:
                    moments[f"{name}/{key}"] = full
        if not self._peers.is_first:
            return None
        return Snapshot(
            energy=replace(
                self._energy, model=self._with_weights(dict(zip(names, best, strict=True)))
            ),
            weights=dict(zip(names, weights, strict=True)),
            running_average=dict(zip(names, running_average, strict=True)),
            moments=moments,
            progress=progress,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, in place: writing to these tensors changes the run.

        Sharded where the weights are; for `training/shares.py`.
        """
        progress = self.progress
        if progress.best_loss is None:
            self._best, progress.best_step = _copy(self._average.weights), progress.step
        found: dict[str, Tensor] = {}
        names = [name for name, _ in self._model.named_parameters()]
        for index, (name, parameter) in enumerate(zip(names, self.parameters, strict=True)):
            for kind, share in (
                ("weights", local(parameter)),
                ("average", self._average.weights[index]),
                ("best", self._best[index]),
            ):
                found[f"{kind}.{name}"] = placed(share, parameter)
            state = self._optimizer.state[parameter]
            if not state:  # no step was taken yet
                share = local(parameter)
                state["step"] = torch.zeros((), device=self._step_device)
                state |= {key: placed(torch.zeros_like(share), parameter) for key in _MOMENTS}
            for key in ("step", *_MOMENTS):
                found[f"moments.{name}/{key}"] = state[key]
        return found

    def restore_shares(self, folder: Path) -> None:
        """Take all of it back from shares that however many processes wrote."""
        read_shares(folder, self.tensors(), self._peers)
        release(self._model)

    def restore(self, snapshot: Snapshot) -> None:
        """Take all of it back from a checkpoint, under whatever number of processes."""
        self.progress = snapshot.progress
        best = dict(snapshot.energy.model.named_parameters())
        names = [name for name, _ in self._model.named_parameters()]
        for index, (name, parameter) in enumerate(zip(names, self.parameters, strict=True)):
            local(parameter).copy_(local(dealt(snapshot.weights[name], parameter)))
            average = local(dealt(snapshot.running_average[name], parameter))
            self._average.weights[index].copy_(average)
            self._best[index].copy_(local(dealt(best[name], parameter)))
            state = {
                key.rpartition("/")[2]: value.to(self._step_device)
                if key.endswith("/step")
                else dealt(value, parameter)
                for key, value in snapshot.moments.items()
                if key.rpartition("/")[0] == name
            }
            if state:
                self._optimizer.state[parameter] = state
        release(self._model)

    def _shares(self) -> list[Tensor]:
        return [local(parameter) for parameter in self.parameters]

    def _whole(self, shares: Iterable[Tensor]) -> list[Tensor]:
        """Whole tensors in the order of the parameters; [] but on the first process."""
        found = [
            whole(share, parameter, self._peers)
            for share, parameter in zip(shares, self.parameters, strict=True)
        ]
        return [tensor for tensor in found if tensor is not None]

    def _with_weights(self, weights: dict[str, Tensor]) -> EnergyModel:
        """A model of its own on the CPU with these weights."""
        model = self._model
        with torch.random.fork_rng(devices=[]):
            kept = EnergyModel(
                self._energy.layout, model.config, self._energy.noise, model.encoder.constraints
            )
        kept.load_state_dict(dict(model.named_buffers()) | weights, strict=False)
        return kept.eval()


def _copy(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
