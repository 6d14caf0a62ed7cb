"""Fossils unlike those that a model was made from are strange to it; others are as rare as they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.storage.partitions import Folder
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train
from scf.verification import novelty
from support.gaussian_records import ArraySource, exact_energy, gaussian_points, write_points


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    config = TrainConfig(
        width=16, depth=1, site_width=0, max_steps=100, calibration_particles=256, device="cpu"
    )
    train(ArraySource({"x": gaussian_points(2000)}), Folder.at(out), config)
    return out


def asked(model: Path, vault: Path, shards: list[str], fossils_max: int = 4096) -> dict[str, int]:
    """Above the energy of 95 of 100 true points, at sigma 0.5."""
    threshold = float(np.quantile(exact_energy(gaussian_points(4000, seed=9), 0.5), 0.95))
    about = {"shards": shards, "sigma": 0.5, "threshold": threshold, "fossils_max": fossils_max}
    (vault / "asked.json").write_text(json.dumps(about))
    arguments = ["--checkpoint", model, "--vault", vault, "--asked", vault / "asked.json",
                 "--out", vault / "out" / "novelty.json"]  # fmt: skip
    assert novelty.main([str(a) for a in arguments]) == 0
    return json.loads((vault / "out" / "novelty.json").read_text())


def test_points_of_the_same_kind_are_strange_one_in_twenty(model: Path, tmp_path: Path) -> None:
    write_points(tmp_path / "same.ndjson", gaussian_points(400, seed=1))

    found = asked(model, tmp_path, ["same.ndjson"])

    assert found["asked"] == 400
    assert 5 <= found["strange"] <= 45


def test_points_far_away_are_all_strange_and_the_newest_are_asked_first(
    model: Path, tmp_path: Path
) -> None:
    write_points(tmp_path / "same.ndjson", gaussian_points(100, seed=1))
    write_points(tmp_path / "far.ndjson", gaussian_points(100, seed=2) + 50.0)

    assert asked(model, tmp_path, ["same.ndjson", "far.ndjson"], 100) == {
        "schema": "scf.novelty/1", "asked": 100, "strange": 100,
    }  # fmt: skip


def test_a_shard_that_is_not_there_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(
        json.dumps({"shards": ["gone.ndjson"], "sigma": 0.5, "threshold": 0.0, "fossils_max": 9})
    )
    arguments = ["--checkpoint", model, "--vault", tmp_path, "--asked", tmp_path / "asked.json",
                 "--out", tmp_path / "n.json"]  # fmt: skip
    assert novelty.main([str(a) for a in arguments]) != 0
    assert not (tmp_path / "n.json").exists()
