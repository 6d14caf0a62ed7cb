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

from scf.core.errors import InputError, ScfError, TrainingError, UsageError
from scf.core.units import format_duration
from scf.models.calibration import calibrate
from scf.models.energy_model import EnergyModel
from scf.models.losses import denoising_and_dual
from scf.models.noise import NoiseRange
from scf.models.record_energy import RecordEnergy
from scf.storage.durable import read_json
from scf.storage.partitions import Folder
from scf.training.checkpoint import (
    Progress,
    Snapshot,
    describe,
    load_snapshot,
    newest,
    write_final,
    write_resume,
)
from scf.training.contrastive import try_contrast
from scf.training.data import FossilSource, ModelRows, load_data, model_rows, seed_of
from scf.training.ema import PowerAverage
from scf.training.notes import Notes, StopSignal
from scf.training.starting import (
    choose_device,
    is_antithetic,
    is_small_network,
    starting_energy,
)
from scf.training.train_config import DEVICES, TrainConfig, build_config, preset_names
from scf.training.validation import Validation

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
    energy, parent_digest = starting_energy(data, config, snapshot)
    is_small = is_small_network(energy.model, config.batch_size)
    device = choose_device(config.device, is_small=is_small)
    torch.set_num_threads(config.threads or (1 if is_small else os.cpu_count() or 1))
    model = energy.model.to(device).train()
    parameters = list(model.parameters())
    minibatches = data.minibatches(source, energy.frame, config)
    parent_digest = stored["parent"] if stored is not None else parent_digest
    described = describe(energy, config, source.describe() | data.counts(), parent_digest)
    noise = energy.noise
    is_paired = is_antithetic(config, model)
    held = model_rows(energy.frame, data.validation)
    validation = Validation(held, config, noise, device, is_antithetic=is_paired)

    decay = config.weight_decay_for(energy.layout.size, data.num_fossils)
    optimizer = _optimizer(parameters, decay, device)
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
        drawn, known_BD = _noisy(minibatches.draw(step), noise, generator, device, is_paired)

        # Denoising score matching with EDM's weight, and the dual term (models/losses.py).
        is_steady = is_paired or known_BD is not None
        losses = denoising_and_dual(model, *drawn, true_score_BD=known_BD, is_steady=is_steady)
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

    # Normalise the weights kept, and publish. A run told to end leaves the first out.
    last = _snapshot(energy, model, optimizer, average, best, minibatches.get_state())
    if reason != "sigterm" and config.contrastive_seconds:
        last = try_contrast(last, data, config, device, clock)
    if reason != "sigterm" and config.calibration_particles:
        _calibrate(last.energy, config, device)
    write_final(out, described, last)
    notes.finished(progress)
    return progress


def _noisy(
    rows: ModelRows,
    noise: NoiseRange,
    generator: torch.Generator,
    device: torch.device,
    is_paired: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Clean records, noise, sigma, given numbers; and the true score. On the device.

    Paired: half of the records, each with a noise and with its opposite.
    """
    clean_BD, c_BK, true_score_BD = rows.antithetic() if is_paired else rows
    num = len(clean_BD) // 2 if is_paired else len(clean_BD)
    sigma_B = noise.draw(num, generator)
    noise_BD = torch.randn(clean_BD[:num].shape, generator=generator)
    if is_paired:
        sigma_B, noise_BD = sigma_B.repeat(2), torch.cat([noise_BD, -noise_BD])
    drawn = [tensor.to(device) for tensor in (clean_BD, noise_BD, sigma_B, c_BK)]
    return drawn, None if true_score_BD is None else true_score_BD.to(device)


def _optimizer(
    parameters: list[torch.nn.Parameter], decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; the learning rate is set before each step."""
    is_fused = device.type in {"cpu", "cuda"}
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=is_fused
    )


def _resumed_config(stored: TrainConfig, asked: TrainConfig) -> TrainConfig:
    """The settings a run was begun with, under the limits and on the device now asked for."""
    limits = ("max_seconds", "max_steps", "checkpoint_every_s", "device", "threads")
    return TrainConfig(**stored.to_json() | {name: getattr(asked, name) for name in limits})


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
    num = config.particles_for(energy.layout.size, model.config.body)
    given_NK = energy.draw_given(num, generator)
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
            cache_share=config.cache_share,
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
