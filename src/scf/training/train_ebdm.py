"""Train an energy-based diffusion model on fossils. Reads from top to bottom.

    python -m scf.training.train_ebdm --fossils PATH... --out DIR [--preset base] [--max-seconds 75]
    python -m scf.training.train_ebdm --plan plan.json --vault DIR --out DIR [--resume]

What happens: read the fossils once; fit the frame and the Gaussian; draw noise levels, minibatch
and noise; step denoising score matching and the dual term with AdamW; average the weights; look at
validation fossils now and then and keep the best average; at the end measure the normaliser and
write the checkpoint. The noise of step t is a pure function of (seed, t), so a resumed run repeats
an uninterrupted one bit for bit (one CPU, one number of threads).

SIGTERM ends the run in order: checkpoint, state "stopped", exit code 0. Progress goes to stderr
and, with --progress, as one JSON object a line to a file.
"""

import argparse
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scf.core.errors import InputError, MissingTool, ScfError, TrainingError, UsageError
from scf.core.units import format_duration
from scf.models.calibration import calibrate
from scf.models.energy_model import LATTICE, MLP, BodyDoesNotFit, EnergyModel, NetworkConfig
from scf.models.frame import Symmetry
from scf.models.lattice import levels_for
from scf.models.losses import denoising_and_dual
from scf.models.noise import NoiseRange
from scf.models.record import PERIODIC
from scf.models.record_energy import RecordEnergy
from scf.storage.durable import read_json
from scf.storage.partitions import Folder
from scf.training.checkpoint import (
    Progress,
    Snapshot,
    describe,
    load_energy,
    load_snapshot,
    newest,
    write_final,
    write_resume,
)
from scf.training.checkpoint_files import checkpoint_digest, find_checkpoint
from scf.training.data import FossilSource, TrainingData, load_data, model_rows, seed_of
from scf.training.ema import PowerAverage
from scf.training.notes import Notes, StopSignal
from scf.training.train_config import DEVICES, TrainConfig, build_config, preset_names
from scf.training.validation import Validation

# Multiplications of one forward pass below which one thread is enough.
_ONE_THREAD_MAX = 1e8
# Fields with a side of fewer sites are read whole: there is no neighbourhood to speak of.
_SIDE_MIN = 4
# A run is not called finished for want of progress before this step times the patience.
_PATIENCE_STEPS_MIN = 1000


class Diverged(TrainingError):
    """The loss or a weight is no longer a finite number."""

    def __init__(self, step: int, last_good: Path | None) -> None:
        kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was made"
        super().__init__(
            f"training diverged at step {step}; {kept}",
            remedy="Lower learning_rate, or look for outliers in the fossils; then train again.",
        )


class ParentMismatch(InputError):
    """The parent checkpoint models other fields, or has another network."""

    def __init__(self, parent: str, what: str) -> None:
        super().__init__(
            f"{parent}: {what} differ from this run's",
            remedy="Train without --parent, or with fossils and settings like the parent's.",
        )


@dataclass
class Best:
    """The averaged weights that did best on the validation fossils."""

    weights: list[Tensor]
    progress: Progress = field(default_factory=Progress)


