"""What a step of training costs: an energy beside the plain score network of the same body.

An energy is trained through its derivative, so its step costs more than that of a network that
gives the score itself. Both have the same encoder and the same body; the score network's head gives
as many numbers as the record has. Forward, backward, AdamW. CPU milliseconds of one thread,
medians, the two taken in turns.

The MLP is measured compiled as well (both of them), when a C++ compiler is there.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scf.models.energy_model import EnergyModel, NetworkConfig
from scf.models.lattice import LatticeNet
from scf.models.record import FieldLayout, RecordLayout
from scf.training.compiled import CompiledLoss, plain_loss
from scf.training.noising import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
ASKED = 2.3
CASES = {
    "points, 2 numbers, width 64": ((2,), 1, {"width": 64, "depth": 2, "site_width": 0}, 128, 150),
    "vector, 64 numbers, width 256": (
        (64,), 1, {"width": 256, "depth": 3, "site_width": 0}, 128, 60,
    ),
    "8 channels x 24 hours (preset base)": ((24,), 8, {"width": 192, "site_width": 32}, 128, 40),
    "lattice 8x8, width 16": ((8, 8), 1, {"body": "lattice", "width": 16, "depth": 1}, 64, 60),
    "lattice 16x16, width 32, 2 levels": (
        (16, 16), 1, {"body": "lattice", "width": 32, "depth": 2, "levels": 2}, 64, 8,
    ),
}  # fmt: skip
COMPILED = "vector, 64 numbers, width 256"


class ScoreNetwork(nn.Module):
    """The same encoder and body, with a head for every number of the record."""

    def __init__(self, model: EnergyModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        body, size = self.model.body, model.layout.size
        width = body.head.in_features
        self.is_lattice = isinstance(body, LatticeNet)
        body.head = nn.Linear(width, 1 if self.is_lattice else size)
        if self.model.site_body is not None:
            channels = size // model.encoder.num_sites
            head = self.model.site_body.head
            self.model.site_body.head = nn.Linear(head.in_features, channels)

    def forward(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        model = self.model
        noise_BE = model.embedding(sigma_B.log())
        if self.is_lattice:
            sites = model.encoder.lattice_sites(
                z_BD, sigma_B, c_BK, model.base, None,
                has_place=not model.config.translation_symmetric,
            )  # fmt: skip
            return model.body.density(sites, noise_BE)
        inputs, sites = model.encoder(z_BD, sigma_B, c_BK, model.base, None)
        score_BD = model.body(inputs, noise_BE)
        if model.site_body is not None:
            score_BD = score_BD + model.site_body(sites, noise_BE[:, None]).mT.flatten(1)
        return score_BD


def made(shape: tuple[int, ...], channels: int, config: dict) -> EnergyModel:
    from support.gaussian_records import record_energy

    fields = [FieldLayout(f"f{n}", "float64", shape, "m") for n in range(channels)]
    is_lattice = config.get("body") == "lattice"
    layout = RecordLayout.of(fields, boundary="periodic" if is_lattice else "")
    plain = NetworkConfig(**{"translation_symmetric": is_lattice, **config})
    rows = np.random.default_rng(0).normal(size=(1000, layout.size))
    energy = record_energy(layout, rows, **vars(plain))
    with torch.no_grad():
        energy.model.body.head.weight.normal_(std=0.1)
    return energy.model.train()


def in_turns(steps: dict[str, Callable[[], None]], num: int) -> dict[str, float]:
    """Median CPU milliseconds of each."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num + 3):
        for name, step in steps.items():
            began = time.process_time()
            step()
            took[name].append(time.process_time() - began)
    return {name: round(1e3 * statistics.median(times[3:]), 2) for name, times in took.items()}


def measure(name: str, *, compiles: bool = False) -> dict:
    shape, channels, config, num_rows, num = CASES[name]
    model = made(shape, channels, config)
    score = ScoreNetwork(model)
    size = model.layout.size
    z, n, s = torch.randn(num_rows, size), torch.randn(num_rows, size), torch.rand(num_rows) + 0.1
    batch = Batch(z, n, s, torch.zeros(num_rows, 0), None)
    parameters = list(model.parameters())
    told: list[str] = []
    loss_of = CompiledLoss(told.append) if compiles else plain_loss
    forward = torch.compile(score) if compiles else score
    of_score = torch.optim.AdamW(score.parameters(), fused=True)
    of_energy = torch.optim.AdamW(parameters, fused=True)

    def score_step() -> None:
        of_score.zero_grad()
        error = forward(z + s[:, None] * n, s, batch.c_BK) - n
        error.square().mean().backward()
        of_score.step()

    def energy_step(dual: float) -> Callable[[], None]:
        def step() -> None:
            of_energy.zero_grad()
            losses = loss_of(model, batch, False)
            loss = losses.denoising_B.mean()
            if dual:
                loss = loss + dual * losses.dual_B.mean()
            loss.backward(inputs=parameters)
            of_energy.step()

        return step

    steps = {"score": score_step, "energy": energy_step(0.05)}
    if not compiles:
        steps["energy without the dual term"] = energy_step(0.0)
    began = time.monotonic()
    for step in steps.values():
        step()
    found = in_turns(steps, num)
    ratio = round(found["energy"] / found["score"], 2)
    shown = {"ms": found, "ratio": ratio, "asked": ASKED}
    if compiles:
        shown |= {"compiling_s": round(time.monotonic() - began, 1), "told": told}
    return shown


def run() -> dict:
    torch.set_num_threads(1)
    results = {name: measure(name) for name in CASES}
    results[f"{COMPILED}, compiled"] = measure(COMPILED, compiles=True)
    plain = results[COMPILED]["ms"]["score"]
    compiled = results[f"{COMPILED}, compiled"]
    compiled["ratio_to_plain_score"] = round(compiled["ms"]["energy"] / plain, 2)
    return results
