"""Write and read checkpoints: safetensors and JSON, never pickle.

While a run goes on, checkpoints to resume from lie in `resume/step-N/`, each published whole by one
rename, the one before removed after. At the end the same files are written into the run's own
folder, `digests.json` last, and `resume/` goes. A crash at any moment leaves a complete checkpoint
in one of the two places.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import scf
from scf.models.energy_model import EnergyModel, NetworkConfig
from scf.models.frame import Frame
from scf.models.noise import NoiseRange
from scf.models.physics import constraints_named
from scf.models.record import RecordLayout
from scf.models.record_energy import RecordEnergy
from scf.storage import durable
from scf.storage.partitions import Folder
from scf.training.checkpoint_files import (
    ARCHITECTURES,
    AVERAGE_NAME,
    CONFIG_NAME,
    DIGESTS_NAME,
    FRAME_NAME,
    MODEL_NAME,
    OPTIMIZER_NAME,
    RESUME_FOLDER,
    SCHEMA,
    STATE_NAME,
    STATE_SCHEMA,
    CheckpointDamaged,
    CheckpointIncomplete,
    digests_of,
    find_checkpoint,
    has_shares,
    read_config,
    read_digests,
    read_state,
    verify_digests,
)
from scf.training.distributed import Peers
from scf.training.shares import is_seen_by_all, write_shares
from scf.training.train_config import TrainConfig

_FRAME = "frame."
_BANK = "given_bank_MK"
_ENERGY = "energy."


@dataclass
class Progress:
    """Where a run stands; all of it JSON.

    Attributes:
        step: Steps done.
        seconds: Time spent in training, over all attempts.
        status: `running`, `completed` or `stopped` (by SIGTERM).
        stop_reason: Why it ended: `max_seconds`, `max_steps`, `patience`, `sigterm`; "" while it
        runs.
        best_step: Step of the averaged weights that `ema.safetensors` holds.
        best_loss: Their loss on the validation fossils; None where there are none.
        validation: [step, loss] of each look.
        energy_gap_nats: At the last look (`validation.Look`); None before.
        score_error: Likewise.
        source: What the fossil source needs to go on (a streamed run); {} otherwise.
        contrastive: Verdict of the second phase (`training/verdict.py`); {} where there was none.
    """

    step: int = 0
    seconds: float = 0.0
    status: str = "running"
    stop_reason: str = ""
    best_step: int = 0
    best_loss: float | None = None
    validation: list[list[float]] = field(default_factory=list)
    energy_gap_nats: float | None = None
    score_error: float | None = None
    source: dict[str, Any] = field(default_factory=dict)
    contrastive: dict[str, Any] = field(default_factory=dict)


@dataclass
class Snapshot:
    """All that a checkpoint holds beside `config.json`.

    Attributes:
        energy: The model with the averaged weights that are to be used, and its frame.
        weights: Parameters after the last step, by name.
        running_average: The average as it stands, by name.
        moments: AdamW's state, `<parameter>/<key>`.
        progress: Where the run stands.
    """

    energy: RecordEnergy
    weights: dict[str, Tensor]
    running_average: dict[str, Tensor]
    moments: dict[str, Tensor]
    progress: Progress


def describe(
    energy: RecordEnergy, training: TrainConfig, data: dict[str, Any], parent: str | None
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        energy: The model and its frame.
        training: The run's settings.
        data: What it was trained on: counts, plan.
        parent: Digest of the checkpoint that it went on from.
    """
    scales = {
        field.unit: float(energy.frame.scale_D[energy.layout.slices()[field.name]][0])
        for field in energy.layout.modelled
    }
    return {
        "schema": SCHEMA,
        "architecture": ARCHITECTURES[energy.model.config.body],
        "layout": energy.layout.to_json(),
        "network": asdict(energy.model.config),
        "noise": asdict(energy.noise),
        "constraints": [constraint.name for constraint in energy.model.encoder.constraints],
        "unit_scales": scales,
        "sigma_unit": energy.sigma_unit,
        "sigma_range": list(energy.sigma_range),
        "score_sigma": training.score_sigma * energy.sigma_scale,
        # Where the parent and the weights lay is this machine's matter; `parent` and `data` say
        # what they were.
        "training": {**training.to_json(), "parent": "", "weights": ""},
        "data": data,
        "parent": parent,
        "code": {"scf": scf.__version__, "torch": torch.__version__},
    }


def write_resume(out: Folder, config: dict[str, Any], snapshot: Snapshot) -> Path:
    """Publish a checkpoint to resume from, then remove the older ones. Twice is success."""
    folder = out.folder(RESUME_FOLDER)
    durable.sweep(folder.path)
    name = f"step-{snapshot.progress.step:09d}"
    if not (folder.path / name).exists():
        staged = folder.new_staging(name)
        for file_name, data in _files(config, snapshot).items():
            durable.write_file(staged / file_name, data)
        folder.publish_folder(staged, name)
    _remove_older(folder, name)
    return folder.path / name


