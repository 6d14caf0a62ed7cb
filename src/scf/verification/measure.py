"""Measure a checkpoint on the held-out fossils of its plan: report.json and a picture.

    python -m scf.verification.measure --checkpoint DIR --plan FILE --vault DIR --out DIR
        [--champion DIR] [--seed N]

What is measured (schema scf.report/1, read by `verification.report`):

* dsm_loss: denoising loss, dimensionless, on noise that is a function of (seed, CID); its mean, a
  95 % interval over families, and each family's mean. Beside it the champion's on the same noise,
  that of independent Gaussians (baseline_dsm_loss), and that of the full-covariance Gaussian which
  is the model with its network switched off (gaussian_dsm_loss).
* energy: quantiles in nats at `sigma`, of real, sampled and corrupted fossils.
* auroc: for each corruption the chance that a corrupted fossil has a higher energy than a real one,
  over the fossils that it changes (shuffling a channel that is zero all day changes nothing).
* physics: mean residuals of real and sampled fossils. Samples are drawn for the given numbers
  (cos_zenith) of the held-out fossils, so both sides have the same seasons.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scf.core.errors import NothingToDo, ScfError
from scf.fertilization.batch_plan import BatchPlan, read_plan
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.models.physics import constraints_for
from scf.models.record import Floats, LayoutMismatch
from scf.models.record_energy import RecordEnergy
from scf.storage.partitions import Folder
from scf.training.checkpoint import load_energy
from scf.training.checkpoint_files import checkpoint_digest, find_checkpoint
from scf.training.fossils import layout_of, plan_boundary
from scf.verification.corruptions import auroc, corruptions_for
from scf.verification.denoising import (
    HeldOut,
    add_noise,
    gaussian_losses,
    model_losses,
    summary,
)
from scf.verification.physics_checks import check_physics
from scf.verification.pictures import draw_report
from scf.verification.score import default_sigma

SCHEMA = "scf.report/1"
REPORT_NAME = "report.json"
PICTURE_NAME = "report.png"

# At most so many held-out fossils are measured, and so many samples drawn.
_FOSSILS_MAX = 4096
_SAMPLES_MAX = 512
_STEPS = 24


@dataclass(frozen=True)
class Measured:
    """A report and what its picture needs."""

    report: dict[str, Any]
    energies: dict[str, Floats]
    sampled: tuple[Floats, Floats]


def measure(
    energy: RecordEnergy,
    held_out: HeldOut,
    *,
    sigma: float,
    champion: RecordEnergy | None = None,
    seed: int = 0,
) -> Measured:
    """Everything but names and digests.

    Args:
        energy: The candidate.
        held_out: Fossils that no run has trained on.
        sigma: Noise level at which energies are compared, in the candidate's `sigma_unit`.
        champion: Measured on the same noise, if it models the same fields.
        seed: Of noise, corruptions and samples.
    """
    noisy = add_noise(held_out, energy, seed=seed)
    losses = model_losses(noisy, energy, energy)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "held_out": {"fossils": len(held_out.cids), "families": len(set(held_out.families))},
        "dsm_loss": summary(losses, held_out.families, seed=seed),
    }
    for name, independent in (("baseline_dsm_loss", True), ("gaussian_dsm_loss", False)):
        found = gaussian_losses(noisy, energy, independent=independent)
        report[name] = summary(found, held_out.families, seed=seed)
    if champion is not None and champion.layout == energy.layout:
        found = model_losses(noisy, champion, energy)
        report["champion_dsm_loss"] = summary(found, held_out.families, seed=seed)

    x_ND, c_NK = held_out.x_ND, held_out.c_NK
    generator = torch.Generator().manual_seed(seed)
    given = c_NK[np.linspace(0, len(c_NK) - 1, min(len(c_NK), _SAMPLES_MAX)).astype(int)]
    sampled = energy.sample(given, steps=_STEPS, generator=generator), given
    real_N = energy.energy(x_ND, sigma, c_NK)
    energies = {"real": real_N, "sampled": energy.energy(sampled[0], sigma, given)}
    aurocs = {}
    rng = np.random.default_rng(seed)
    for name, corrupt in corruptions_for(energy.layout).items():
        spoiled_ND = corrupt(x_ND, rng)
        changed = (spoiled_ND != x_ND).any(axis=1)
        if changed.sum() >= 2:
            corrupted_N = energy.energy(spoiled_ND[changed], sigma, c_NK[changed])
            aurocs[name] = auroc(real_N[changed], corrupted_N)
            energies[name] = corrupted_N
    names = [field.name for field in (*energy.layout.modelled, *energy.layout.given)]
    finite = all(bool(np.isfinite(v).all()) for v in (losses, *energies.values()))
    report |= {
        "sigma": sigma,
        "sigma_unit": energy.sigma_unit,
        "energy": {
            "real": _quantiles(real_N),
            "sampled": _quantiles(energies["sampled"]),
            "corrupted": {name: _quantiles(energies[name]) for name in aurocs},
        },
        "auroc": aurocs,
        "physics": check_physics(constraints_for(names), energy.layout, (x_ND, c_NK), sampled),
        "finite": finite,
    }
    if not finite:
        report["dsm_loss"] = None  # a number that is not one is never replaced by one that is
    return Measured(report, energies, sampled)


def read_held_out(plan: BatchPlan, vault: Path, energy: RecordEnergy) -> HeldOut:
    """The held-out fossils of a plan, at most 4096, in the order of the plan.

    Raises:
        LayoutMismatch: They are of another kind than the model's.
        NothingToDo: The plan holds nothing out.
    """
    batcher = FossilBatcher(plan, batch_size=512, as_numpy=True, split="held_out", vault_root=vault)
    if layout_of(batcher, boundary=plan_boundary(plan, vault)) != energy.layout:
        raise LayoutMismatch("the plan's fossils have other fields than the model")
    xs, cs, cids, families = [], [], [], []
    for minibatch in batcher.stream_minibatches():
        x_BD, c_BK = energy.layout.pack(minibatch)
        xs.append(x_BD)
        cs.append(c_BK)
        cids += minibatch["_cid"]
        families += minibatch["_family"]
        if len(cids) >= _FOSSILS_MAX:
            break
    if not cids:
        raise NothingToDo("the plan holds no fossils out, so there is nothing to measure on")
    order = sorted(range(len(cids)), key=cids.__getitem__)[:_FOSSILS_MAX]
    x_ND, c_NK = np.concatenate(xs)[order], np.concatenate(cs)[order]
    return HeldOut(x_ND, c_NK, [cids[i] for i in order], [families[i] for i in order])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        plan = read_plan(options.plan)
        energy = load_energy(checkpoint)
        champion = load_energy(options.champion) if options.champion else None
        held_out = read_held_out(plan, options.vault, energy)
        measured = measure(
            energy,
            held_out,
            sigma=default_sigma(checkpoint),
            champion=champion,
            seed=options.seed,
        )
        out = Folder.at(options.out)
        with out.open_staged(PICTURE_NAME) as file:
            draw_report(
                file, energy, held_out, measured.sampled, measured.energies, measured.report
            )
        report = {
            **measured.report,
            "checkpoint_digest": checkpoint_digest(checkpoint),
            "plan_id": plan.plan_id,
            "seed": options.seed,
            "seconds": round(time.monotonic() - started, 2),
            "files": [PICTURE_NAME],
        }
        out.write_json(REPORT_NAME, _finite_or_null(report))
    except ScfError as error:
        sys.stderr.write(f"measure: {error}\n")
        if error.remedy:
            sys.stderr.write(f"         {error.remedy}\n")
        return error.exit_code
    sys.stderr.write(f"report in {out.path} after {report['seconds']} s\n")
    return 0


def _quantiles(values_N: Floats) -> dict[str, float]:
    q05, q25, q50, q75, q95 = np.quantile(values_N, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    mean = float(values_N.mean())
    return {"mean": mean, "q05": q05, "q25": q25, "q50": q50, "q75": q75, "q95": q95}


def _finite_or_null(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null, and `finite` says false."""
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.measure",
        description="Measure a checkpoint on the held-out fossils of a plan.",
        epilog="Writes report.json (scf.report/1) and report.png into --out.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="the candidate")
    parser.add_argument("--plan", type=Path, required=True, help="the batch plan (JSON)")
    parser.add_argument("--vault", type=Path, required=True, help="the fossil_vault folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and picture")
    parser.add_argument("--champion", type=Path, help="a checkpoint or generation to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of noise, corruptions and samples")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
