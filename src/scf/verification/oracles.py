"""Energies and scores of smoothed densities where no closed form exists, with their own error.

For a density exp(-S(x)) / Z and noise sigma,

    p(y; sigma) = (1/Z) integral of exp(-S(x)) N(y; x, sigma^2) dx                              (1)

is an integral over the x that y may have come from. It is taken by importance sampling: around
each y a Gaussian with the posterior's mode and (average) curvature; what S has beyond a quadratic
is the weight. The same weighted draws give the score. Two estimators have it as their mean,
(x - y)/sigma^2 (Tweedie) and -dS/dx (target score identity, arXiv 2402.08667). Mixed mode by mode
as for a Gaussian, a = 1/(1 + sigma^2 K), their fluctuations cancel but for what S has beyond a
quadratic. No model and no Markov chain is involved, so an error here cannot agree with one there.
"""

import itertools
from typing import NamedTuple, Protocol

import numpy as np

from scf.verification.reference_systems import Array

# Shapes: N records, D numbers (sites) a record.

_NEWTON_STEPS = 30
_DAMPING = 0.7


class LatticeSystem(Protocol):
    """A density exp(-S) / Z on a periodic lattice."""

    @property
    def log_z(self) -> float: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def action(self, x: Array) -> Array:
        """S, nats, (N,)."""

    def action_gradient(self, x: Array) -> Array:
        """dS/dx, shape of x."""

    def stiffness(self) -> Array:
        """Average curvature of S for each Fourier mode (unitary), > 0, shape of a record."""


class Smoothed(NamedTuple):
    """What is known of a smoothed density at records y.

    Attributes:
        energy: -ln p(y; sigma) in nats, (N,); as good as the system's `log_z`.
        energy_error: Its standard error from the draws.
        score: d ln p / dy, shape of y.
        score_error: Its standard error.
    """

    energy: Array
    energy_error: Array
    score: Array
    score_error: Array


def smoothed(
    system: LatticeSystem, noisy: Array, sigma: float, rng: np.random.Generator, *, draws: int = 256
) -> Smoothed:
    """Energy and score of the smoothed density at `noisy` (N, *shape), sigma in the data's units.

    Good where exp(-S) times the noise's Gaussian has one mode a record: weak couplings, or sigma
    below the distance between wells. The stated errors say where it is not.
    """
    axes = tuple(range(1, noisy.ndim))
    size = int(np.prod(system.shape))
    precision = system.stiffness() + 1 / sigma**2
    mode = _filtered(noisy, 1 / (precision * sigma**2), axes)
    for _ in range(_NEWTON_STEPS):
        slope = system.action_gradient(mode) + (mode - noisy) / sigma**2
        mode = mode - _DAMPING * _filtered(slope, 1 / precision, axes)
    share_k = 1 / (1 + sigma**2 * system.stiffness())
    log_norm = 0.5 * np.log(precision / (2 * np.pi)).sum()
    log_w, pulls = [], []
    halves = (rng.standard_normal(noisy.shape) for _ in range(draws // 2))
    # Each draw with its mirror image about the mode: what is odd in the weight cancels.
    for white in itertools.chain.from_iterable((half, -half) for half in halves):
        x = mode + _filtered(white, precision**-0.5, axes)
        log_q = log_norm - 0.5 * (white**2).sum(axis=axes)
        log_likelihood = -0.5 * ((x - noisy) ** 2).sum(axis=axes) / sigma**2
        log_likelihood -= size * np.log(sigma * np.sqrt(2 * np.pi))
        log_w.append(-system.action(x) + log_likelihood - log_q)
        tweedie = (x - noisy) / sigma**2
        pulls.append(tweedie - _filtered(system.action_gradient(x) + tweedie, share_k, axes))
    log_w_MN = np.stack(log_w)
    top_N = log_w_MN.max(axis=0)
    w_MN = np.exp(log_w_MN - top_N)
    mean_N = w_MN.mean(axis=0)
    share = (w_MN / w_MN.sum(axis=0)).reshape(*w_MN.shape, *([1] * len(axes)))
    pull = np.stack(pulls)
    score = (share * pull).sum(axis=0)
    return Smoothed(
        energy=system.log_z - top_N - np.log(mean_N),
        energy_error=_pair_error(w_MN) / mean_N,
        score=score,
        score_error=np.sqrt((share**2 * (pull - score) ** 2).sum(axis=0)),
    )


def _pair_error(w_MN: Array) -> Array:
    """Standard error of the mean of draws that come in mirrored pairs, (N,)."""
    pairs = 0.5 * (w_MN[0::2] + w_MN[1::2])
    error: Array = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs))
    return error


def _filtered(x: Array, gain: Array, axes: tuple[int, ...]) -> Array:
    """Multiply each Fourier mode by `gain`."""
    modes = np.fft.fftn(x, axes=axes) * gain
    filtered: Array = np.fft.ifftn(modes, axes=axes).real
    return filtered
