"""The figures of a model on a system whose truth is known.

All sigma are in the case's unit (mostly the standard deviation of the system's numbers). Energies
are compared on records that carry the noise they are scored with, drawn anew: -ln p(y; sigma)
against the truth's, normaliser included.

* score_error: |s - s_true| / |s_true|, over all records and numbers; score_cosine: s . s_true over
  the lengths of both.
* energy_correlation, energy_mae: of E and E_true; the mean absolute error (nats) after the mean
  difference is taken away.
* log_z_error_per_site: |mean(E - E_true)| / D. Both are normalised, so it should be zero.
* ess: 1 / (E_p[p/q] E_p[q/p]), records as draws of p: 1 where the densities agree.
* clean_*: the same with E at small sigma on clean records against the clean energy, as older
  tables have it (research, ebdm section 4). Their floor is the smoothing itself.
"""

from typing import NamedTuple

import numpy as np

from scf.training.api import Model
from scf.verification.corruptions import auroc
from scf.verification.distances import sliced_wasserstein
from scf.verification.reference_darcy import DarcyFlow
from scf.verification.reference_systems import (
    Array,
    GaussianField,
    GaussianMixture,
    GinzburgLandauChain,
    Phi4,
)
from scf.verification.reference_xy import XYLattice, observable_errors
from scf.verification.science_cases import Case, Joined, System, Truth
from scf.verification.science_darcy import darcy_figures, moved_figures

_TESTED = 500
_CLEAN_LEVEL = 0.1
_SAMPLES = 1024
_GRID = 201
_DARCY_SAMPLES = 256  # each is solved anew

Figures = dict[str, float]


class Level(NamedTuple):
    """Energies at one noise level, for a picture."""

    level: float
    true_N: Array
    found_N: Array


class Measured(NamedTuple):
    """Figures by name, and what pictures need."""

    figures: Figures
    levels: list[Level]
    fresh: Array
    sampled: Array


def measure_case(
    model: Model | Joined, case: Case, system: System, *, seed: int, langevin_steps: int = 20
) -> Measured:
    """Everything that is measured of a model, on records that it was not trained on."""
    rng = np.random.default_rng([seed, 1])
    fresh = system.sample(_SAMPLES, rng)
    if isinstance(system, DarcyFlow):  # its energy is not known, its equation is
        drawn, sampled = (
            model.sample(_DARCY_SAMPLES, steps=32, seed=seed, keep=keep) for keep in ({}, case.keep)
        )
        figures = darcy_figures(system, fresh, sampled, rng)
        before = darcy_figures(system, fresh, drawn, rng)
        figures |= {f"drawn_{name}": value for name, value in before.items()}
        figures |= moved_figures(fresh, drawn, sampled)
        figures["sampler_distance"] = _distance(fresh, sampled, rng)
        return Measured(figures, [], fresh, sampled)
    clean = fresh[:_TESTED]
    unit = case.unit or float(fresh.std())
    truth = Truth(system, rng)
    figures = {"unit": unit}
    levels = []
    for level in case.levels:
        noisy = clean + level * unit * rng.standard_normal(clean.shape)
        true_N, true_score, error = truth.at(noisy, level * unit)
        found_N = model.energy(noisy, level * unit)
        found_score = model.score(noisy, level * unit)
        size = int(np.prod(system.shape))
        figures |= {
            f"{name}@{level:g}": value
            for name, value in (
                ("score_error", _relative(found_score, true_score)),
                ("score_cosine", _cosine(found_score, true_score)),
                *_agreement(found_N, true_N).items(),
                ("log_z_error_per_site", abs(float((found_N - true_N).mean())) / size),
                ("truth_error", error),
            )
        }
        levels.append(Level(level, true_N, found_N))
    for name in ("score_cosine", "energy_correlation"):
        found = [figures[f"{name}@{level:g}"] for level in case.levels]
        figures[f"{name}_min"] = float(np.min(found))  # NaN where one is
    sampled = model.sample(_SAMPLES, steps=32, langevin_steps=langevin_steps, seed=seed)
    figures["sampler_distance"] = _distance(fresh, sampled, rng)
    if isinstance(system, Phi4 | GinzburgLandauChain):
        figures |= _lattice_figures(model, system, fresh, sampled, unit, rng)
    elif isinstance(system, XYLattice):
        figures |= observable_errors(system, fresh, sampled)
    elif isinstance(system, GaussianField):
        figures |= _spectrum(system, sampled)
    elif isinstance(system, GaussianMixture):
        figures |= _modes(system, sampled)
        if system.shape == (2,):
            figures |= _plane(model, system, unit, case.levels)
    return Measured({k: float(v) for k, v in figures.items()}, levels, fresh, sampled)


def _relative(found: Array, true: Array) -> float:
    return float(np.sqrt(((found - true) ** 2).sum() / (true**2).sum()))


def _cosine(found: Array, true: Array) -> float:
    return float((found * true).sum() / np.sqrt((found**2).sum() * (true**2).sum()))


