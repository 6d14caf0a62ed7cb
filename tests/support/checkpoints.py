"""Small real checkpoint folders, as `training` writes them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from scf.verification.verify_checkpoint import checkpoint_digest, file_sha256


def write_checkpoint(folder: Path, *, seed: int = 0, width: int = 8) -> str:
    """A checkpoint with two layers of random weights under `folder`; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    weights = {
        "in.weight": generator.normal(size=(width, 4)).astype("f4"),
        "out.weight": generator.normal(size=(1, width)).astype("f4"),
    }
    save_file(weights, folder / "model.safetensors")
    save_file({name: 0.9 * value for name, value in weights.items()}, folder / "ema.safetensors")
    save_file({"momentum": weights["in.weight"]}, folder / "optimizer.safetensors")
    config = {
        "schema": "scf.checkpoint/1",
        "preset": "tiny",
        "fields": [{"name": "ghi", "unit": "W/m2", "shape": [24]}],
        "seed": seed,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "state.json").write_text(json.dumps({"step": 100 + seed, "loss": 0.4}))
    return seal(folder)


def seal(folder: Path) -> str:
    """Write digests.json over what lies there; returns the checkpoint's digest."""
    digests = {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.name != "digests.json"
    }
    (folder / "digests.json").write_text(json.dumps(digests))
    return checkpoint_digest(digests)
