"""How samples and energies of a checkpoint agree with held-out records: a report's further pages.

Everything here is measured beside what chance alone would show:

* energy_real: mean energy of held-out records, its 95 % interval over families, and each family's.
* observables: mean and spread of each field, and how neighbours go together, real against sampled,
  apart in combined standard errors (families count as one each, for fossils of a family go along
  with each other).
* sliced_wasserstein: samples against real records over real against real, the same number each; in
  scales of the data, given numbers left out.
* ranks: where the energies of real records lie among those of samples. If the model is right they
  lie anywhere alike; the largest gap (Kolmogorov, Smirnov) and what chance gives in 95 of 100.
* auroc_paired: chance that spoiling a record raises its own energy. `auroc` compares records with
  each other, and falls where real records differ much in likelihood.
* loss_by_sigma: denoising loss in bands of noise, beside that of the full-covariance Gaussian; and
  how well energies of different noise levels go together: `slope_gap`, the mean of dE/d(ln sigma)
  minus D - |n|^2 in nats, which is zero for a normalised energy, with its standard error over
  families.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scf.models.record import FieldLayout, Floats
from scf.models.record_energy import RecordEnergy
from scf.verification.denoising import LEVELS, HeldOut, NoisyHeldOut, summary
from scf.verification.distances import beside_floor

# Shapes: N fossils, M samples, D modelled numbers.

# Edges of the bands, in scales of the data.
BANDS = (0.0, 0.05, 0.2, 1.0, 5.0, np.inf)
_ROWS = 4096


def agreement(
    energy: RecordEnergy,
    held_out: HeldOut,
    sampled_MD: Floats,
    energies: tuple[Floats, Floats],
    spoiled: Mapping[str, tuple[npt.NDArray[np.bool_], Floats]],
    noisy: NoisyHeldOut,
    *,
    seed: int,
) -> dict[str, Any]:
    """The further pages; JSON.

    Args:
        energy: The checkpoint.
        held_out: Real records.
        sampled_MD: Samples for the given numbers of some of them, original units.
        energies: Of real records (N,) and of samples (M,), nats.
        spoiled: For each corruption, which records it changed and their energies after it.
        noisy: Held-out records with noise, as the losses are taken on.
        seed: Of directions and halves.
    """
    rng = np.random.default_rng(seed)
    scale_D = energy.frame.scale_D
    found, floor = beside_floor(held_out.x_ND / scale_D, sampled_MD / scale_D, rng)
    return {
        "energy_real": summary(energies[0], held_out.families, seed=seed),
        "auroc_paired": paired(energies[0], spoiled),
        "observables": observables(energy, held_out, sampled_MD),
        "sliced_wasserstein": {"sampled": found, "floor": floor},
        "ranks": ranks(*energies),
        "loss_by_sigma": loss_by_sigma(energy, noisy, held_out.families),
    }


def pareto(
    physics: Mapping[str, Mapping[str, Any]], distance: Mapping[str, float]
) -> dict[str, Any]:
    """Residuals of samples beside their distance from real records over its floor.

    Either alone can be gamed: a residual by samples of small amplitude, a distance by samples that
    break the law a little everywhere.
    """
    return {
        "distance_over_floor": distance["sampled"] / distance["floor"]
        if distance["floor"]
        else None,
        "residuals": {
            name: {key: check[key] for key in ("real", "sampled", "unit")}
            for name, check in physics.items()
        },
    }


def observables(
    energy: RecordEnergy, held_out: HeldOut, sampled_MD: Floats
) -> dict[str, dict[str, Any]]:
    """Each field's mean, spread and (on a grid) product of neighbours."""
    pages: dict[str, dict[str, Any]] = {}
    places = energy.layout.slices()
    for field in energy.layout.modelled:
        at = places[field.name]
        real, sampled = _of_field(held_out.x_ND[:, at], field), _of_field(sampled_MD[:, at], field)
        for name, real_N in real.items():
            by_family = _means(real_N, held_out.families)
            error = np.hypot(_error(by_family), _error(sampled[name]))
            apart = float(sampled[name].mean() - real_N.mean())
            pages[f"{field.name}.{name}"] = {
                "real": float(real_N.mean()),
                "sampled": float(sampled[name].mean()),
                "apart_in_errors": apart / float(error) if error > 0 else None,
            }
    return pages


