"""Where a training run begins: its network, its weights, its device.

What settings leave to `auto` is decided here, from the fossils and the machine.
"""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scf.core.errors import InputError, MissingTool, UsageError
from scf.models.clusters import fit_clusters
from scf.models.energy_model import LATTICE, MLP, BodyDoesNotFit, EnergyModel, NetworkConfig
from scf.models.frame import Symmetry
from scf.models.lattice import levels_for
from scf.models.losses import denoising_and_dual
from scf.models.noise import NoiseRange
from scf.models.physics import constraints_for
from scf.models.record import PERIODIC, RecordLayout
from scf.models.record_energy import RecordEnergy
from scf.storage.partitions import Folder
from scf.training.checkpoint import (
    Progress,
    Snapshot,
    describe,
    load_energy,
    load_snapshot,
    newest,
    tell_snapshot,
)
from scf.training.checkpoint_files import (
    checkpoint_digest,
    find_checkpoint,
    has_shares,
    read_config,
)
from scf.training.data import TrainingData, model_rows, seed_of
from scf.training.distributed import Peers
from scf.training.shares import unseen
from scf.training.train_config import TrainConfig

# Multiplications of one forward pass below which one thread is enough.
_ONE_THREAD_MAX = 1e8
# Fields with a side of fewer sites are read whole: there is no neighbourhood to speak of.
_SIDE_MIN = 4


class ParentMismatch(InputError):
    """The parent checkpoint models other fields, or has another network."""

    def __init__(self, parent: str, what: str) -> None:
        super().__init__(
            f"{parent or 'the checkpoint to resume'}: {what} differ from this run's",
            remedy="Train without --parent, or with fossils and settings like the parent's."
            if parent
            else "Resume with the fossils that the run was begun with, or choose another --out.",
        )


class OtherWeights(UsageError):
    """A run goes on with other weights of its fossils than it was begun with."""

    def __init__(self, had: str | None, has: str | None) -> None:
        super().__init__(
            f"the run was begun with weights of fossils {had or 'none'} (SHA-256), these are "
            f"{has or 'none'}",
            remedy="Give the file that it was begun with (--weights), or choose another --out.",
        )


# Settings that are the machine's and the day's, not the run's: they do not change its path.
_OF_THE_DAY = (
    "max_seconds", "max_steps", "checkpoint_every_s", "device", "threads", "microbatch", "sharding",
    "peer_limit_s", "weights",
)  # fmt: skip


def settle(
    config: TrainConfig, out: Folder | None, peers: Peers, *, resume: bool
) -> tuple[TrainConfig, Path | None]:
    """The settings that all processes train under, and the checkpoint that is gone on from.

    Args:
        config: What is asked for.
        out: The run's folder; None on all processes but the first, which speaks for them.
        peers: The processes.
        resume: Go on from the newest checkpoint in `out`, if there is one.

    Raises:
        UsageError: `out` holds a checkpoint and `resume` is not asked for.
    """
    found = newest(out.path) if out is not None else None
    if found and not resume:
        raise UsageError(
            f"{found} holds a checkpoint already",
            remedy="Add --resume to go on from it, or choose another --out.",
        )
    if found:
        # The settings a run was begun with, under the limits and on the device now asked for.
        stored = TrainConfig.from_json(read_config(found)["training"])
        config = replace(stored, **{name: getattr(config, name) for name in _OF_THE_DAY})
    told = peers.tell(json.dumps(config.to_json()).encode() if peers.is_first else None)
    return TrainConfig.from_json(json.loads(told)), found


def beginning(
    data: TrainingData,
    config: TrainConfig,
    found: Path | None,
    about: dict[str, Any],
    peers: Peers,
) -> tuple[dict[str, Any], Snapshot]:
    """`config.json` of the run and where it begins: anew, from its parent, or where it was left.

    The first process reads or makes it, the others are told.

    Args:
        data: The fossils.
        config: Settings.
        found: The checkpoint to go on from.
        about: What the fossils are, for `config.json`.
        peers: The processes.

    Raises:
        CheckpointIncomplete, CheckpointDamaged, OtherArchitecture: Of a checkpoint or parent.
        ParentMismatch: It does not fit.
    """
    if not peers.is_first:
        return tell_snapshot(peers, None, None)
    stored, snapshot = load_snapshot(found) if found else (None, None)
    energy, parent_digest = starting_energy(data, config, snapshot)
    if stored is not None:
        had, has = (data_.get("weights_sha256") for data_ in (stored["data"], about))
        if had != has:
            raise OtherWeights(had, has)
        parent_digest = stored["parent"]
    if snapshot is None:
        weights: dict[str, Tensor] = dict(energy.model.named_parameters())
        snapshot = Snapshot(energy, weights, weights, {}, Progress())
    else:
        snapshot = replace(snapshot, energy=energy)
    described = describe(energy, config, about | data.counts(), parent_digest)
    return tell_snapshot(peers, described, snapshot)


