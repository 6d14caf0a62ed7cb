"""Measure a checkpoint on the held-out fossils of its plan: report.json and a picture.

    python -m scf.verification.measure --checkpoint DIR --plan FILE --vault DIR --out DIR
        [--champion DIR] [--earlier WEEKS NAME DIR ...] [--scratch DIR] [--anchor FILE] [--seed N]

What is measured (schema scf.report/1, read by `verification.report`):

* dsm_loss: denoising loss, dimensionless, on noise that is a function of (seed, CID); its mean, a
  95 % interval over families, and each family's mean. Beside it the champion's on the same noise,
  that of independent Gaussians (baseline_dsm_loss), and that of the full-covariance Gaussian which
  is the model with its network switched off (gaussian_dsm_loss).
  champion_dsm_loss also holds paired_sigma: how its loss minus the candidate's varies by fossil.
* earlier_champions, scratch, anchor: others on the same noise (`opponents`). held_out.slices:
  families by slice of the domain.
* near_duplicates: held-out fossils within 1e-3 of a training fossil. They are left out of every
  number here, unless they are more than a tenth, which the gate refuses.
* cost, champion_cost: what scoring a fossil takes (`cost`).
* energy: quantiles in nats at `sigma`, of real, sampled and corrupted fossils.
* auroc: for each corruption the chance that a corrupted fossil has a higher energy than a real one,
  over the fossils that it changes (shuffling a channel that is zero all day changes nothing).
* energy_real, auroc_paired, observables, sliced_wasserstein, ranks, loss_by_sigma: how samples and
  energies agree with real fossils, beside what chance shows (`verification.agreement`).
* pareto: residuals of samples and their distance from real fossils, side by side.
* contrastive: verdict of a second phase of training, where there was one.
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

from scf.core.errors import ScfError
from scf.fertilization.batch_plan import read_plan
from scf.fertilization.shard_cache import CACHE_SHARE
from scf.models.physics import constraints_for
from scf.models.record import Floats
from scf.models.record_energy import RecordEnergy
from scf.storage.partitions import Folder
from scf.training.checkpoint import load_energy
from scf.training.checkpoint_files import checkpoint_digest, find_checkpoint, read_state
from scf.verification.agreement import agreement, pareto
from scf.verification.corruptions import auroc, corruptions_for
from scf.verification.cost import Rapl, measure_costs
from scf.verification.denoising import (
    HeldOut,
    add_noise,
    gaussian_losses,
    model_losses,
    summary,
)
from scf.verification.opponents import (
    anchor_losses,
    earlier_losses,
    load_earlier,
    other_loss,
    read_anchor,
)
from scf.verification.physics_checks import check_physics
from scf.verification.pictures import draw_report
from scf.verification.pool import open_pool, slices
from scf.verification.score import default_sigma

SCHEMA = "scf.report/1"
REPORT_NAME = "report.json"
PICTURE_NAME = "report.png"

# At most so many samples are drawn.
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
        "held_out": {
            "fossils": len(held_out.cids),
            "families": len(set(held_out.families)),
            "slices": slices(held_out.families),
        },
        "dsm_loss": summary(losses, held_out.families, seed=seed),
    }
    for name, independent in (("baseline_dsm_loss", True), ("gaussian_dsm_loss", False)):
        found = gaussian_losses(noisy, energy, independent=independent)
        report[name] = summary(found, held_out.families, seed=seed)
    if champion is not None and champion.layout == energy.layout:
        found = model_losses(noisy, champion, energy)
        report["champion_dsm_loss"] = {
            **summary(found, held_out.families, seed=seed),
            "paired_sigma": float(np.std(found - losses, ddof=min(1, len(losses) - 1))),
        }

    x_ND, c_NK = held_out.x_ND, held_out.c_NK
    generator = torch.Generator().manual_seed(seed)
    given = c_NK[np.linspace(0, len(c_NK) - 1, min(len(c_NK), _SAMPLES_MAX)).astype(int)]
    sampled = energy.sample(given, steps=_STEPS, generator=generator), given
    real_N = energy.energy(x_ND, sigma, c_NK)
    energies = {"real": real_N, "sampled": energy.energy(sampled[0], sigma, given)}
    aurocs = {}
    all_spoiled = {}
    rng = np.random.default_rng(seed)
    for name, corrupt in corruptions_for(energy.layout).items():
        spoiled_ND = corrupt(x_ND, rng)
        changed = (spoiled_ND != x_ND).any(axis=1)
        if changed.sum() >= 2:
            corrupted_N = energy.energy(spoiled_ND[changed], sigma, c_NK[changed])
            aurocs[name] = auroc(real_N[changed], corrupted_N)
            energies[name] = corrupted_N
            all_spoiled[name] = changed, corrupted_N
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
    if finite:
        both = real_N, energies["sampled"]
        report |= agreement(energy, held_out, sampled[0], both, all_spoiled, noisy, seed=seed)
        report["pareto"] = pareto(report["physics"], report["sliced_wasserstein"])
    if not finite:
        report["dsm_loss"] = None  # a number that is not one is never replaced by one that is
    return Measured(report, energies, sampled)


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
        anchor = read_anchor(options.anchor) if options.anchor else None
        pool = open_pool(
            plan,
            options.vault,
            energy,
            anchor.cids if anchor else (),
            cache_share=options.cache_share,
        )
        held_out, sigma = pool.held_out, default_sigma(checkpoint)
        measured = measure(energy, held_out, sigma=sigma, champion=champion, seed=options.seed)
        others: dict[str, Any] = {
            "near_duplicates": pool.near_duplicates,
            "contrastive": read_state(checkpoint).get("contrastive") or None,
            "earlier_champions": earlier_losses(
                energy, held_out, load_earlier(options.earlier), options.seed
            ),
        }
        if options.scratch:
            scratch = load_energy(options.scratch)
            others["scratch"] = {"dsm_loss": other_loss(energy, held_out, scratch, options.seed)}
        models = {"cost": (energy, checkpoint)}
        if champion is not None and champion.layout == energy.layout:
            models["champion_cost"] = champion, find_checkpoint(options.champion)
            if anchor is not None and pool.anchor.cids:
                others["anchor"] = anchor_losses(
                    energy, champion, pool.anchor, anchor, options.seed
                )
        others |= measure_costs(
            models, held_out.x_ND, held_out.c_NK, sigma=sigma, meter=Rapl.find()
        )
        out = Folder.at(options.out)
        with out.open_staged(PICTURE_NAME) as file:
            draw_report(
                file, energy, held_out, measured.sampled, measured.energies, measured.report
            )
        report = {
            **measured.report,
            **others,
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
    parser.add_argument(
        "--earlier",
        nargs=3,
        action="append",
        default=[],
        metavar=("WEEKS", "NAME", "DIR"),
        help="a champion of so many weeks ago; may be given several times",
    )
    parser.add_argument("--scratch", type=Path, help="the same plan and budget from nothing")
    parser.add_argument("--anchor", type=Path, help="the frozen anchor set (scf.anchor/1)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, corruptions and samples")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--cache-share",
        type=float,
        default=CACHE_SHARE,
        help=f"of system_cache that the shard cache may take (default {CACHE_SHARE}; 0: none)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
