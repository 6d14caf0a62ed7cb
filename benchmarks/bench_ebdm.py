"""Energies where the truth is known: how good after a minute of one CPU thread, beside torchebm?

All budgets are CPU seconds of one thread (time.process_time), calibration included, so that a busy
machine changes nothing but the wall clock. Means and the worst over seeds. Sides of a comparison
get the same budget, the same records, the same width, SiLU, AdamW. torchebm 0.8.9 is fetched by pip
into a folder that is thrown away (without its dependencies: torch and numpy are here); where it
cannot be had its figures are left out and the reason stands in their place.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scf.models.energy_model import LATTICE, EnergyModel, NetworkConfig
from scf.models.losses import denoising_and_dual
from scf.models.networks import ResidualMLP
from scf.models.noise import NoiseRange
from scf.models.record import FieldLayout, RecordLayout
from scf.training.api import fit
from scf.verification.reference_systems import GaussianMixture
from scf.verification.science_cases import case_named
from scf.verification.science_figures import measure_case
from scf.verification.verify_science import train_case

SEEDS = (0, 1)
RING_SEEDS = (0, 1, 2)
# Of training; what is left of the budget is for measuring the normaliser.
PHI4_TRAINING_S, RING_TRAINING_S = 50.0, 13.9
RING_BUDGET_S = 15.0
RING_SIGMA = 0.1
RING_RECORDS = 20_000
BATCH = 256
TORCHEBM = "torchebm==0.8.9"

Numbers = dict[str, Any]


def run() -> Numbers:
    torch.set_num_threads(1)
    figures: Numbers = {}
    for part in (step_ratios, ring, phi4, gaussian_field, darcy):
        figures |= part()
    return figures


def spread(prefix: str, rows: list[Numbers], highest_is_worst: dict[str, bool]) -> Numbers:
    """Mean and worst over seeds."""
    found: Numbers = {}
    for name, is_high_bad in highest_is_worst.items():
        values = [row[name] for row in rows]
        found[f"{prefix} {name} mean"] = round(float(np.mean(values)), 5)
        found[f"{prefix} {name} worst"] = round(max(values) if is_high_bad else min(values), 5)
    return found


def phi4() -> Numbers:
    """Lattice phi^4 8x8 from configurations alone, and with the true score."""
    figures: Numbers = {}
    for name, levels in (("phi4", ("0.1", "0.2")), ("phi4-known-score", ("0.1", "0.2"))):
        rows = []
        for seed in SEEDS:
            case = case_named(name)
            model, system, took = train_case(case, seconds=PHI4_TRAINING_S, seed=seed)
            rows.append(measure_case(model, case, system, seed=seed).figures | took)
        worst = {"cpu_seconds": True, "steps_per_s": False, "auroc_gap_max": True}
        for level in levels:
            for figure, bad in (
                ("energy_correlation", False),
                ("energy_mae", True),
                ("ess", False),
                ("score_error", True),
                ("log_z_error_per_site", True),
            ):
                worst[f"{figure}@{level}"] = bad
        worst |= {"clean_energy_correlation@0.1": False, "clean_energy_mae@0.1": True,
                  "clean_ess@0.1": False}  # fmt: skip
        figures |= spread(name, rows, worst)
    return figures


def gaussian_field() -> Numbers:
    case = case_named("gaussian-field")
    model, system, took = train_case(case, seconds=30.0, seed=0)
    found = measure_case(model, case, system, seed=0).figures | took
    names = ("cpu_seconds", "score_error@0.1", "score_error@1", "spectrum_error_median",
             "log_z_error_per_site@0.1")  # fmt: skip
    return {f"gaussian-field {name}": round(found[name], 5) for name in names}


def darcy() -> Numbers:
    """Samples before (`drawn_`) and after they are brought to the law: both ends of the trade."""
    case = case_named("darcy")
    model, system, took = train_case(case, seconds=45.0, seed=0)
    found = measure_case(model, case, system, seed=0).figures
    names = [name for name in found if name != "sampler_distance"]
    return {"darcy cpu_seconds": took["cpu_seconds"]} | {
        f"darcy {name}": round(found[name], 5) for name in names
    }


def ring_figures(energy: Callable, score: Callable, sigma: float, seed: int) -> Numbers:
    """Grid divergence, energy and score error of any energy of the plane, at one noise level.

    Normalised on the grid, since other trainers leave the constant open.
    """
    system = GaussianMixture.ring()
    side = np.linspace(-2.5, 2.5, 201)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    cell = float(side[1] - side[0]) ** 2
    true_log, found_log = -system.energy(grid, sigma), -energy(grid)
    found_log = found_log - found_log.max()
    found_log -= np.log(np.exp(found_log).sum() * cell)
    rng = np.random.default_rng([seed, 7])
    x = system.sample(2000, rng)
    x = x + sigma * rng.standard_normal(x.shape)
    apart = energy(x) - system.energy(x, sigma)
    truth = system.score(x, sigma)
    return {
        "grid_kl": float((np.exp(true_log) * (true_log - found_log)).sum() * cell),
        "energy_mae": float(np.abs(apart - apart.mean()).mean()),
        "score_error": float(np.sqrt(((score(x) - truth) ** 2).sum() / (truth**2).sum())),
    }


def ring() -> Numbers:
    """Eight unequal Gaussians: ours at sigma 0.1, torchebm's DSM at 0.1 and its PCD.

    Seed by seed in turns, so that what else the machine does meets both sides alike.
    """
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="bench-torchebm-") as folder:
        lacking = torchebm_lacks(Path(folder))
        for seed in RING_SEEDS:
            ours.append(ring_row(seed))
            if not lacking:
                theirs += [torchebm_row(Path(folder), kind, seed) for kind in ("dsm", "pcd")]
    worst = {"cpu_seconds": True, "steps_per_s": False, "grid_kl": True, "energy_mae": True,
             "score_error": True}  # fmt: skip
    figures = spread("ring scf", ours, worst)
    if lacking:
        return figures | {"ring torchebm": f"skipped: {lacking}"}
    for kind in ("dsm", "pcd"):
        rows = [row for row in theirs if row["kind"] == kind]
        figures |= spread(f"ring torchebm {kind}", rows, worst)
        for name in ("grid_kl", "energy_mae", "score_error"):
            ratio = figures[f"ring torchebm {kind} {name} mean"] / figures[f"ring scf {name} mean"]
            figures[f"ring {name}: torchebm {kind} / scf"] = round(ratio, 2)
    steps = figures["ring scf steps_per_s mean"] / figures["ring torchebm dsm steps_per_s mean"]
    return figures | {"ring steps_per_s: scf / torchebm dsm": round(steps, 2)}


def ring_row(seed: int) -> Numbers:
    """Ours."""
    x = GaussianMixture.ring().sample(RING_RECORDS, np.random.default_rng([seed, 0]))
    began = time.process_time()
    model = fit(
        # Levels in scales of the data (0.69): from 0.05 to 7 in its own unit. torchebm trains one
        # level alone.
        x, seconds=RING_TRAINING_S, clock=time.process_time, seed=seed, threads=1,
        device="cpu", patience=0.0, width=64, batch_size=BATCH, dual_weight=0.1,
        learning_rate=3e-3, sigma_min=0.07, sigma_max=10.0, score_sigma=0.1,
        validation_max=2000, evaluate_every=250,
    )  # fmt: skip
    took = {"cpu_seconds": time.process_time() - began,
            "steps_per_s": model.state["step"] / model.state["seconds"]}  # fmt: skip
    return took | ring_figures(
        lambda p: model.energy(p, RING_SIGMA),
        lambda p: model.score(p, RING_SIGMA),
        RING_SIGMA,
        seed,
    )


def torchebm_lacks(folder: Path) -> str:
    """Put torchebm into a folder; why it is not there, or ""."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--target", str(folder), TORCHEBM]  # fmt: skip
    got = subprocess.run(install, capture_output=True, text=True, check=False)
    said = got.stderr.strip().splitlines() or ["pip failed"]
    return said[-1][:200] if got.returncode else ""


