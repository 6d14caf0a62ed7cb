"""The XY model on a periodic lattice: a cluster sampler, and its smoothed density by annealing.

S = -beta sum over sites of cos(theta - theta_right) + cos(theta - theta_below), an angle a site,
seen as points (cos, sin) of the plane: records (2, L1, L2), cosines first. On the circles there is
no density over the plane; noise makes one,

    p(y; sigma) = (1/Z) integral of exp(-S) prod_i N(y_i; u(theta_i), sigma^2) dtheta,

and the integral is the partition function of the same lattice in a field h_i = y_i / sigma^2 on
each site. It is taken by annealed importance sampling (Neal 2001), from angles that are
independent in the mean field g_i = h_i + beta sum of the neighbours' means (von Mises variables,
normaliser 2 pi I_0(|g_i|)) to the lattice itself: g - h fades as the coupling grows. Each move on
the way is a heat bath, exact site by site. The spread of the weights is the standard error. Z is
the same with h = 0.
(In one dimension all this has a closed form: `reference_rotors`.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scf.verification.oracles import Smoothed
from scf.verification.reference_systems import Array

# Shapes: N records, R chains, L1 and L2 sites a side.

Complex = NDArray[np.complex128]

# A chain gives one record in so many sweeps; it begins with so many.
_APART, _BURN_IN = 5, 60
_CHAINS_MAX = 2048
_MEAN_FIELD_STEPS = 40
# Sweeps over which the mean of a posterior is taken, after the last level.
_SWEEPS = 8
# Angles held at once while densities are smoothed: bounds the memory, not the result.
_ANGLES_AT_ONCE = 500_000


@dataclass(frozen=True)
class XYLattice:
    """The system; see the module's words.

    Attributes:
        sides: L1 and L2, both even. Where one is 2 its neighbours are coupled twice.
        beta: Coupling over temperature; the infinite lattice's transition is near 1.12.
        log_z: ln of the integral of exp(-S) over all angles (see `with_log_z`).
        log_z_error: Its standard error.
    """

    sides: tuple[int, int] = (6, 6)
    beta: float = 0.8
    log_z: float = 0.0
    log_z_error: float = 0.0
    name: str = "xy"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, *self.sides)

    def action(self, x: Array) -> Array:
        """S of points on (or near) the circles, nats, (N,)."""
        return -self.beta * _bonds(_units(x))

    def observables(self, x: Array) -> dict[str, Array]:
        """What is looked at of each record, (N,) each; all are means over sites.

        * bond_energy: -cos(theta - theta'), a site.
        * magnetisation: |mean of u|.
        * helicity: the helicity modulus is its mean: cos(theta - theta') along an axis, minus beta
          times the square of the sum of sines over the number of sites; the mean of both axes.
        """
        unit = _units(x)
        sites = self.sides[0] * self.sides[1]
        helicity = np.zeros(len(x))
        for axis in (1, 2):
            turn = unit * np.conj(np.roll(unit, -1, axis=axis))
            cosine, sine = turn.real.sum(axis=(1, 2)), turn.imag.sum(axis=(1, 2))
            helicity += 0.5 * (cosine - self.beta * sine**2) / sites
        return {
            "bond_energy": -_bonds(unit) / sites,
            "magnetisation": np.abs(unit.mean(axis=(1, 2))),
            "helicity": helicity,
        }

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """`num` records from up to 2,048 chains in random order: heat bath and cluster moves.

        Up to 2,048 records are of chains of their own and independent, so that the standard error
        of a mean over them is its spread over the root of their number.
        """
        count = min(num, _CHAINS_MAX)
        theta = rng.uniform(-np.pi, np.pi, size=(count, *self.sides))
        kept = []
        for sweep in range(_BURN_IN + _APART * (-(-num // count) - 1) + 1):
            theta = self._reflect(self._heat_bath(theta, 1.0, None, rng), rng)
            if sweep >= _BURN_IN and (sweep - _BURN_IN) % _APART == 0:
                kept.append(theta)
        chosen = rng.permutation(np.concatenate(kept))[:num]
        return np.stack([np.cos(chosen), np.sin(chosen)], axis=1)

    def with_log_z(
        self, rng: np.random.Generator, *, chains: int = 2000, levels: int = 100
    ) -> "XYLattice":
        """The same with `log_z` and its standard error by annealed importance sampling."""
        sites = self.sides[0] * self.sides[1]
        theta = rng.uniform(-np.pi, np.pi, size=(chains, *self.sides))
        nothing = np.zeros(theta.shape, dtype=complex)
        _, log_w = self._anneal(theta, nothing, nothing, levels, rng)
        log_mean, error = _log_mean(log_w[None])
        log_z = sites * np.log(2 * np.pi) + log_mean[0]
        return replace(self, log_z=float(log_z), log_z_error=float(error[0]))

    def smoothed(
        self,
        noisy: Array,
        sigma: float,
        rng: np.random.Generator,
        *,
        chains: int = 24,
        levels: int = 16,
    ) -> Smoothed:
        """Energy and score of the smoothed density at `noisy` (N, 2, L1, L2), with their errors.

        Raises:
            ValueError: sigma is 0: on the circles themselves there is no density over the plane.
        """
        if not sigma > 0:
            raise ValueError("on the circles themselves there is no density over the plane")
        rows = max(1, _ANGLES_AT_ONCE // (chains * self.sides[0] * self.sides[1]))
        parts = [
            self._smoothed(noisy[start : start + rows], sigma, rng, chains, levels)
            for start in range(0, len(noisy), rows)
        ]
        return Smoothed(*(np.concatenate(found) for found in zip(*parts, strict=True)))

    def _smoothed(
        self, noisy: Array, sigma: float, rng: np.random.Generator, chains: int, levels: int
    ) -> Smoothed:
        num = len(noisy)
        field: Complex = np.asarray(noisy[:, 0] + 1j * noisy[:, 1], dtype=np.complex128) / sigma**2
        whole = self._mean_field(field)
        field_R: Complex = np.repeat(field, chains, axis=0)
        whole_R: Complex = np.repeat(whole, chains, axis=0)
        theta = rng.vonmises(np.angle(whole_R), np.abs(whole_R))
        theta, log_w = self._anneal(theta, field_R, whole_R - field_R, levels, rng)
        log_w_NC = log_w.reshape(num, chains)
        log_mean_N, error_N = _log_mean(log_w_NC)
        log_free_N = (np.log(2 * np.pi) + _log_i0(np.abs(whole))).sum(axis=(1, 2))
        square_N = (noisy**2).sum(axis=(1, 2, 3))
        sites = self.sides[0] * self.sides[1]
        log_outside_N = -(square_N + sites) / (2 * sigma**2) - sites * np.log(2 * np.pi * sigma**2)
        # The mean of each site's posterior given its neighbours, over chains by their weights.
        total = np.zeros(field_R.shape, dtype=complex)
        for _ in range(_SWEEPS):
            theta = self._heat_bath(theta, 1.0, field_R, rng)
            total += _mean_direction(self._local(np.exp(1j * theta), 1.0, field_R)) / _SWEEPS
        mean: Complex = total.reshape(num, chains, *self.sides)
        share = np.exp(log_w_NC - log_w_NC.max(axis=1, keepdims=True))
        share = (share / share.sum(axis=1, keepdims=True))[..., None, None]
        expected = (share * mean).sum(axis=1)
        apart = mean - expected[:, None]
        spread = [np.sqrt((share**2 * part**2).sum(axis=1)) for part in (apart.real, apart.imag)]
        return Smoothed(
            energy=self.log_z - log_outside_N - log_free_N - log_mean_N,
            energy_error=np.hypot(error_N, self.log_z_error),
            score=(np.stack([expected.real, expected.imag], axis=1) - noisy) / sigma**2,
            score_error=np.stack(spread, axis=1) / sigma**2,
        )

    def _mean_field(self, field: Complex) -> Complex:
        """Of each site: the field, and what its neighbours do to it on average."""
        mean = _mean_direction(field)
        for _ in range(_MEAN_FIELD_STEPS):
            mean = 0.5 * (mean + _mean_direction(self._local(mean, 1.0, field)))
        return self._local(mean, 1.0, field)

    def _anneal(
        self,
        theta: Array,
        field: Complex,
        extra: Complex,
        levels: int,
        rng: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Chains taken from no coupling to the whole of it, and the logs of their weights, (R,).

        `extra` is what they feel beside the field at the beginning; it fades as the coupling grows.
        """
        log_w = np.zeros(len(theta))
        for level in range(1, levels + 1):
            unit = np.exp(1j * theta)
            gained = self.beta * _bonds(unit) - (np.conj(extra) * unit).real.sum(axis=(1, 2))
            log_w += gained / levels
            share = level / levels
            theta = self._heat_bath(theta, share, field + (1 - share) * extra, rng)
        return theta, log_w

    def _local(self, unit: Complex, coupling: float, field: Complex | None) -> Complex:
        """What each site's direction feels: neighbours and field, nats."""
        local: Complex = np.zeros_like(unit)
        for axis in (1, 2):
            local += np.roll(unit, 1, axis=axis) + np.roll(unit, -1, axis=axis)
        local *= self.beta * coupling
        return local if field is None else local + field

    def _heat_bath(
        self, theta: Array, coupling: float, field: Complex | None, rng: np.random.Generator
    ) -> Array:
        """Each angle anew given its neighbours: the black squares, then the white ones."""
        black = np.indices(self.sides).sum(axis=0) % 2 == 0
        for colour in (black, ~black):
            local = self._local(np.exp(1j * theta), coupling, field)[:, colour]
            theta = theta.copy()
            theta[:, colour] = rng.vonmises(np.angle(local), np.abs(local))
        return theta

    def _reflect(self, theta: Array, rng: np.random.Generator) -> Array:
        """Clusters mirrored at a random axis, each with chance 1/2 (Swendsen, Wang; Wolff 1989)."""
        axis = rng.uniform(-np.pi, np.pi, size=(len(theta), 1, 1))
        along = np.cos(theta - axis)
        label = np.arange(theta[0].size).reshape(1, *self.sides).repeat(len(theta), axis=0)
        bonds = []
        for way in (1, 2):
            pull = 2 * self.beta * along * np.roll(along, -1, axis=way)
            bonds.append((way, rng.random(theta.shape) < -np.expm1(-np.maximum(pull, 0))))
        while True:  # the least label of each cluster spreads through it
            before = label
            for way, is_bound in bonds:
                least = np.minimum(label, np.roll(label, -1, axis=way))
                label = np.where(is_bound, least, label)
                back = np.roll(np.where(is_bound, least, theta[0].size), 1, axis=way)
                label = np.minimum(label, back)
            if (label == before).all():
                break
        coin = rng.random((len(theta), theta[0].size)) < 0.5
        turned = np.take_along_axis(coin, label.reshape(len(theta), -1), axis=1)
        mirrored = np.pi + 2 * axis - theta  # cos(theta - axis) changes its sign
        return np.where(turned.reshape(theta.shape), mirrored, theta)


def _units(x: Array) -> Complex:
    """Directions of the points, |u| = 1."""
    unit: Complex = np.exp(1j * np.arctan2(x[:, 1], x[:, 0]))
    return unit


def _bonds(unit: Complex) -> Array:
    """Sum of cos(theta - theta') over all bonds, (N,)."""
    around = np.roll(unit, -1, axis=1) + np.roll(unit, -1, axis=2)
    total: Array = (unit * np.conj(around)).real.sum(axis=(1, 2))
    return total


def _log_mean(log_w_NC: Array) -> tuple[Array, Array]:
    """Ln of the mean weight of each row, and its standard error."""
    top_N1 = log_w_NC.max(axis=1, keepdims=True)
    w_NC = np.exp(log_w_NC - top_N1)
    mean_N = w_NC.mean(axis=1)
    error_N = w_NC.std(axis=1, ddof=1) / np.sqrt(w_NC.shape[1]) / mean_N
    return top_N1[:, 0] + np.log(mean_N), error_N


_ANGLE = 2 * np.pi * np.arange(512) / 512


def _log_i0(h: Array) -> Array:
    """Ln I_0, by the mean of exp(h cos a) over a circle: exact to rounding up to h of 2,000."""
    total = np.zeros_like(h)
    for angle in _ANGLE:
        total += np.exp(h * (np.cos(angle) - 1))
    log_i0: Array = h + np.log(total / len(_ANGLE))
    return log_i0


def _mean_direction(local: Complex) -> Complex:
    """Mean of u under exp(Re(conj(local) u)): I_1/I_0 along it.

    The ratio by Gauss's continued fraction from far below, which no argument makes overflow.
    """
    h = np.maximum(np.abs(local), 1e-12)
    ratio = np.zeros_like(h)
    for order in range(80, 0, -1):  # I_n/I_(n-1) = 1 / (2n/h + I_(n+1)/I_n)
        ratio = 1 / (2 * order / h + ratio)
    # 80 terms are enough for h below 100; beyond it the asymptotic series is.
    series = 1 - 1 / (2 * h) - 1 / (8 * h**2) - 1 / (8 * h**3) - 25 / (128 * h**4)
    mean: Complex = np.where(h < 40, ratio, series) * local / h
    return mean


def observable_errors(system: XYLattice, fresh: Array, sampled: Array) -> Mapping[str, float]:
    """How far observables of samples and of exact draws are apart, in combined standard errors."""
    other = system.observables(sampled)
    found = {}
    for name, values in system.observables(fresh).items():
        error = np.hypot(
            values.std() / np.sqrt(len(values)), other[name].std() / np.sqrt(len(other[name]))
        )
        found[f"observable_{name}_in_errors"] = float((other[name].mean() - values.mean()) / error)
    return found | {"observables_apart_max": max(abs(value) for value in found.values())}
