"""Darcy samples: the residual, and beside it what a small residual alone would hide.

* residual_mae: mean |div(K grad p) + 1| of samples, in units of the source.
* resolve_error: mean |p - p'| / mean p', p' solved anew from the sampled ln K by finite elements;
  `resolve_floor` is that of true records (the two discretisations differ).
* sliced_wasserstein_ratio: distance of samples to the truth over that of truth to truth, each
  channel in units of its standard deviation.
* amplitude_error: the larger of |std(samples) / std(truth) - 1| over both channels. A residual is
  made small by samples of small amplitude; this says so.
* residual_over_spread: residual_mae over the standard deviation of the pressure.
* moved_*: how far samples were moved to keep the law, root mean square, in standard deviations.

Samples are brought to the law at the end (`models/restraint.py`); `drawn_*` are those of before:
the Pareto point on either side.
"""

import numpy as np
import torch

from scf.models.laws import darcy
from scf.models.physics import PhysicsConstraint
from scf.verification.distances import beside_floor
from scf.verification.reference_darcy import DarcyFlow
from scf.verification.reference_systems import Array

_RESOLVED = 256
PRESSURE, LOG_K = "pressure", "log_k"


def darcy_law(size: int) -> PhysicsConstraint:
    """Its residual on the unit square; 0.3 of the source is called agreement."""
    return darcy(PRESSURE, LOG_K, source=1.0, dx=1 / size, tolerance=0.3, unit="source")


def darcy_figures(
    system: DarcyFlow, fresh: Array, sampled: Array, rng: np.random.Generator
) -> dict[str, float]:
    """Figures of samples (N, 2, L, L) beside true records."""
    law = darcy_law(system.size)

    def residual(x: Array) -> float:
        fields = {PRESSURE: torch.from_numpy(x[:, 0]), LOG_K: torch.from_numpy(x[:, 1])}
        return float(law.residual(fields).abs().mean())

    def resolve_error(x: Array) -> float:
        anew = system.resolve(x[:_RESOLVED, 1])
        return float(np.abs(x[:_RESOLVED, 0] - anew).mean() / anew.mean())

    spread = fresh.std(axis=(0, 2, 3), keepdims=True)
    flat = [(part / spread).reshape(len(part), -1) for part in (fresh, sampled)]
    found, floor = beside_floor(flat[0], flat[1], rng)
    ratio = sampled.std(axis=(0, 2, 3)) / fresh.std(axis=(0, 2, 3))
    return {
        "residual_mae": residual(sampled),
        "residual_mae_truth": residual(fresh),
        "residual_over_spread": residual(sampled) / float(fresh[:, 0].std()),
        "resolve_error": resolve_error(sampled),
        "resolve_floor": resolve_error(fresh),
        "sliced_wasserstein": found,
        "sliced_wasserstein_floor": floor,
        "sliced_wasserstein_ratio": found / floor,
        "amplitude_pressure": float(ratio[0]),
        "amplitude_log_k": float(ratio[1]),
        "amplitude_error": float(np.abs(ratio - 1).max()),
    }


def moved_figures(fresh: Array, drawn: Array, kept: Array) -> dict[str, float]:
    """How far records were moved, in standard deviations of true ones."""
    spread = fresh.std(axis=(0, 2, 3))
    moved = np.sqrt(((kept - drawn) ** 2).mean(axis=(0, 2, 3))) / spread
    return {"moved_pressure": float(moved[0]), "moved_log_k": float(moved[1])}