def torchebm_row(folder: Path, kind: str, seed: int) -> Numbers:
    """Figures of one of torchebm's trainers, from a process of its own."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{root}",
                                "OMP_NUM_THREADS": "1"}  # fmt: skip
    ran = subprocess.run(
        [sys.executable, __file__, "torchebm", kind, str(seed)],
        capture_output=True, text=True, check=True, env=environment, cwd=root,
    )  # fmt: skip
    row: Numbers = json.loads(ran.stdout.splitlines()[-1])
    return row


def torchebm_main(kind: str, seed: int) -> None:
    """Run inside the process that can import torchebm: one JSON line."""
    torch.set_num_threads(1)
    print(json.dumps(torchebm_train(kind, seed) | {"kind": kind}))


def torchebm_train(kind: str, seed: int) -> Numbers:
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence, DenoisingScoreMatching
    from torchebm.samplers import LangevinDynamics

    torch.manual_seed(seed)

    class Energy(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            layers: list[torch.nn.Module] = [torch.nn.Linear(2, 64), torch.nn.SiLU()]
            for _ in range(4):
                layers += [torch.nn.Linear(64, 64), torch.nn.SiLU()]
            self.net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).squeeze(-1)

    x = GaussianMixture.ring().sample(RING_RECORDS, np.random.default_rng([seed, 0]))
    data = torch.from_numpy(x).float()
    model = Energy()
    if kind == "dsm":
        loss_of = DenoisingScoreMatching(model=model, noise_scale=RING_SIGMA)
        # The best of 5e-4, 2e-3, 5e-3 and 1e-2 on seed 0: divergence 0.35, 0.05, 0.041, 0.060.
        sigma, rate = RING_SIGMA, 5e-3
    else:
        sampler = LangevinDynamics(model=model, step_size=0.01)
        loss_of = ContrastiveDivergence(
            model=model, sampler=sampler, k_steps=10, persistent=True, buffer_size=4096
        )
        sigma, rate = 0.0, 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    began, step = time.process_time(), 0
    while time.process_time() - began < RING_BUDGET_S:
        step += 1
        # The same falling rate as ours: constant for 1000 steps, then 1/sqrt(step).
        for group in optimizer.param_groups:
            group["lr"] = rate / max(1.0, step / 1000) ** 0.5
        loss = loss_of(data[torch.randint(len(data), (BATCH,))])
        loss = loss[0] if isinstance(loss, tuple) else loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    took = time.process_time() - began

    def energy(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(points).float()).double().numpy()

    def score(points: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(points).float().requires_grad_()
        return -torch.autograd.grad(model(z).sum(), z)[0].double().numpy()

    # PCD learns the clean density, so it is compared with that.
    found = ring_figures(energy, score, sigma, seed)
    return found | {"cpu_seconds": took, "steps_per_s": step / took}


def step_ratios() -> Numbers:
    """An energy's training step over that of a plain score network with the same body."""
    figures: Numbers = {}
    field = RecordLayout.of([FieldLayout("phi", "float32", (8, 8), "")], boundary="periodic")
    for name, config in (
        ("lattice 8x8 width 16", NetworkConfig(width=16, depth=1, site_width=0, body=LATTICE,
                                               translation_symmetric=True)),
        ("mlp 64 numbers width 192", NetworkConfig(width=192, depth=2, site_width=0)),
    ):  # fmt: skip
        model = EnergyModel(field, config, NoiseRange(), ())
        clean, c = torch.randn(128, 64), torch.zeros(128, 0)
        noise, sigma = torch.randn(128, 64), torch.rand(128) + 0.1
        wide = torch.nn.Linear(config.width, 64)

        def energy_step(dual: float, model=model, args=(clean, noise, sigma, c)) -> None:
            found = denoising_and_dual(model, *args)
            # By the weights alone, as training does (`training/gradients.py`).
            loss = found.denoising_B.mean() + dual * found.dual_B.mean()
            loss.backward(inputs=list(model.parameters()))

        def score_step(model=model, wide=wide, args=(clean, noise, sigma, c)) -> None:
            clean, noise, sigma, c = args
            noisy = clean + sigma[:, None] * noise
            embedded = model.embedding(sigma.log())
            if isinstance(model.body, ResidualMLP):
                inputs, _ = model.encoder(noisy, sigma, c, model.base)
                head, model.body.head = model.body.head, wide
                found = model.body(inputs, embedded)
                model.body.head = head
            else:
                sites = model.encoder.lattice_sites(noisy, sigma, c, model.base, has_place=False)
                found = model.body.density(sites, embedded)
            (found - noise).square().mean().backward()

        times = {"score": [], "energy": [], "energy with dual": []}
        for _ in range(45):  # taken in turn, so that a busy machine meets all alike
            for key, step in (
                ("score", score_step),
                ("energy", lambda: energy_step(0.0)),
                ("energy with dual", lambda: energy_step(0.05)),
            ):
                began = time.process_time()
                step()
                times[key].append(time.process_time() - began)
        middle = {key: float(np.median(values[3:])) for key, values in times.items()}
        figures[f"step {name}: score ms"] = round(1e3 * middle["score"], 2)
        figures[f"step {name}: energy / score"] = round(middle["energy"] / middle["score"], 2)
        ratio = middle["energy with dual"] / middle["score"]
        figures[f"step {name}: energy with dual / score"] = round(ratio, 2)
    return figures


if __name__ == "__main__" and sys.argv[1:2] == ["torchebm"]:
    torchebm_main(sys.argv[2], int(sys.argv[3]))