def write_resume_shares(
    out: Folder | None,
    config: dict[str, Any],
    energy: RecordEnergy,
    tensors: dict[str, Tensor],
    progress: Progress,
    peers: Peers,
) -> Path | None:
    """`write_resume` by all processes, each its share (`training/shares.py`).

    Args:
        out: The run's folder on the first process; None on the others.
        config: `config.json`.
        energy: The model, sharded, for its frame and its buffers.
        tensors: What is in shares, by name.
        progress: Where the run stands.
        peers: The processes; all call this together.

    Returns:
        The checkpoint's folder, on all processes; None where they share no file system, with
        nothing written.
    """
    name, staged, folder = f"step-{progress.step:09d}", None, None
    if out is not None:
        folder = out.folder(RESUME_FOLDER)
        durable.sweep(folder.path)
        if (folder.path / name).exists():
            shutil.rmtree(folder.path / name)  # of this very step: it is written anew
        staged = folder.new_staging(name)
        files = _beside_shares(config, energy, progress)
        for file_name, data in files.items():
            durable.write_file(staged / file_name, data)
    seen = is_seen_by_all(staged / CONFIG_NAME if staged is not None else None, peers)
    if seen is None:
        if staged is not None:
            shutil.rmtree(staged)
        return None
    digests = write_shares(seen.parent, tensors, peers)
    if folder is not None and staged is not None:
        digests |= digests_of(files)
        durable.write_file(staged / DIGESTS_NAME, _json_bytes(dict(sorted(digests.items()))))
        folder.publish_folder(staged, name)
        _remove_older(folder, name)
    return seen.parent.parent / name


def _remove_older(folder: Folder, name: str) -> None:
    for older in folder.path.iterdir():
        if older.name < name and older.name.startswith("step-"):
            shutil.rmtree(older)


def write_final(out: Folder, config: dict[str, Any], snapshot: Snapshot) -> None:
    """Make the run's own folder a complete checkpoint; `resume/` is no longer needed then."""
    files = _files(config, snapshot)
    out.check()
    (out.path / DIGESTS_NAME).unlink(missing_ok=True)  # from here to the last write: incomplete
    for name, data in files.items():
        out.write_file(name, data)
    shutil.rmtree(out.path / RESUME_FOLDER, ignore_errors=True)


def newest(out: Path) -> Path | None:
    """The checkpoint with most steps, of the final one and those under `resume/`; or None."""
    found = [path for path in (out / RESUME_FOLDER).glob("step-*") if path.is_dir()]
    if (out / DIGESTS_NAME).is_file():
        found.append(out)
    return max(found, key=lambda path: int(read_state(path)["step"]), default=None)


def load_energy(path: Path, *, device: str = "cpu") -> RecordEnergy:
    """The model of a checkpoint (or generation, or release) with its averaged weights.

    Raises:
        CheckpointIncomplete, CheckpointDamaged, OtherArchitecture: What is wrong with it.
    """
    folder = find_checkpoint(path)
    config = read_config(folder)
    if (folder / DIGESTS_NAME).is_file() or folder.name != "model":
        # A release lists the digests of its model itself; elsewhere digests.json is required.
        verify_digests(folder)
    energy = _build(folder, config, AVERAGE_NAME, _load_tensors(folder / AVERAGE_NAME))
    energy.model.to(device)
    return energy


def load_snapshot(folder: Path) -> tuple[dict[str, Any], Snapshot]:
    """`config.json` and everything needed to go on, on the CPU.

    What lies in shares is left as a new model has it: `shares.read_shares` fills it in.

    Raises:
        CheckpointIncomplete, CheckpointDamaged, OtherArchitecture: What is wrong with it.
    """
    config = read_config(folder)
    verify_digests(folder, names=tuple(read_digests(folder)))
    state = read_state(folder)
    if has_shares(folder):
        return config, _without_shares(folder, config, state)
    if not (folder / OPTIMIZER_NAME).is_file():
        raise CheckpointIncomplete(folder, f"{OPTIMIZER_NAME} is missing, so it cannot be resumed")
    tensors = {
        name: _load_tensors(folder / name) for name in (MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME)
    }
    return config, _snapshot_of(folder, config, tensors, state)