def train(  # noqa: PLR0915 - one straight loop is read more easily than five parts
    source: FossilSource,
    out: Folder,
    config: TrainConfig,
    *,
    resume: bool = False,
    notes: Notes | None = None,
    stop: StopSignal | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Train until a limit is reached; `out` holds the final checkpoint then.

    Args:
        source: The fossils.
        out: Where checkpoints go. Without `resume` it must not hold one.
        config: Settings. On resume everything but the limits comes from the checkpoint.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        notes: Told of progress.
        stop: Asked after each step.
        clock: What `max_seconds` is measured with: `time.process_time` for budgets of CPU time.

    Raises:
        InputError: A subclass: too few fossils, mixed shapes, a field without variance, not finite.
        Diverged: The last good checkpoint stays in `out`.
        ParentMismatch: The parent does not fit.
        UsageError: `out` holds a checkpoint and `resume` is not asked for.
    """
    notes, stop = notes or Notes(talk=lambda _: None), stop or StopSignal()
    found = newest(out.path)
    if found and not resume:
        raise UsageError(
            f"{out.path} holds a checkpoint already",
            remedy="Add --resume to go on from it, or choose another --out.",
        )
    stored, snapshot = load_snapshot(found) if found else (None, None)
    if stored is not None:
        config = _resumed_config(TrainConfig.from_json(stored["training"]), config)
    torch.set_num_threads(config.threads or 1)

    # The fossils, and the coordinates in which the model sees them.
    data = load_data(source, config)
    energy, parent_digest = _starting_energy(data, config, snapshot)
    is_small = _is_small(energy.model, config.batch_size)
    device = choose_device(config.device, is_small=is_small)
    torch.set_num_threads(config.threads or (1 if is_small else os.cpu_count() or 1))
    model = energy.model.to(device).train()
    parameters = list(model.parameters())
    minibatches = data.minibatches(source, energy.frame, config)
    parent_digest = stored["parent"] if stored is not None else parent_digest
    described = describe(energy, config, source.describe() | data.counts(), parent_digest)
    noise = energy.noise
    is_antithetic = _is_antithetic(config, model)
    validation = Validation(
        model_rows(energy.frame, data.validation),
        config,
        noise,
        device,
        is_antithetic=is_antithetic,
    )

    decay = config.weight_decay_for(energy.layout.size, data.num_fossils)
    is_fused = device.type in {"cpu", "cuda"}
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=is_fused
    )
    average = PowerAverage(parameters, gamma=config.ema_gamma)
    best = Best(_copy(average.weights))
    if snapshot is not None:
        best = _restore(snapshot, model, optimizer, average)
        minibatches.set_state(snapshot.progress.source)
    progress = best.progress
    if progress.status == "completed" and _reason_to_stop(config, progress, stop):
        return progress  # nothing is left to do, and the final checkpoint stands
    progress.status, progress.stop_reason = "running", ""

    last_checkpoint = progress.seconds
    last_good = found
    started = clock() - progress.seconds
    while not (reason := _reason_to_stop(config, progress, stop)):
        step = progress.step + 1
        generator = torch.Generator().manual_seed(seed_of(config.seed, "noise", step))

        # Minibatch, noise levels, noise. All drawn on the CPU: the same on every device.
        rows = minibatches.draw(step)
        clean_BD, c_BK, true_score_BD = rows.antithetic() if is_antithetic else rows
        half = len(clean_BD) // 2 if is_antithetic else len(clean_BD)
        sigma_B = noise.draw(half, generator)
        noise_BD = torch.randn(clean_BD[:half].shape, generator=generator)
        if is_antithetic:
            sigma_B, noise_BD = sigma_B.repeat(2), torch.cat([noise_BD, -noise_BD])
        moved = [tensor.to(device) for tensor in (clean_BD, noise_BD, sigma_B, c_BK)]
        known_BD = None if true_score_BD is None else true_score_BD.to(device)

        # Denoising score matching with EDM's weight, and the dual term (models/losses.py).
        is_steady = is_antithetic or known_BD is not None
        losses = denoising_and_dual(model, *moved, true_score_BD=known_BD, is_steady=is_steady)
        denoising, dual = losses.denoising_B.mean(), losses.dual_B.mean()
        loss = denoising + config.dual_weight * dual
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_norm_max)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        total = float(loss.detach())
        if not math.isfinite(total):
            raise Diverged(step, last_good)
        optimizer.step()
        average.update(parameters, step)

        progress.step = step
        progress.seconds = clock() - started
        notes.step(config, progress, (total, float(denoising.detach()), float(dual.detach())))

        # Validation fossils say which average is kept.
        if step % config.evaluate_every == 0:
            _look(validation, model, average, best)
        if progress.seconds - last_checkpoint >= config.checkpoint_every_s:
            if not _all_finite(parameters):
                raise Diverged(step, last_good)
            made = _snapshot(energy, model, optimizer, average, best, minibatches.get_state())
            write_resume(out, described, made)
            last_good, last_checkpoint = newest(out.path), progress.seconds

    if not _all_finite(parameters):
        raise Diverged(progress.step, last_good)
    progress.status = "stopped" if reason == "sigterm" else "completed"
    progress.stop_reason = reason

    # Normalise the weights that are kept, and publish. A run told to end leaves that out.
    last = _snapshot(energy, model, optimizer, average, best, minibatches.get_state())
    if reason != "sigterm" and config.calibration_particles:
        _calibrate(last.energy, config, device)
    write_final(out, described, last)
    notes.finished(progress)
    return progress


def _resumed_config(stored: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """The settings a run was begun with, under the limits and on the device now asked for."""
    limits = ("max_seconds", "max_steps", "checkpoint_every_s", "device", "threads")
    return TrainConfig(**stored.to_json() | {name: getattr(asked, name) for name in limits})


def _is_antithetic(config: TrainConfig, model: EnergyModel) -> bool:
    if config.antithetic == "auto":
        return model.config.body == LATTICE
    return config.antithetic == "on"


def _is_small(model: EnergyModel, batch_size: int) -> bool:
    """Whether one CPU thread is the right size for this network.

    Kernels of a few microseconds lose more by waiting for each other than they gain, badly so when
    the machine has other work: 2-D points ran at 130 steps/s with one thread and at 7 with two, on
    two cores that were shared (docs/LOG.md).
    """
    multiplications = batch_size * sum(parameter.numel() for parameter in model.parameters())
    return multiplications < _ONE_THREAD_MAX


def choose_device(name: str, *, is_small: bool) -> torch.device:
    """The device that a setting means; `auto` takes cuda, then mps, then cpu.

    A small network stays on the CPU rather than go to mps, where starting a hundred kernels a step
    takes longer than running them.

    Raises:
        MissingTool: The named device is not there.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        present["mps"] = present["mps"] and not is_small
        return torch.device(next(kind for kind, is_there in present.items() if is_there))
    if not present[name]:
        raise MissingTool(
            f"device {name!r} is not available to torch {torch.__version__} on this machine",
            remedy="Use --device auto, or install a torch built for that device.",
        )
    return torch.device(name)


def _starting_energy(
    data: TrainingData, config: TrainConfig, snapshot: Snapshot | None
) -> tuple[RecordEnergy, str | None]:
    """The model at step 0 (or the one that is resumed), and its parent's digest."""
    parent_path = find_checkpoint(Path(config.parent)) if config.parent and not snapshot else None
    parent_digest = checkpoint_digest(parent_path) if parent_path else None
    start = snapshot.energy if snapshot else load_energy(parent_path) if parent_path else None
    if start is not None:
        if start.layout != data.layout:
            raise ParentMismatch(config.parent or "the checkpoint to resume", "its fields")
        if start.model.config != network_for(config, data, like=start.model.config):
            raise ParentMismatch(config.parent or "the checkpoint to resume", "its network's sizes")
        start.model.offset_L.zero_()
        # The frame stays the parent's: so generations can be compared, noise for noise.
        return replace(start, given_bank_MK=data.bank_MK), parent_digest
    noise = NoiseRange(
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        log_mean=config.sigma_log_mean,
        log_std=config.sigma_log_std,
        uniform_fraction=config.sigma_uniform_fraction,
    )
    network = network_for(config, data)
    frame, base = data.fit(Symmetry(network.translation_symmetric, network.sign_symmetric))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights", 0))
        model = EnergyModel(data.layout, network, noise)
    model.load_frame(frame, base)
    return RecordEnergy(data.layout, frame, model, noise, data.bank_MK), None


def network_for(
    config: TrainConfig, data: TrainingData, *, like: NetworkConfig | None = None
) -> NetworkConfig:
    """The network that settings mean for these fossils.

    Args:
        config: Settings; `auto` is decided here.
        data: The fossils.
        like: What `auto` means for a run that goes on from such a network.
    """
    shape, is_periodic = data.layout.site_shape, data.layout.boundary == PERIODIC
    body = config.body
    if body == "auto" and like is not None:
        body = like.body
    elif body == "auto":
        is_field = shape is not None and len(shape) <= 3 and (len(shape) >= 2 or is_periodic)
        is_field = is_field and min(shape or (0,)) >= _SIDE_MIN
        body = LATTICE if is_field else MLP
    if body == MLP:
        return NetworkConfig(width=config.width, depth=config.depth, site_width=config.site_width)
    is_same = config.symmetry == "auto" and is_periodic and data.moments.looks_stationary()
    if config.symmetry == "auto" and like is not None:
        is_same = like.translation_symmetric
    if config.symmetries and not is_periodic:
        raise BodyDoesNotFit("symmetries of a lattice need a periodic boundary")
    return NetworkConfig(
        width=config.field_width,
        depth=config.field_depth,
        site_width=0,
        body=LATTICE,
        levels=levels_for(shape or ()),
        translation_symmetric=is_same or bool(config.symmetries),
        sign_symmetric="sign" in config.symmetries,
    )


def _look(
    validation: Validation,
    model: EnergyModel,
    average: PowerAverage,
    best: Best,
) -> None:
    """Keep the average if it does best on the validation fossils.

    Looks are taken at fixed steps and nowhere else, so that a run that was cut chooses as one that
    was not.
    """
    if not validation.num_fossils:
        return
    parameters = list(model.parameters())
    latest = _copy(parameters)
    average.copy_to(parameters)
    loss = validation.loss(model)
    with torch.no_grad():
        for parameter, value in zip(parameters, latest, strict=True):
            parameter.copy_(value)
    progress = best.progress
    progress.validation.append([progress.step, round(loss, 6)])
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, progress.step
        best.weights = _copy(average.weights)


def _reason_to_stop(config: TrainConfig, progress: Progress, stop: StopSignal) -> str:
    """Which limit is reached; "" while none is."""
    if stop.is_set:
        return "sigterm"
    if progress.step >= config.max_steps:
        return "max_steps"
    if progress.seconds >= config.max_seconds:
        return "max_seconds"
    if config.patience and progress.best_loss is not None:
        waited = progress.step >= config.patience * max(progress.best_step, _PATIENCE_STEPS_MIN)
        return "patience" if waited else ""
    return ""


def _snapshot(
    energy: RecordEnergy,
    model: EnergyModel,
    optimizer: torch.optim.Optimizer,
    average: PowerAverage,
    best: Best,
    place: dict[str, Any],
) -> Snapshot:
    """Everything that a checkpoint holds, on the CPU, apart from the running weights."""
    names = [name for name, _ in model.named_parameters()]
    progress = best.progress
    progress.source = place
    if progress.best_loss is None:  # no validation fossils, or not looked at yet
        best.weights, progress.best_step = _copy(average.weights), progress.step
    kept = copy.deepcopy(energy.model).cpu().eval()
    with torch.no_grad():
        for parameter, weight in zip(kept.parameters(), best.weights, strict=True):
            parameter.copy_(weight)
    moments = {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return Snapshot(
        energy=replace(energy, model=kept),
        weights=dict(model.named_parameters()),
        running_average=dict(zip(names, average.weights, strict=True)),
        moments=moments,
        progress=progress,
    )


def _restore(
    snapshot: Snapshot,
    model: EnergyModel,
    optimizer: torch.optim.Optimizer,
    average: PowerAverage,
) -> Best:
    """Take weights, moments and averages back from a checkpoint; returns the best average."""
    device = model.offset_L.device
    best = Best(
        [weight.detach().clone().to(device) for weight in snapshot.energy.model.parameters()],
        snapshot.progress,
    )
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(snapshot.weights[name])
            average.weights[index].copy_(snapshot.running_average[name])
            state = {
                key.rpartition("/")[2]: value if key.endswith("/step") else value.to(device)
                for key, value in snapshot.moments.items()
                if key.rpartition("/")[0] == name
            }
            if state:
                optimizer.state[parameter] = state
    return best


def _calibrate(energy: RecordEnergy, config: TrainConfig, device: torch.device) -> None:
    """Measure the normaliser of the weights that are kept."""
    model = energy.model.to(device)
    generator = torch.Generator().manual_seed(seed_of(config.seed, "calibration", 0))
    given_NK = energy.draw_given(config.particles_for(energy.layout.size), generator)
    c_NK = torch.from_numpy(energy.frame.given_to_model(given_NK)).float().to(device)
    calibrate(model, c_NK, moves=2, generator=generator)
    model.cpu()


def _copy(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    notes = Notes(options.progress)
    stop = StopSignal()
    stop.listen()
    try:
        from scf.training.fossils import open_source

        config = _config_of(options)
        source = open_source(
            options.fossils,
            plan=options.plan,
            vault=options.vault,
            batch_size=config.batch_size,
            seed=config.seed,
            memory_bytes=config.memory_max_bytes,
        )
        out = Folder.at(options.out)
        progress = train(source, out, config, resume=options.resume, notes=notes, stop=stop)
    except ScfError as error:
        kind = "bad_data" if isinstance(error, InputError) else "error"
        notes.write(event="error", error=type(error).__name__, kind=kind, message=str(error))
        sys.stderr.write(f"train_ebdm: {error}\n")
        if error.remedy:
            sys.stderr.write(f"            {error.remedy}\n")
        return error.exit_code
    sys.stderr.write(
        f"{progress.status} ({progress.stop_reason}) at step {progress.step} after "
        f"{format_duration(progress.seconds)}; checkpoint in {out.path}\n"
    )
    return 0


def _config_of(options: argparse.Namespace) -> TrainConfig:
    """Preset, then the JSON file, then the command line."""
    names = ("preset", "max_seconds", "max_steps", "seed", "device")
    flags = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.parent:
        flags["parent"] = str(options.parent)
    stored = read_json(options.config) if options.config else {}
    if not isinstance(stored, dict):
        raise UsageError(f"{options.config}: settings must be a JSON object")
    return build_config(stored, flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.training.train_ebdm",
        description="Train an energy-based diffusion model on fossils.",
        epilog="SIGTERM writes a checkpoint and ends with code 0. Exit codes: 0 ok, 1 failure (the "
        "message says which), 2 usage, 6 disk full, 7 drive missing.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--fossils", nargs="+", type=Path, metavar="PATH", help="NDJSON files or folders"
    )
    source.add_argument("--plan", type=Path, help="a batch plan (JSON); needs --vault")
    parser.add_argument("--vault", type=Path, help="the fossil_vault that the plan's shards lie in")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--config", type=Path, help="settings as JSON (see TrainConfig)")
    parser.add_argument("--preset", choices=preset_names(), help="defaults by name (default: base)")
    parser.add_argument(
        "--max-seconds", type=float, help="limit on training time, resumes included"
    )
    parser.add_argument("--max-steps", type=int, help="limit on steps, resumes included")
    parser.add_argument("--seed", type=int, help="the same seed gives the same run on a CPU")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda, else mps, else cpu")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out, if any"
    )
    parser.add_argument(
        "--parent", type=Path, help="checkpoint whose weights and frame to go on from"
    )
    parser.add_argument(
        "--progress", type=Path, help="append progress here, one JSON object a line"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