def _distance(fresh: Array, sampled: Array, rng: np.random.Generator) -> float:
    """Sliced Wasserstein distance of samples to the truth, in standard deviations of the latter.

    Channels each in their own; of both sets centred alike, on the truth.
    """
    axes = (0, *range(2, fresh.ndim)) if fresh.ndim > 2 else (0,)
    shift, spread = fresh.mean(axis=axes, keepdims=True), fresh.std(axis=axes, keepdims=True)
    flat = [((part - shift) / spread).reshape(len(part), -1) for part in (fresh, sampled)]
    return sliced_wasserstein(flat[0], flat[1], rng)


def _agreement(found_N: Array, true_N: Array) -> Figures:
    """Correlation, mean absolute error and effective sample share of an energy."""
    apart_N = found_N - true_N
    apart_N = apart_N - apart_N.mean()
    return {
        "energy_correlation": float(np.corrcoef(found_N, true_N)[0, 1]),
        "energy_mae": float(np.abs(apart_N).mean()),
        "ess": float(1 / (np.exp(-apart_N).mean() * np.exp(apart_N).mean())),
    }


def _lattice_figures(
    model: Model | Joined,
    system: Phi4 | GinzburgLandauChain,
    fresh: Array,
    sampled: Array,
    unit: float,
    rng: np.random.Generator,
) -> Figures:
    figures: Figures = {}
    sigma = _CLEAN_LEVEL * unit
    clean = fresh[:_TESTED]
    for name, value in _agreement(model.energy(clean, sigma), system.energy(clean)).items():
        figures[f"clean_{name}@{_CLEAN_LEVEL:g}"] = value
    # A detector's ceiling is the true energy itself: raw AUROC is low because the task is hard.
    gaps = []
    for name, spoil in (("patch_exchanged", _exchange_patch), ("one_site_raised", _raise_site)):
        spoiled = spoil(fresh, unit, rng)
        seen = auroc(model.energy(fresh, sigma), model.energy(spoiled, sigma))
        ceiling = auroc(system.action(fresh), system.action(spoiled))
        figures[f"auroc_{name}"], figures[f"auroc_ceiling_{name}"] = seen, ceiling
        gaps.append(abs(seen - ceiling))
    figures["auroc_gap_max"] = max(gaps)
    # Observables of samples and of fresh configurations, apart in combined standard errors.
    for name, values in _observables(system, fresh).items():
        other = _observables(system, sampled)[name]
        error = np.hypot(values.std(), other.std()) / np.sqrt(len(values))
        figures[f"observable_{name}_in_errors"] = float((other.mean() - values.mean()) / error)
    return figures


def _observables(system: Phi4 | GinzburgLandauChain, x: Array) -> dict[str, Array]:
    axes = tuple(range(1, x.ndim))
    mean = x.mean(axis=axes)
    hop = (x * np.roll(x, -1, axis=-1)).mean(axis=axes)
    return {
        "action": system.action(x),
        "square": (x**2).mean(axis=axes),
        "magnetisation": np.abs(mean),
        "susceptibility": mean**2,
        "neighbours": hop,
    }


def _exchange_patch(x: Array, _unit: float, rng: np.random.Generator) -> Array:
    """A patch of three sites a side from another configuration."""
    spoiled = x.copy()
    place = (slice(None), *(slice(0, 3) for _ in x.shape[1:]))
    spoiled[place] = np.roll(x, 1 + int(rng.integers(len(x) - 1)), axis=0)[place]
    return spoiled


def _raise_site(x: Array, unit: float, _rng: np.random.Generator) -> Array:
    """One standard deviation more at one site."""
    spoiled = x.copy()
    spoiled.reshape(len(x), -1)[:, 0] += unit  # a view: the copy is contiguous
    return spoiled


def _spectrum(system: GaussianField, sampled: Array) -> Figures:
    power = (np.abs(np.fft.fft2(sampled, norm="ortho")) ** 2).mean(axis=0)
    error = np.abs(power / system.power - 1)
    return {
        "spectrum_error_median": float(np.median(error)),
        "spectrum_error_max": float(error.max()),
        # What as many exact draws would show: mean absolute error of a mean of squares.
        "spectrum_error_expected": float(np.sqrt(2 / len(sampled)) * 0.6745),
    }


def _plane(
    model: Model | Joined, system: GaussianMixture, unit: float, levels: tuple[float, ...]
) -> Figures:
    """Divergence over a grid."""
    side = np.linspace(-2.5, 2.5, _GRID)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    cell = float(side[1] - side[0]) ** 2
    figures: Figures = {}
    for level in levels:
        true_log = -system.energy(grid, level * unit)
        found_log = -model.energy(grid, level * unit)
        mass = np.exp(found_log).sum() * cell
        gap = true_log - (found_log - np.log(mass))
        figures[f"grid_kl@{level:g}"] = float((np.exp(true_log) * gap).sum() * cell)
        figures[f"grid_log_mass@{level:g}"] = abs(float(np.log(mass)))
    return figures


def _modes(system: GaussianMixture, sampled: Array) -> Figures:
    """The weight that samples give to each mode: total variation against the truth."""
    chosen = system.likeliest(sampled)
    share = np.bincount(chosen, minlength=len(system.weights)) / len(sampled)
    return {"mode_weight_error": float(np.abs(share - system.weights).sum() / 2)}