def shares_of(found: Path | None, peers: Peers) -> Path | None:
    """The checkpoint to go on from, told to all processes, where its weights lie in shares.

    Raises:
        UsageError: They do, and not every process sees them.
    """
    told = peers.tell(os.fsencode(found or "") if peers.is_first else None)
    path = Path(os.fsdecode(told)) if told else None
    is_in_shares = peers.agree(float(path is not None and has_shares(path)))[0]
    if path is None or not is_in_shares:
        return None
    if peers.agree(float(not has_shares(path)))[0]:
        raise unseen(path)
    return path


def starting_energy(
    data: TrainingData, config: TrainConfig, snapshot: Snapshot | None
) -> tuple[RecordEnergy, str | None]:
    """The model at step 0 (or the one that is resumed), and its parent's digest."""
    parent_path = find_checkpoint(Path(config.parent)) if config.parent and not snapshot else None
    parent_digest = checkpoint_digest(parent_path) if parent_path else None
    start = snapshot.energy if snapshot else load_energy(parent_path) if parent_path else None
    if start is not None:
        if start.layout != data.layout:
            raise ParentMismatch("" if snapshot else config.parent, "its fields")
        if start.model.config != network_for(config, data, like=start.model.config):
            raise ParentMismatch("" if snapshot else config.parent, "its network's sizes")
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
    averaged = network.averaged.split(",")
    symmetry = Symmetry(
        translation=network.translation_symmetric,
        sign=network.sign_symmetric or "sign" in averaged,
        rotation="rotation" in averaged,
    )
    frame, base = data.fit(symmetry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights", 0))
        model = EnergyModel(data.layout, network, noise)
    size = data.layout.size
    model.load_frame(frame, base, (data.moments.low[:size], data.moments.high[:size]))
    if data.rows is not None and data.rows.true_score_ND is not None:
        true_score_ND = model_rows(frame, data.rows).true_score_ND
        assert true_score_ND is not None
        model.base.load_true_score(true_score_ND)
    if model.clusters is not None:
        z_ND = model_rows(frame, data.rows if data.rows is not None else data.validation).z_ND
        seed = seed_of(config.seed, "clusters", 0)
        model.clusters.load(fit_clusters(z_ND.double().numpy(), config.clusters, seed=seed))
    if model.evidence is not None:
        z_ND, c_NK, _ = model_rows(frame, data.rows if data.rows is not None else data.validation)
        model.evidence.load(model.encoder, model.base, z_ND, c_NK, config.residual_weight)
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
        if "translation" in config.symmetries:
            raise BodyDoesNotFit("symmetry 'translation' is built into a lattice only")
        return NetworkConfig(
            width=config.width,
            depth=config.depth,
            site_width=config.site_width,
            has_bounds=_has_bounds(config, data.layout, like),
            evidence=_evidence(config, data.layout, like),
            averaged=_averaged(config, {"sign", "rotation"}, like),
            clusters=config.clusters,
        )
    if config.clusters:
        raise BodyDoesNotFit("clusters are built into an mlp only")
    is_same = config.symmetry == "auto" and is_periodic and data.moments.looks_stationary()
    if config.symmetry == "auto" and like is not None:
        is_same = like.translation_symmetric
    built_in = config.symmetries & {"translation", "sign"}
    if built_in and not is_periodic:
        raise BodyDoesNotFit(f"symmetry {config.symmetry!r} needs a periodic boundary")
    # The denoised field of a whole Gaussian brings the grid to each site: coarser grids then cost
    # more than they give (phi^4 16x16, 26 CPU seconds: effective share 0.96 with one, 0.91 with
    # two).
    is_whole = data.moments.is_full or data.moments.waves is not None
    levels = config.field_levels or (1 if is_whole else levels_for(shape or ()))
    if like is not None and not config.field_levels:
        levels = like.levels
    if any(length % 2 ** (levels - 1) for length in shape or ()):
        raise BodyDoesNotFit(
            f"a grid of {list(shape or ())} sites cannot be halved {levels - 1} times"
        )
    if "rotation" in config.symmetries and data.moments.waves is not None:
        raise BodyDoesNotFit(
            f"symmetry 'rotation' is not built into the Gaussian of {data.layout.size} numbers"
        )
    return NetworkConfig(
        width=config.field_width,
        depth=config.field_depth,
        site_width=0,
        body=LATTICE,
        levels=levels,
        modes=config.field_modes or (like.modes if like is not None else 0),
        powers=like.powers if like is not None else config.field_powers > 0,
        translation_symmetric=is_same or bool(built_in),
        sign_symmetric="sign" in config.symmetries,
        has_bounds=_has_bounds(config, data.layout, like),
        evidence=_evidence(config, data.layout, like),
        averaged=_averaged(config, {"rotation"}, like),
    )


def _averaged(config: TrainConfig, possible: set[str], like: NetworkConfig | None) -> str:
    """Symmetries that are had by averaging over images."""
    if config.symmetry == "auto" and like is not None:
        return like.averaged
    return ",".join(sorted(config.symmetries & possible))


def _has_bounds(config: TrainConfig, layout: RecordLayout, like: NetworkConfig | None) -> bool:
    """Whether known bounds of these fields go into the energy."""
    if like is not None and config.bounds == "auto":
        return like.has_bounds
    names = [field.name for field in (*layout.modelled, *layout.given)]
    modelled = {field.name for field in layout.modelled}
    known = any(c.bound is not None and c.bound.field in modelled for c in constraints_for(names))
    return known and config.bounds != "off"


def _evidence(config: TrainConfig, layout: RecordLayout, like: NetworkConfig | None) -> str:
    """Constraints on these fields whose residual goes into the energy; bounds do in any case."""
    if like is not None:
        return like.evidence
    names = [field.name for field in (*layout.modelled, *layout.given)]
    counted = [c.name for c in constraints_for(names) if c.bound is None]
    return ",".join(counted) if config.residual_weight else ""


def is_antithetic(config: TrainConfig, model: EnergyModel) -> bool:
    """Whether each fossil is taken with a noise and with its opposite."""
    if config.antithetic == "auto":
        return model.config.body == LATTICE
    return config.antithetic == "on"


def shares_targets(config: TrainConfig, data: TrainingData) -> bool:
    """Whether targets are means over the records of the minibatch (`losses.expected_noise`).

    Raises:
        UsageError: They are asked for, and the fossils have given fields or a true score.
    """
    has_score = data.rows is not None and data.rows.true_score_ND is not None
    is_possible = not data.layout.given_size and not has_score
    if config.targets == "shared" and not is_possible:
        raise UsageError(
            "targets 'shared' need records without given fields and without a true score",
            remedy="Leave targets at 'auto'.",
        )
    return is_possible and config.targets != "own"


def is_small_network(model: EnergyModel, batch_size: int) -> bool:
    """Whether one CPU thread is the right size for this network.

    Kernels of a few microseconds lose more by waiting for each other than they gain, badly so when
    the machine has other work: 2-D points ran at 130 steps/s with one thread and at 7 with two, on
    two cores that were shared (docs/LOG.md).
    """
    multiplications = batch_size * sum(parameter.numel() for parameter in model.parameters())
    return multiplications < _ONE_THREAD_MAX


def device_for(
    energy: RecordEnergy, config: TrainConfig, peers: Peers, talk: Callable[[str], object]
) -> tuple[torch.device, int]:
    """The device that a run trains on, and the CPU threads of this process."""
    is_small = is_small_network(energy.model, config.batch_size // peers.world_size)
    device = choose_device(config.device, is_small=is_small, local_rank=peers.local_rank)
    if device.type == "mps" and (lack := what_fails_on(device, energy)):
        talk(f"mps lacks something that this model needs ({lack}): training on the CPU")
        device = torch.device("cpu")
    cores = max(1, (os.cpu_count() or 1) // peers.local_world_size)
    return device, config.threads or (1 if is_small else cores)


def what_fails_on(device: torch.device, energy: RecordEnergy) -> str:
    """Why a training step of this model does not run on a device; "" where it does."""
    model = copy.deepcopy(energy.model)
    size, given_size = energy.layout.size, energy.layout.given_size
    try:
        model.to(device)
        row_BD, sigma_B = torch.ones(2, size, device=device), torch.ones(2, device=device)
        c_BK = torch.zeros(2, given_size, device=device)
        losses = denoising_and_dual(model, row_BD, row_BD, sigma_B, c_BK)
        loss = losses.denoising_B.sum() + losses.dual_B.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        float(loss.detach())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        return str(error).strip().splitlines()[0][:200]
    return ""


def choose_device(name: str, *, is_small: bool, local_rank: int = 0) -> torch.device:
    """The device that a setting means; `auto` takes cuda, then mps, then cpu.

    A small network stays on the CPU rather than go to mps, where starting a hundred kernels a step
    takes longer than running them.

    Of several processes each takes the CUDA device of its number on the machine, and none mps.

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
        name = next(kind for kind, is_there in present.items() if is_there)
    if not present[name]:
        raise MissingTool(
            f"device {name!r} is not available to torch {torch.__version__} on this machine",
            remedy="Use --device auto, or install a torch built for that device.",
        )
    if name == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device(name)
