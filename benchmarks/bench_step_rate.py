"""Steps a second beside torchebm 0.8.9's denoising score matching: the whole of both loops.

The ring of eight Gaussians in the plane, minibatch 256, width 64, AdamW, gradients clipped, one CPU
thread. Ours is `fit` as users call it: all noise levels, the dual term, a moving average, looks at
validation records. torchebm trains one noise level. Two networks for it:

* its own plain one: five layers of 64 and a head, without a noise level;
* an equal one: our energy, layer for layer (noise embedding, residual blocks, Gaussian base),
  wrapped as torchebm's model at one sigma. Derived by autograd twice, as torchebm does with any.

Taken in turns of CPU seconds, so that a busy machine meets all alike; medians of the turns, and the
median of the ratios within each turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_ebdm import BATCH, TORCHEBM
from scf.models.energy_model import EnergyModel, NetworkConfig
from scf.models.noise import NoiseRange
from scf.models.record import FieldLayout, RecordLayout
from scf.training.api import fit
from scf.verification.reference_systems import GaussianMixture

NUM_TURNS, TURN_S = 7, 3.0
WIDTH, SIGMA = 64, 0.1


def run() -> dict:
    with tempfile.TemporaryDirectory(prefix="bench-torchebm-") as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
                   "--disable-pip-version-check", "--target", folder, TORCHEBM]  # fmt: skip
        got = subprocess.run(install, capture_output=True, text=True, check=False)
        if got.returncode != 0:
            why = (got.stderr.strip().splitlines() or ["pip failed"])[-1][:200]
            return {"skipped": why}
        root = Path(__file__).parents[1]
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{root}",
                                    "OMP_NUM_THREADS": "1"}  # fmt: skip
        ran = subprocess.run(
            [sys.executable, __file__, "turns"],
            stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=root,
        )  # fmt: skip
        return json.loads(ran.stdout.splitlines()[-1])


def turns() -> dict:
    """Inside the process that can import torchebm."""
    torch.set_num_threads(1)
    x = GaussianMixture.ring().sample(20_000, np.random.default_rng([0, 0]))
    loops = {
        "scf": lambda: ours(x),
        "torchebm, its own network": torchebm_loop(x, plain_network()),
        "torchebm, equal network": torchebm_loop(x, equal_network()),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(NUM_TURNS):
        for name, loop in loops.items():
            rates[name].append(loop())
    found = {f"{name}, steps/s": round(statistics.median(all_), 1) for name, all_ in rates.items()}
    for name in list(loops)[1:]:
        ratios = [a / b for a, b in zip(rates["scf"], rates[name], strict=True)]
        found[f"scf over {name}"] = round(statistics.median(ratios), 2)
        found[f"scf over {name}, least and greatest"] = [
            round(min(ratios), 2),
            round(max(ratios), 2),
        ]
    return found


def ours(x: np.ndarray) -> float:
    model = fit(
        x, seconds=TURN_S, clock=time.process_time, seed=0, threads=1, device="cpu", patience=0.0,
        width=WIDTH, batch_size=BATCH, dual_weight=0.1, learning_rate=3e-3, sigma_min=0.07,
        sigma_max=10.0, score_sigma=0.1, validation_max=2000, evaluate_every=250,
        calibration_particles=0,
    )  # fmt: skip
    return model.state["step"] / model.state["seconds"]


def plain_network() -> torch.nn.Module:
    layers: list[torch.nn.Module] = [torch.nn.Linear(2, WIDTH), torch.nn.SiLU()]
    for _ in range(4):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1), torch.nn.Flatten(0))


def equal_network() -> torch.nn.Module:
    layout = RecordLayout.of([FieldLayout("x", "float64", (2,), "")])
    config = NetworkConfig(width=WIDTH, depth=2, site_width=0)
    model = EnergyModel(layout, config, NoiseRange(), ())

    class AtOneLevel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.energy(x, torch.full_like(x[:, 0], SIGMA), x.new_zeros(len(x), 0))

    return AtOneLevel()


def torchebm_loop(x: np.ndarray, network: torch.nn.Module) -> Callable[[], float]:
    from torchebm.core import BaseModel
    from torchebm.losses import DenoisingScoreMatching

    class Energy(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    data, model = torch.from_numpy(x).float(), Energy()
    loss_of = DenoisingScoreMatching(model=model, noise_scale=SIGMA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loop() -> float:
        began, step = time.process_time(), 0
        while time.process_time() - began < TURN_S:
            step += 1
            loss = loss_of(data[torch.randint(len(data), (BATCH,))])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return step / (time.process_time() - began)

    return loop


if __name__ == "__main__" and sys.argv[1:] == ["turns"]:
    print(json.dumps(turns()))
