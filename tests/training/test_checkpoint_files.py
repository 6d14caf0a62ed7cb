import json
from pathlib import Path

import pytest

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.training.checkpoint_files import (
    CheckpointDamaged,
    CheckpointIncomplete,
    OtherArchitecture,
    checkpoint_digest,
    digests_of,
    find_checkpoint,
    read_config,
    verify_digests,
)

FILES = {
    "config.json": b'{"schema": "scf.checkpoint/1", "architecture": "ebdm-residual-mlp/1"}',
    "model.safetensors": b"weights",
    "ema.safetensors": b"averaged",
    "optimizer.safetensors": b"moments",
    "state.json": b"{}",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "digests.json").write_text(json.dumps(digests_of(FILES)))
    return tmp_path


def test_what_was_written_verifies(checkpoint: Path) -> None:
    """Digests agree; the checkpoint's name is the digest of their canonical JSON."""
    digests = verify_digests(checkpoint)
    assert digests == {name: sha256_hex(data) for name, data in FILES.items()}
    assert checkpoint_digest(checkpoint) == sha256_hex(canonical_json(digests))


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_is_noticed(checkpoint: Path, name: str) -> None:
    """Whatever file it is in; the message names the file."""
    (checkpoint / name).write_bytes(FILES[name] + b"!")
    with pytest.raises(CheckpointDamaged, match=name):
        verify_digests(checkpoint)


def test_the_optimiser_may_be_left_behind(checkpoint: Path) -> None:
    """A released checkpoint has none, and still verifies; a missing model does not."""
    (checkpoint / "optimizer.safetensors").unlink()
    verify_digests(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointIncomplete, match=r"model.safetensors"):
        verify_digests(checkpoint)


def test_without_digests_nothing_is_complete(checkpoint: Path) -> None:
    """digests.json comes last: its absence means that writing was cut short."""
    (checkpoint / "digests.json").unlink()
    with pytest.raises(CheckpointIncomplete, match=r"digests.json"):
        verify_digests(checkpoint)


def test_a_list_that_leads_elsewhere_is_refused(checkpoint: Path) -> None:
    """A name with a path in it could point out of the folder."""
    digests = digests_of(FILES) | {"../elsewhere": "0" * 64}
    (checkpoint / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(CheckpointDamaged, match=r"digests.json"):
        verify_digests(checkpoint)


def test_a_generation_s_checkpoint_is_found(checkpoint: Path, tmp_path_factory) -> None:
    """MODEL may be the folder above."""
    generation = tmp_path_factory.mktemp("zoo") / "ebdm_gen0001"
    generation.mkdir()
    checkpoint.rename(generation / "checkpoint")
    assert find_checkpoint(generation) == generation / "checkpoint"
    with pytest.raises(CheckpointIncomplete, match="no complete checkpoint"):
        find_checkpoint(generation.parent)


@pytest.mark.parametrize("change", [{"schema": "scf.checkpoint/9"}, {"architecture": "unet/1"}])
def test_another_architecture_is_named(checkpoint: Path, change) -> None:
    """A checkpoint of another kind says which kind it is."""
    config = json.loads(FILES["config.json"]) | change
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(OtherArchitecture, match=next(iter(change.values()))):
        read_config(checkpoint)
