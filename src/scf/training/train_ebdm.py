"""Train an energy-based diffusion model on fossils. Reads from top to bottom.

    python -m scf.training.train_ebdm --fossils PATH... --out DIR [--preset base] [--max-seconds 75]
    python -m scf.training.train_ebdm --plan plan.json --vault DIR --out DIR [--resume]
    torchrun --nproc-per-node 2 -m scf.training.train_ebdm ...   (docs/operations/several-gpus.md)

What happens: read the fossils once; fit the frame and the Gaussian; draw noise levels, minibatch
and noise; step denoising score matching and the dual term with AdamW; average the weights; look at
validation fossils now and then and keep the best average; at the end measure the normaliser and
write the checkpoint. The noise of step t is a pure function of (seed, t), so a resumed run repeats
an uninterrupted one bit for bit (one CPU, one number of threads). Under torchrun each process takes
its share of every minibatch; the curve is that of one process.

SIGTERM ends the run in order: checkpoint, state "stopped", exit code 0. Progress goes to stderr
and, with --progress, as one JSON object a line to a file.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from scf.core.errors import InputError, ScfError, TrainingError, UsageError
from scf.core.units import format_duration
from scf.models.calibration import calibrate
from scf.models.record_energy import RecordEnergy
from scf.storage.durable import read_json
from scf.storage.partitions import Folder
from scf.training.checkpoint import Progress, Snapshot, write_final
from scf.training.contrastive import try_contrast
from scf.training.data import FossilSource, TrainingData, load_data, model_rows, seed_of
from scf.training.distributed import ALONE, Peers, end_process
from scf.training.gradients import Gradients, naming_want_of_memory
from scf.training.noising import noisy
from scf.training.notes import Interrupted, Notes, StopSignal
from scf.training.saving import save
from scf.training.sharding import shard
from scf.training.starting import (
    beginning,
    device_for,
    is_antithetic,
    settle,
    shares_of,
    shares_targets,
)
from scf.training.tensorboard import Board
from scf.training.train_config import DEVICES, TrainConfig, build_config, preset_names
from scf.training.validation import Validation
from scf.training.weights import Weights

# A run is not called finished for want of progress before this step times the patience.
_PATIENCE_STEPS_MIN = 1000
_BAD_DATA_REMEDY = (
    "Look at the files with `scf fossil validate`; `scf ingest` makes fossils from data."
)
# Why a run ends; where processes differ, the last of this list that one of them names.
_REASONS = ("", "patience", "max_steps", "max_seconds", "sigterm")


class Diverged(TrainingError):
    """The loss or a weight is no longer a finite number."""

    def __init__(self, step: int, last_good: Path | None) -> None:
        kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was made"
        super().__init__(
            f"training diverged at step {step}; {kept}",
            remedy="Lower learning_rate, or look for outliers in the fossils; then train again.",
        )


def train(  # noqa: C901, PLR0915 - one straight loop is read more easily than five parts
    source: FossilSource,
    out: Folder | None,
    config: TrainConfig,
    *,
    resume: bool = False,
    notes: Notes | None = None,
    stop: StopSignal | None = None,
    clock: Callable[[], float] = time.monotonic,
    peers: Peers = ALONE,
) -> Progress:
    """Train until a limit is reached; `out` holds the final checkpoint then.

    Args:
        source: The fossils.
        out: Where checkpoints go. Without `resume` it must not hold one. Of several processes the
            first alone has one; the others give None.
        config: Settings. On resume everything but the limits comes from the checkpoint.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        notes: Told of progress.
        stop: Asked after each step.
        clock: What `max_seconds` is measured with: `time.process_time` for budgets of CPU time.
        peers: The processes that train together.

    Raises:
        InputError: A subclass: too few fossils, mixed shapes, a field without variance, not finite.
        Diverged: The last good checkpoint stays in `out`.
        OutOfMemory: Not one fossil's pass fits.
        ParentMismatch: The parent does not fit.
        PeerLost, PeersDiffer: Another process ended, or sees other fossils.
        UsageError: `out` holds a checkpoint and `resume` is not asked for.
    """
    notes, stop = notes or Notes(talk=lambda _: None), stop or StopSignal()
    config, last_good = settle(config, out, peers, resume=resume)
    torch.set_num_threads(config.threads or 1)

    # The fossils, and the coordinates in which the model sees them.
    with stop.interrupting():
        data = load_data(source, config)
    peers.check_same("fossils", [data.digest.encode()])
    described, begin = beginning(data, config, last_good, source.describe(), peers)
    energy, noise = begin.energy, begin.energy.noise
    device, num_threads = device_for(energy, config, peers, notes.talk)
    torch.set_num_threads(num_threads)
    model = energy.model.to(device).train()
    is_paired = is_antithetic(config, model)
    minibatches = data.minibatches(source, energy.frame, config, peers, is_paired=is_paired)
    held = model_rows(energy.frame, data.validation)
    is_shared = shares_targets(config, data)
    validation = Validation(
        held, config, noise, device, is_antithetic=is_paired, is_shared=is_shared
    )

    # Weights, their moments and averages.
    if config.sharding == "fsdp2" and not peers.is_alone:
        shard(model, peers, device, entry="derivatives")
    decay = config.weight_decay_for(energy.layout.size, data.num_fossils)
    weights = Weights(energy, config, decay, peers)
    weights.restore(begin)
    if shares := shares_of(last_good, peers):
        weights.restore_shares(shares)
    num_rows = (2 if is_paired else 1) * math.ceil(minibatches.num_places / peers.world_size)
    gradients = Gradients(
        model,
        config,
        peers,
        is_paired=is_paired,
        num_rows_max=num_rows,
        talk=notes.talk,
        interrupting=stop.interrupting,
    )
    progress = weights.progress
    if progress.step:
        minibatches.set_state(progress.source)
    if progress.status == "completed" and _reason_to_stop(config, progress, stop):
        return progress  # nothing is left to do, and the final checkpoint stands
    progress.status, progress.stop_reason = "running", ""
    if config.parent and progress.step == 0:
        weights.look(validation)  # so that a child is never kept that is worse than its parent

    last_saved = progress.seconds
    started = clock() - progress.seconds
    while True:
        # All processes stop, and save, before the same step.
        wanted, is_due = peers.agree(
            _REASONS.index(_reason_to_stop(config, progress, stop)),
            progress.seconds - last_saved >= config.checkpoint_every_s,
        )
        progress.source = minibatches.get_state()
        if (is_due or wanted) and not weights.are_finite():
            raise Diverged(progress.step, last_good)
        if wanted:
            break
        if is_due:
            last_saved = progress.seconds
            last_good = save(out, described, energy, weights, peers, notes.talk) or last_good
        step = progress.step + 1

        # Minibatch, noise levels, noise. All drawn on the CPU: the same on every device, the same
        # for a fossil whichever process has it.
        drawn = minibatches.draw(step)
        batch = noisy(drawn, noise, seed=config.seed, step=step,
                      num_places=minibatches.num_places, is_paired=is_paired,
                      is_shared=is_shared, peers=peers, device=device)  # fmt: skip

        # Denoising score matching, the dual term, and the step that their gradient asks for.
        try:
            losses = gradients.of(batch)
        except Interrupted:  # while compiling: no step was taken
            wanted = _REASONS.index("sigterm")
            break
        if losses is None:
            continue  # a minibatch of validation fossils alone
        if not math.isfinite(losses.total):
            raise Diverged(step, last_good)
        weights.step(step)
        progress.seconds = clock() - started
        notes.step(config, progress, losses)

        # Validation fossils say which average is kept.
        if step % config.evaluate_every == 0:
            weights.look(validation)

    reason = _REASONS[int(wanted)]
    progress.status = "stopped" if reason == "sigterm" else "completed"
    progress.stop_reason = reason

    last = weights.snapshot()
    if out is not None and last is not None:
        write_final(out, described, _finished(last, config, device, data, clock, stop))
    notes.finished(progress)
    return progress


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


def _finished(
    last: Snapshot,
    config: TrainConfig,
    device: torch.device,
    data: TrainingData,
    clock: Callable[[], float],
    stop: StopSignal,
) -> Snapshot:
    """After the second phase, and normalised: the first process's work, the others are through.

    A run told to end leaves both out, and can be told so in the middle of them.
    """
    device = torch.device("cpu") if device.type == "mps" else device  # float64 is needed here
    try:
        with stop.interrupting():
            if config.contrastive_seconds:
                last = try_contrast(last, data, config, device, clock)
            if config.calibration_particles:
                _calibrate(last.energy, config, device)
    except Interrupted:
        last.progress.status, last.progress.stop_reason = "stopped", "sigterm"
    return last


def _calibrate(energy: RecordEnergy, config: TrainConfig, device: torch.device) -> None:
    """Measure the normaliser of the weights that are kept."""
    model = energy.model.to(device)
    generator = torch.Generator().manual_seed(seed_of(config.seed, "calibration", 0))
    num = config.particles_for(energy.layout.size, model.config.body)
    given_NK = energy.draw_given(num, generator)
    c_NK = torch.from_numpy(energy.frame.given_to_model(given_NK)).float().to(device)
    calibrate(model, c_NK, moves=2, generator=generator)
    model.cpu()


def main(arguments: Sequence[str] | None = None, *, stop_file: Path | None = None) -> int:
    """Run from the command line; returns the exit code.

    Args:
        arguments: In place of those of the process.
        stop_file: In a thread, which hears no signals: the run ends once this file is there.
    """
    options = _parser().parse_args(arguments)
    stop = StopSignal(stop_file)
    if stop_file is None:
        stop.listen()
    notes, peers = Notes(options.progress, every_step=options.every_step), ALONE
    try:
        from scf.training.fossils import open_source

        config = _config_of(options)
        peers = Peers.join(os.environ, limit_s=config.peer_limit_s)
        if not peers.is_first:
            notes = Notes(talk=lambda _: None)
        elif options.tensorboard:
            notes.board = Board(options.tensorboard)
        source = open_source(
            options.fossils,
            plan=options.plan,
            vault=options.vault,
            batch_size=config.batch_size,
            seed=config.seed,
            memory_bytes=config.memory_max_bytes,
            cache_share=config.cache_share,
            weights=Path(config.weights) if config.weights else None,
        )
        with contextlib.closing(source), naming_want_of_memory():
            if source.refusals.count:
                told = ", ".join(f"{num} {kind}" for kind, num in source.refusals.kinds.items())
                first = source.refusals.first[0]
                notes.talk(
                    f"left out: {told}; first {first.path}, line {first.line}: {first.reason}"
                )
            out = Folder.at(options.out) if peers.is_first else None
            progress = train(
                source, out, config, resume=options.resume, notes=notes, stop=stop, peers=peers
            )
    except ScfError as error:
        kind = "bad_data" if isinstance(error, InputError) else "error"
        notes.write(event="error", error=type(error).__name__, kind=kind, message=str(error))
        who = "train_ebdm" if peers.is_alone else f"train_ebdm, process {peers.rank}"
        sys.stderr.write(f"{who}: {error}\n")
        remedy = error.remedy or (_BAD_DATA_REMEDY if kind == "bad_data" else "")
        if remedy:
            sys.stderr.write(f"            {remedy}\n")
        return error.exit_code
    except Interrupted:
        notes.write(event="finished", status="stopped", reason="sigterm", step=0)
        sys.stderr.write("stopped while reading fossils; no step was taken, nothing was written\n")
        return 0
    peers.leave()
    if peers.is_first:
        sys.stderr.write(
            f"{progress.status} ({progress.stop_reason}) at step {progress.step} after "
            f"{format_duration(progress.seconds)}; checkpoint in {options.out}\n"
        )
    return 0


def _config_of(options: argparse.Namespace) -> TrainConfig:
    """Preset, then the JSON file, then the command line."""
    names = ("preset", "max_seconds", "max_steps", "seed", "device")
    flags = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name in ("parent", "weights"):
        if value := getattr(options, name):
            flags[name] = str(value)
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
        "--weights", type=Path, help="how often each fossil is used (docs/formats/weights.md)"
    )
    parser.add_argument(
        "--progress", type=Path, help="append progress here, one JSON object a line"
    )
    parser.add_argument("--tensorboard", type=Path, help="folder for TensorBoard's event files")
    parser.add_argument(
        "--every-step", action="store_true", help="note each step there (default: two a second)"
    )
    return parser


if __name__ == "__main__":
    end_process(main())
