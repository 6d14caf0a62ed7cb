import json
from pathlib import Path

import numpy as np
import pytest
import torch

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
from scf.training.checkpoint_files import CheckpointDamaged, CheckpointIncomplete, digests_of
from scf.training.train_config import TrainConfig
from support.gaussian_records import POINT, gaussian_points, record_energy


def snapshot(step: int) -> Snapshot:
    energy = record_energy(POINT, gaussian_points(200), noise=0.5)
    weights = dict(energy.model.named_parameters())
    return Snapshot(
        energy=energy,
        weights={name: weight + 1 for name, weight in weights.items()},
        running_average=weights,
        moments={"body.head.bias/step": torch.tensor(3.0)},
        progress=Progress(step=step, best_step=step, validation=[[10, 0.5]]),
    )


def config_of(made: Snapshot) -> dict:
    return describe(made.energy, TrainConfig(), {"fossils": 200}, None)


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    """Energies of a loaded checkpoint are those of the model that was written."""
    made = snapshot(10)
    write_final(Folder.at(tmp_path), config_of(made), made)
    loaded = load_energy(tmp_path)
    x, c = gaussian_points(20, seed=1), np.zeros((20, 0))
    np.testing.assert_array_equal(loaded.energy(x, 0.3, c), made.energy.energy(x, 0.3, c))
    assert loaded.sigma_range == made.energy.sigma_range


def test_everything_needed_to_go_on_comes_back(tmp_path: Path) -> None:
    """Latest weights, running average, moments and progress, each its own."""
    made = snapshot(10)
    write_final(Folder.at(tmp_path), config_of(made), made)
    _, found = load_snapshot(tmp_path)
    assert found.progress == made.progress
    assert found.moments == made.moments
    for name, weight in made.weights.items():
        torch.testing.assert_close(found.weights[name], weight)
        torch.testing.assert_close(found.running_average[name], weight - 1)


def test_only_the_newest_on_the_way_is_kept(tmp_path: Path) -> None:
    """Older ones go once the new one stands; writing the same one again is success."""
    out = Folder.at(tmp_path)
    for step in (10, 20, 20):
        made = snapshot(step)
        write_resume(out, config_of(made), made)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000000020"]
    assert newest(tmp_path) == tmp_path / "resume" / "step-000000020"


def test_the_one_with_most_steps_is_resumed(tmp_path: Path) -> None:
    """A finished run that went on and was killed goes on from where it was killed."""
    out = Folder.at(tmp_path)
    final, later = snapshot(30), snapshot(40)
    write_final(out, config_of(final), final)
    assert newest(tmp_path) == tmp_path
    write_resume(out, config_of(later), later)
    assert newest(tmp_path) == tmp_path / "resume" / "step-000000040"
    assert newest(tmp_path / "nothing") is None


def test_weights_that_do_not_fit_are_damaged(tmp_path: Path) -> None:
    """A config that promises another width than the tensors have, digests and all."""
    made = snapshot(10)
    config = config_of(made)
    config["network"]["width"] += 1
    write_final(Folder.at(tmp_path), config, made)
    with pytest.raises(CheckpointDamaged, match=r"does not fit config\.json"):
        load_energy(tmp_path)


def test_a_released_checkpoint_scores_but_does_not_resume(tmp_path: Path) -> None:
    """Without the optimiser's state the model loads; going on is refused by name."""
    made = snapshot(10)
    write_final(Folder.at(tmp_path), config_of(made), made)
    (tmp_path / "optimizer.safetensors").unlink()
    load_energy(tmp_path)
    with pytest.raises(CheckpointIncomplete, match=r"optimizer.safetensors"):
        load_snapshot(tmp_path)


def test_not_safetensors_is_damaged(tmp_path: Path) -> None:
    """Garbage with a right digest is still no model."""
    made = snapshot(10)
    write_final(Folder.at(tmp_path), config_of(made), made)
    (tmp_path / "ema.safetensors").write_bytes(b"garbage")
    names = json.loads((tmp_path / "digests.json").read_text())
    files = {name: (tmp_path / name).read_bytes() for name in names}
    (tmp_path / "digests.json").write_text(json.dumps(digests_of(files)))
    with pytest.raises(CheckpointDamaged, match="not readable safetensors"):
        load_energy(tmp_path)


def test_a_checkpoint_of_0_1_still_loads_and_resumes(tmp_path: Path) -> None:
    """Its config knows nothing of bodies, symmetries or boundaries: it is an mlp without any."""
    made = snapshot(10)
    config = config_of(made)
    config["network"] = {name: config["network"][name] for name in ("width", "depth", "site_width")}
    for name in ("body", "field_width", "field_depth", "symmetry", "antithetic"):
        del config["training"][name]
    write_final(Folder.at(tmp_path), config, made)
    x, c = gaussian_points(20, seed=1), np.zeros((20, 0))
    loaded = load_energy(tmp_path)
    np.testing.assert_array_equal(loaded.energy(x, 0.3, c), made.energy.energy(x, 0.3, c))
    stored, found = load_snapshot(tmp_path)
    assert TrainConfig.from_json(stored["training"]) == TrainConfig()
    assert found.energy.model.config == made.energy.model.config
