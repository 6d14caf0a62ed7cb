"""A checkpoint as files: which there are, and whether they are what they were. No torch here.

A checkpoint is a folder (docs/formats/checkpoint.md):

    config.json           everything needed to rebuild the model, and how it was made
    model.safetensors     weights after the last step, with the frame
    ema.safetensors       averaged weights, calibrated: what is scored, sampled and released
    optimizer.safetensors moments and running average, to resume from (not released)
    state.json            where training stands
    digests.json          {file: sha256} of the others, written last: without it nothing is complete
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.errors import InputError
from scf.core.identity import is_sha256_hex, sha256_hex
from scf.storage.durable import read_json

SCHEMA = "scf.checkpoint/1"
STATE_SCHEMA = "scf.training_state/1"
# By the network's body (`scf.models.energy_model.NetworkConfig`).
ARCHITECTURES = {"mlp": "ebdm-residual-mlp/1", "lattice": "ebdm-lattice/1"}

CONFIG_NAME = "config.json"
MODEL_NAME = "model.safetensors"
AVERAGE_NAME = "ema.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
DIGESTS_NAME = "digests.json"

# What a reader of the model needs; the others serve only to resume.
NEEDED = (CONFIG_NAME, MODEL_NAME, AVERAGE_NAME, STATE_NAME)
# To resume from, written by several processes: their shares beside it (`training/shares.py`).
FRAME_NAME = "frame.safetensors"
NEEDED_BESIDE_SHARES = (CONFIG_NAME, FRAME_NAME, STATE_NAME)
RESUME_FOLDER = "resume"


class CheckpointIncomplete(InputError):
    """There is no complete checkpoint in a folder."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: no complete checkpoint here: {reason}",
            remedy="Name the --out folder of a finished training run, or a generation of the zoo.",
        )


class CheckpointDamaged(InputError):
    """A file of a checkpoint is not the one that was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}",
            remedy="Do not use this checkpoint; take it from the zoo or a release, or train again.",
        )


class OtherArchitecture(InputError):
    """A checkpoint was made for another kind of model than this program knows."""

    def __init__(self, path: Path, found: object) -> None:
        super().__init__(
            f"{path}: made for {str(found)[:80]!r}, this scf knows {SCHEMA} of "
            f"{' and '.join(ARCHITECTURES.values())}",
            remedy="Use the scf version that made it, or train again.",
        )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a folder means: itself, a generation's or a release's.

    It is `checkpoint/` in a generation of the zoo, `model/` in a release.

    Raises:
        CheckpointIncomplete: Neither holds one.
    """
    for candidate in (path, path / "checkpoint", path / "model"):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    raise CheckpointIncomplete(path, f"{CONFIG_NAME} is missing")


def read_digests(path: Path) -> dict[str, str]:
    """The content of `digests.json`.

    Raises:
        CheckpointIncomplete: It is absent.
        CheckpointDamaged: It is not a list of digests of plain file names.
    """
    if not (path / DIGESTS_NAME).is_file():
        raise CheckpointIncomplete(path, f"{DIGESTS_NAME} is missing")
    digests = read_json(path / DIGESTS_NAME)
    is_list = isinstance(digests, dict) and all(
        is_sha256_hex(digest) and Path(name).name == name for name, digest in digests.items()
    )
    is_whole = is_list and any(
        set(needed) <= set(digests) for needed in (NEEDED, NEEDED_BESIDE_SHARES)
    )
    if not is_whole:
        raise CheckpointDamaged(path / DIGESTS_NAME, "not a list of a checkpoint's digests")
    return dict(digests)


def share_name(rank: int) -> str:
    """The file of one process's share, as `torch.distributed.checkpoint` names it."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def has_shares(path: Path) -> bool:
    """Whether weights lie in shares, not in files of the whole."""
    return (path / FRAME_NAME).is_file()


def verify_digests(path: Path, *, names: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """Re-hash the files and compare; returns the digests.

    `optimizer.safetensors` may be absent (a released checkpoint has none); where it lies here it
    must be right.

    Raises:
        CheckpointIncomplete: A file is missing.
        CheckpointDamaged: A file's bytes are not those promised; the message names it.
    """
    digests = read_digests(path)
    for name, expected in sorted(digests.items()):
        if not (path / name).is_file():
            if name in names:
                raise CheckpointIncomplete(path, f"{name} is missing")
            continue
        if (actual := _file_sha256(path / name)) != expected:
            raise CheckpointDamaged(path / name, f"expected sha256 {expected}, found {actual}")
    return digests


def checkpoint_digest(path: Path) -> str:
    """The name of a checkpoint: SHA-256 of the canonical JSON of its digests."""
    return sha256_hex(canonical_json(read_digests(path)))


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint that this program can rebuild.

    Raises:
        CheckpointIncomplete: It is absent.
        OtherArchitecture: It belongs to another kind of model, or to another version.
    """
    if not (path / CONFIG_NAME).is_file():
        raise CheckpointIncomplete(path, f"{CONFIG_NAME} is missing")
    config = read_json(path / CONFIG_NAME)
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        raise OtherArchitecture(path, config.get("schema") if isinstance(config, dict) else config)
    if config.get("architecture") not in ARCHITECTURES.values():
        raise OtherArchitecture(path, config.get("architecture"))
    return config


def read_state(path: Path) -> dict[str, Any]:
    """`state.json`: where training stands.

    Raises:
        CheckpointDamaged: It is not a training state.
    """
    state = read_json(path / STATE_NAME)
    if not isinstance(state, dict) or state.get("schema") != STATE_SCHEMA:
        raise CheckpointDamaged(path / STATE_NAME, f"not of schema {STATE_SCHEMA}")
    return state


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """`digests.json` for files about to be written."""
    return {name: sha256_hex(data) for name, data in sorted(files.items())}


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamaged(path, f"cannot be read: {error.strerror}") from error