def _of_field(x_ND: Floats, field: FieldLayout) -> dict[str, Floats]:
    found = {"mean": x_ND.mean(axis=1)}
    if field.size > 1:
        found["spread"] = x_ND.std(axis=1)
        grid = x_ND.reshape(-1, *field.shape)
        centred = grid - grid.mean(axis=tuple(range(1, grid.ndim)), keepdims=True)
        axis = grid.ndim - 1
        if field.shape[-1] > 1:
            ahead = np.take(centred, range(1, field.shape[-1]), axis=axis)
            here = np.take(centred, range(field.shape[-1] - 1), axis=axis)
            found["neighbours"] = (ahead * here).reshape(len(x_ND), -1).mean(axis=1)
    return found


def _means(values_N: Floats, families: Sequence[str]) -> Floats:
    by_family: dict[str, list[float]] = {}
    for value, family in zip(values_N.tolist(), families, strict=True):
        by_family.setdefault(family, []).append(value)
    return np.array([np.mean(values) for values in by_family.values()])


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def ranks(real_N: Floats, sampled_M: Floats) -> dict[str, float]:
    """Largest gap between the distributions of both energies, and the gap of chance (5 %)."""
    both = np.sort(np.concatenate([real_N, sampled_M]))
    below = [
        np.searchsorted(np.sort(part), both, side="right") / len(part)
        for part in (real_N, sampled_M)
    ]
    chance = 1.358 * np.sqrt(1 / len(real_N) + 1 / len(sampled_M))
    return {"gap": float(np.abs(below[0] - below[1]).max()), "chance": float(chance)}


def paired(
    real_N: Floats, spoiled: Mapping[str, tuple[npt.NDArray[np.bool_], Floats]]
) -> dict[str, float]:
    """Share of records whose own corruption has the higher energy; ties count half."""
    return {
        name: float(((after > real_N[rows]) + 0.5 * (after == real_N[rows])).mean())
        for name, (rows, after) in spoiled.items()
    }


def loss_by_sigma(
    energy: RecordEnergy, noisy: NoisyHeldOut, families: Sequence[str]
) -> list[dict[str, Any]]:
    """Denoising loss in bands of noise, the model's beside its Gaussian's, and the slope's gap.

    Of 4096 noisy records at most. The slope is calibrated where the gap is a few of its errors.
    """
    x_ND, c_NK = noisy.x_ND[:_ROWS], noisy.c_NK[:_ROWS]
    noise_ND, sigma_N = noisy.noise_ND[:_ROWS], noisy.sigma_N[:_ROWS]
    z, c = energy.to_model(x_ND, c_NK)
    sigma = torch.from_numpy(sigma_N).to(z)
    found = energy.model.derivatives(z, sigma, c)
    model_ND = found.gradient_BD
    _, gaussian_ND, _ = energy.model.base.energy(z, sigma, c)
    # Equation (6) of docs/science.md: given z both have the same mean.
    slope_N = found.noise_slope_B.detach().cpu().double().numpy()
    gap_N = slope_N - (noise_ND.shape[1] - np.square(noise_ND).sum(axis=1))
    family_N = np.repeat(np.array(families), LEVELS)[:_ROWS]
    losses = [
        (1 + sigma_N**2)
        * np.square(noise_ND - sigma_N[:, None] * gradient.cpu().double().numpy()).mean(axis=1)
        for gradient in (model_ND, gaussian_ND)
    ]
    pages = []
    for low, high in itertools.pairwise(BANDS):
        inside = (sigma_N >= low) & (sigma_N < high)
        if inside.any():
            pages.append(
                {
                    "sigma_from": float(sigma_N[inside].min()),
                    "sigma_to": float(sigma_N[inside].max()),
                    "loss": float(losses[0][inside].mean()),
                    "gaussian": float(losses[1][inside].mean()),
                    "slope_gap": float(gap_N[inside].mean()),
                    "slope_gap_error": _error(_means(gap_N[inside], family_N[inside].tolist())),
                }
            )
    return pages
