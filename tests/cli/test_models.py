"""`scf train`, `scf score`, `scf sample`, typed as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.gaussian_records import gaussian_points, write_points


def scf(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scf.cli.main", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.e2e
def test_train_score_sample(tmp_path: Path) -> None:
    """Two files after one --fossils; a model; a line a fossil; an npz."""
    paths = [tmp_path / "a.ndjson", tmp_path / "b.ndjson"]
    for seed, path in enumerate(paths):
        write_points(path, gaussian_points(150, seed=seed))
    model = tmp_path / "model"
    trained = scf(
        "train", "--fossils", *paths, "--out", model, "--preset", "tiny", "--max-steps", 40,
        "--device", "cpu",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert json.loads((model / "config.json").read_text())["data"]["fossils"] == 270

    scored = scf("score", model, *paths, "--sigma", 0.5, "--json")
    assert scored.returncode == 0, scored.stderr
    lines = [json.loads(line) for line in scored.stdout.splitlines()]
    assert len(lines) == 300
    assert all(np.isfinite(line["energy"]) for line in lines)

    sampled = scf("sample", model, "--num", 7, "--out", tmp_path / "s.npz", "--steps", 4)
    assert sampled.returncode == 0, sampled.stderr
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["x"].shape == (7, 2)


def test_the_program_s_exit_code_is_ours(tmp_path: Path) -> None:
    """A model that is not there: exit code 1 and the program's own words."""
    ended = scf("score", tmp_path, tmp_path)
    assert ended.returncode == 1
    assert "no complete checkpoint" in ended.stderr


def test_the_command_line_does_not_load_torch() -> None:
    """Only the program that is started does."""
    code = "import sys, scf.cli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
