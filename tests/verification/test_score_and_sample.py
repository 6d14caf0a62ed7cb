"""`score` and `sample` as programs, on a model of known density trained in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.storage.partitions import Folder
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train
from scf.verification import sample, score
from support.gaussian_records import (
    COVARIANCE,
    MEAN,
    ArraySource,
    exact_energy,
    gaussian_points,
    write_points,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of Gaussian points, in metres."""
    out = tmp_path_factory.mktemp("model")
    config = TrainConfig(
        width=24, depth=1, site_width=0, max_steps=300, calibration_particles=256, device="cpu"
    )
    train(ArraySource({"x": gaussian_points(4000)}), Folder.at(out), config)
    return out


def scores(capsys, *arguments: object) -> list[dict]:
    assert score.main([str(a) for a in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_line_a_fossil_in_input_order(model: Path, tmp_path: Path, capsys) -> None:
    """cid, energy, sigma, score_norm; energies are -ln N(mu, C + sigma^2) in nats."""
    points = gaussian_points(200, seed=1)
    cids = write_points(tmp_path / "points.ndjson", points)
    found = scores(capsys, model, tmp_path / "points.ndjson", "--sigma", "0.5", "--json")

    assert [line["cid"] for line in found] == cids
    assert set(found[0]) == {"cid", "energy", "sigma", "score_norm"}
    assert {line["sigma"] for line in found} == {0.5}
    energies = np.array([line["energy"] for line in found])
    assert np.abs(energies - exact_energy(points, 0.5)).mean() < 0.1
    pull = np.linalg.solve(COVARIANCE + 0.25 * np.eye(2), (points - MEAN).T).T
    norms = np.array([line["score_norm"] for line in found])
    np.testing.assert_allclose(norms, np.linalg.norm(pull, axis=1), atol=0.3)


def test_default_sigma_is_a_twentieth_of_the_scale(model: Path, tmp_path: Path, capsys) -> None:
    """Stored in config.json, in the data's unit."""
    write_points(tmp_path / "points.ndjson", gaussian_points(3))
    stored = json.loads((model / "config.json").read_text())
    found = scores(capsys, model, tmp_path / "points.ndjson", "--json")
    assert found[0]["sigma"] == stored["score_sigma"]
    assert stored["sigma_unit"] == "m"
    assert stored["score_sigma"] == pytest.approx(0.05 * np.sqrt(1.5), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sigma", "0"], "above 0"),
        (["--sigma", "nan"], "above 0"),
        (["--sigma", "-1"], "above 0"),
    ],
)
def test_a_sigma_that_is_none_is_refused(model, tmp_path: Path, capsys, arguments, told) -> None:
    """Usage error, exit code 2."""
    write_points(tmp_path / "points.ndjson", gaussian_points(3))
    assert score.main([str(model), str(tmp_path / "points.ndjson"), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_far_sigma_is_said_to_be_extrapolated(model: Path, tmp_path: Path, capsys) -> None:
    """Scored all the same, with a word on stderr."""
    write_points(tmp_path / "points.ndjson", gaussian_points(3))
    path = tmp_path / "points.ndjson"
    assert score.main([str(model), str(path), "--sigma", "0.0001", "--json"]) == 0
    assert "extrapolated" in capsys.readouterr().err


def test_fossils_of_another_kind_are_refused(model: Path, tmp_path: Path, capsys) -> None:
    """Another unit is another quantity: kilometres are not scored as metres."""
    write_points(tmp_path / "points.ndjson", gaussian_points(3), unit="km")
    assert score.main([str(model), str(tmp_path / "points.ndjson"), "--json"]) == 1
    assert "'km'" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, capsys) -> None:
    """Named, exit code 1."""
    assert score.main([str(tmp_path), str(tmp_path)]) == 1
    assert "no complete checkpoint" in capsys.readouterr().err


def test_samples_have_the_right_moments(model: Path, tmp_path: Path) -> None:
    """npz by field name, [N, *shape], original units and dtype."""
    out = tmp_path / "samples.npz"
    assert sample.main([str(model), "--num", "4000", "--out", str(out), "--steps", "8"]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert list(arrays) == ["x"]
        drawn = arrays["x"]
    assert (drawn.shape, drawn.dtype) == ((4000, 2), np.float64)
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.12)
    np.testing.assert_allclose(np.cov(drawn.T), COVARIANCE, atol=0.25)


def test_sampling_twice_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    """The seed decides; another seed gives other records."""
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.npz"
        arguments = [
            str(model),
            "--num",
            "10",
            "--out",
            str(out),
            "--seed",
            str(seed),
            "--steps",
            "4",
        ]
        assert sample.main(arguments) == 0
        with np.load(out) as arrays:
            drawn.append(arrays["x"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_sampling_nothing_is_refused(model: Path, tmp_path: Path, capsys) -> None:
    """--num 0 is a usage error."""
    assert sample.main([str(model), "--num", "0", "--out", str(tmp_path / "x.npz")]) == 2
    assert "--num" in capsys.readouterr().err