def tell_snapshot(
    peers: Peers, config: dict[str, Any] | None, snapshot: Snapshot | None
) -> tuple[dict[str, Any], Snapshot]:
    """What the first process has, for all: the files of a checkpoint, sent instead of written.

    Args:
        peers: The processes.
        config: `config.json` on the first process; None on the others.
        snapshot: Likewise.
    """
    if peers.is_alone:
        assert config is not None
        assert snapshot is not None
        return config, snapshot
    files = _files(config, snapshot) if config is not None and snapshot is not None else {}
    names = (CONFIG_NAME, MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME, STATE_NAME)
    told = {name: peers.tell(files.get(name)) for name in names}
    if config is not None and snapshot is not None:
        return config, snapshot
    heard: dict[str, Any] = json.loads(told[CONFIG_NAME])
    tensors = {
        name: safetensors.torch.load(told[name])
        for name in (MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME)
    }
    state = json.loads(told[STATE_NAME])
    return heard, _snapshot_of(Path("process 0"), heard, tensors, state)


def _snapshot_of(
    where: Path,
    config: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
) -> Snapshot:
    latest = _build(where, config, MODEL_NAME, tensors[MODEL_NAME])
    saved = tensors[OPTIMIZER_NAME]
    return Snapshot(
        energy=_build(where, config, AVERAGE_NAME, tensors[AVERAGE_NAME]),
        weights=dict(latest.model.named_parameters()),
        running_average=_under("average.", saved),
        moments=_under("moments.", saved),
        progress=_progress_of(state),
    )


def _without_shares(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Snapshot:
    """A snapshot whose weights are those of a new model."""
    energy = _build(folder, config, FRAME_NAME, _load_tensors(folder / FRAME_NAME), is_whole=False)
    weights: dict[str, Tensor] = dict(energy.model.named_parameters())
    return Snapshot(energy, weights, weights, {}, _progress_of(state))


def _beside_shares(
    config: dict[str, Any], energy: RecordEnergy, progress: Progress
) -> dict[str, bytes]:
    weights = {name for name, _ in energy.model.named_parameters()}
    buffers = {
        _ENERGY + name: tensor
        for name, tensor in energy.model.state_dict().items()
        if name not in weights
    }
    return {
        CONFIG_NAME: _json_bytes(config),
        FRAME_NAME: _tensor_bytes(_frame_of(energy) | buffers),
        STATE_NAME: _json_bytes({"schema": STATE_SCHEMA, **asdict(progress)}),
    }


def _frame_of(energy: RecordEnergy) -> dict[str, Tensor]:
    found = {_FRAME + name: torch.from_numpy(v) for name, v in energy.frame.arrays().items()}
    return found | {_BANK: torch.from_numpy(energy.given_bank_MK)}


def _progress_of(state: dict[str, Any]) -> Progress:
    known = asdict(Progress())
    return Progress(**{key: value for key, value in state.items() if key in known})


def _files(config: dict[str, Any], snapshot: Snapshot) -> dict[str, bytes]:
    """Every file of a checkpoint, `digests.json` last."""
    energy = snapshot.energy
    shared = _frame_of(energy)
    average = {_ENERGY + name: v for name, v in energy.model.state_dict().items()}
    latest = average | {_ENERGY + name: v for name, v in snapshot.weights.items()}
    resume = {"average." + name: v for name, v in snapshot.running_average.items()}
    resume |= {"moments." + name: v for name, v in snapshot.moments.items()}
    state = {"schema": STATE_SCHEMA, **asdict(snapshot.progress)}
    files = {
        CONFIG_NAME: _json_bytes(config),
        MODEL_NAME: _tensor_bytes(shared | latest),
        AVERAGE_NAME: _tensor_bytes(shared | average),
        OPTIMIZER_NAME: _tensor_bytes(resume),
        STATE_NAME: _json_bytes(state),
    }
    files[DIGESTS_NAME] = _json_bytes(digests_of(files))
    return files


def _build(
    folder: Path,
    config: dict[str, Any],
    name: str,
    tensors: dict[str, Tensor],
    *,
    is_whole: bool = True,
) -> RecordEnergy:
    try:
        layout = RecordLayout.from_json(config["layout"])
        noise = NoiseRange(**config["noise"])
        constraints = constraints_named(config["constraints"])
        model = EnergyModel(layout, NetworkConfig(**config["network"]), noise, constraints)
        model.load_state_dict(_under(_ENERGY, tensors), strict=is_whole)
        frame = Frame(**{key: v.numpy() for key, v in _under(_FRAME, tensors).items()})
        bank = tensors[_BANK].numpy()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{name} does not fit {CONFIG_NAME}: {error}"
        raise CheckpointDamaged(folder, reason) from error
    return RecordEnergy(layout, frame, model.eval(), noise, bank)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointDamaged(path, f"not readable safetensors: {error}") from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(flat)


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
