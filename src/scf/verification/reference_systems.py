"""Systems whose energy is known, to ask of our own code: is it right where the truth is known?

Each system draws exact samples (or HMC samples with a stated acceptance), and gives its energy and
score in closed form. Energies are in nats and normalised, E(x) = -log p(x), so that they can be
compared with a model's without a free constant. Where the density smoothed by Gaussian noise of
standard deviation sigma is known too, `energy(x, sigma)` gives it.

Shapes: N records, D numbers a record, L sites a side. Everything is float64 numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ReferenceSystem(Protocol):
    """A distribution known exactly."""

    name: str
    shape: tuple[int, ...]

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """Draw `num` records, shape (N, *shape)."""

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """-log of the density smoothed by sigma, nats, shape (N,)."""

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """Gradient of the log density smoothed by sigma, shape of x."""


@dataclass(frozen=True)
class GaussianField:
    """A stationary Gaussian random field on a periodic L x L lattice.

    Attributes:
        power: Variance of each Fourier mode (unitary transform), shape (L, L), symmetric under
            k -> -k, as `power_law` makes it.
    """

    power: Array
    name: str = "gaussian-field"

    @classmethod
    def power_law(cls, size: int, *, scale: float = 2.0, exponent: float = 2.0) -> "GaussianField":
        """Spectrum (1 + (k / scale)^2)^-exponent, k counted in periods of the lattice."""
        k = np.fft.fftfreq(size) * size
        k2 = k[:, None] ** 2 + k[None, :] ** 2
        return cls((1.0 + k2 / scale**2) ** -exponent)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.power.shape

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """Colour white noise by the square root of the spectrum."""
        white = np.fft.fft2(rng.standard_normal((num, *self.shape)), norm="ortho")
        coloured: Array = np.fft.ifft2(white * np.sqrt(self.power), norm="ortho").real
        return coloured

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """Exact at every sigma: noise adds sigma^2 to each mode's variance."""
        variance = self.power + sigma**2
        modes = np.abs(np.fft.fft2(x, norm="ortho")) ** 2
        energy: Array = 0.5 * (modes / variance + np.log(2 * np.pi * variance)).sum(axis=(-2, -1))
        return energy

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """Exact at every sigma."""
        modes = np.fft.fft2(x, norm="ortho") / (self.power + sigma**2)
        score: Array = -np.fft.ifft2(modes, norm="ortho").real
        return score


@dataclass(frozen=True)
class GaussianMixture:
    """Isotropic Gaussians with unequal weights, in any dimension.

    Attributes:
        means: Shape (K, D).
        widths: Standard deviation of each, shape (K,).
        weights: Positive, sum 1, shape (K,).
    """

    means: Array
    widths: Array
    weights: Array
    name: str = "gaussian-mixture"

    @classmethod
    def ring(cls, num: int = 8, *, radius: float = 1.0, width: float = 0.1) -> "GaussianMixture":
        """Modes on a circle with weights 1, 2, ..., num (normalised): modes must be weighed."""
        angle = 2 * np.pi * np.arange(num) / num
        weights = np.arange(1.0, num + 1)
        means = radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)
        return cls(means, np.full(num, width), weights / weights.sum())

    @classmethod
    def cloud(cls, size: int, *, num: int = 6, seed: int = 0) -> "GaussianMixture":
        """Modes in `size` dimensions, each number of variance about 1 in all; unequal everything.

        Means lie about six widths apart whatever the dimension, so that modes are separate but each
        can be reached; widths from 0.4 to 0.8 and weights 1, 2, ..., num (normalised).
        """
        rng = np.random.default_rng(seed)
        means = rng.standard_normal((num, size))
        apart = np.sqrt(2 * size)  # mean distance of two such points
        means = means * min(1.0, 3.6 / apart)
        weights = np.arange(1.0, num + 1)
        return cls(means, np.linspace(0.4, 0.8, num), weights / weights.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.means.shape[1:]

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """Choose a mode, then a point."""
        mode = rng.choice(len(self.weights), size=num, p=self.weights)
        noise = rng.standard_normal((num, *self.shape))
        points: Array = self.means[mode] + self.widths[mode, None] * noise
        return points

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """Exact at every sigma."""
        log_NK = self._log_terms(x, sigma)
        top_N = log_NK.max(axis=1)
        energy: Array = -(top_N + np.log(np.exp(log_NK - top_N[:, None]).sum(axis=1)))
        return energy

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """Exact at every sigma: responsibilities times the pull of each mode."""
        log_NK = self._log_terms(x, sigma)
        share_NK = np.exp(log_NK - log_NK.max(axis=1, keepdims=True))
        share_NK /= share_NK.sum(axis=1, keepdims=True)
        pull_NKD = (self.means - x[:, None]) / (self.widths**2 + sigma**2)[:, None]
        score: Array = (share_NK[..., None] * pull_NKD).sum(axis=1)
        return score

    def likeliest(self, x: Array) -> NDArray[np.int64]:
        """The mode that each point most probably came from, (N,)."""
        chosen: NDArray[np.int64] = self._log_terms(x, 0.0).argmax(axis=1)
        return chosen

    def _log_terms(self, x: Array, sigma: float) -> Array:
        variance_K = self.widths**2 + sigma**2
        square_NK = ((x[:, None] - self.means) ** 2).sum(axis=2)
        terms: Array = (
            np.log(self.weights)
            - 0.5 * square_NK / variance_K
            - 0.5 * self.shape[0] * np.log(2 * np.pi * variance_K)
        )
        return terms


@dataclass(frozen=True)
class Phi4:
    """Scalar phi^4 theory on a periodic L x L lattice.

    S = sum over sites of -2 kappa (phi phi_right + phi phi_up) + (1 - 2 lam) phi^2 + lam phi^4, as
    in Wang, Aarts, Zhou (arXiv 2309.17082), where kappa_c is about 0.2709 at lam = 0.022. The
    density is exp(-S) / Z; `log_z` is estimated by annealed importance sampling, with its error.
    """

    size: int
    kappa: float = 0.21
    lam: float = 0.022
    log_z: float = 0.0
    name: str = "phi4"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size)

    def action(self, x: Array) -> Array:
        """S(phi), nats, shape (N,)."""
        hops = x * (np.roll(x, -1, axis=-1) + np.roll(x, -1, axis=-2))
        square = x * x  # numpy's powers above 2 are ten times slower than products
        site = -2 * self.kappa * hops + (1 - 2 * self.lam) * square + self.lam * square * square
        action: Array = site.sum(axis=(-2, -1))
        return action

    def action_gradient(self, x: Array) -> Array:
        """dS/dphi, shape of x."""
        neighbours = sum(np.roll(x, step, axis=axis) for axis in (-1, -2) for step in (-1, 1))
        site = x * (2 * (1 - 2 * self.lam) + 4 * self.lam * x * x)
        gradient: Array = site - 2 * self.kappa * neighbours
        return gradient

    def stiffness(self) -> Array:
        """Curvature of S for each Fourier mode, phi^4 replaced by its mean-field mass.

        phi^4 -> 6 <phi^2> phi^2, with <phi^2> solved for in the same approximation; kept above
        zero where that would make the lattice unstable (the broken phase).
        """
        k = 2 * np.pi * np.arange(self.size) / self.size
        hop = 4 * self.kappa * (np.cos(k)[:, None] + np.cos(k)[None, :])
        square = 0.5
        for _ in range(50):
            curve = np.maximum(2 * (1 - 2 * self.lam) + 12 * self.lam * square - hop, 0.05)
            square = 0.5 * square + 0.5 * float((1 / curve).mean())
        stiffness: Array = curve
        return stiffness

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """S + log Z. Raises ValueError for sigma > 0 (see `verification.oracles`)."""
        _need_clean(sigma)
        return self.action(x) + self.log_z

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """-dS/dphi. Raises ValueError for sigma > 0 (see `verification.oracles`)."""
        _need_clean(sigma)
        return -self.action_gradient(x)

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """`num` configurations from up to 512 chains, in random order (see `chains`)."""
        return chains(self, rng.standard_normal, num, rng, step=0.2)

    def noisy_score_oracle(
        self, clean: Array, noisy: Array, sigma: float, rng: np.random.Generator, *, draws: int = 64
    ) -> tuple[Array, Array]:
        """Score of the smoothed density at `noisy`, and its Monte Carlo standard error.

        The score is E[(x - noisy) / sigma^2 | noisy] (Tweedie; Vincent 2011), an average over the
        posterior exp(-S(x) - |x - noisy|^2 / (2 sigma^2)). HMC starts at `clean`, the x that the
        noise was added to: an exact draw of that posterior, so no burn-in biases it.

        Returns:
            Mean and standard error, each of the shape of `noisy`.
        """

        def energy(x: Array) -> Array:
            square: Array = ((x - noisy) ** 2).sum(axis=(-2, -1))
            return self.action(x) + square / (2 * sigma**2)

        def gradient(x: Array) -> Array:
            return self.action_gradient(x) + (x - noisy) / sigma**2

        # The stiffest direction is that of the noise: the step shrinks with sigma.
        step = 0.25 * min(1.0, sigma)
        total = np.zeros_like(noisy)
        squares = np.zeros_like(noisy)
        x = clean
        for _ in range(draws):
            x, _ = hmc(energy, gradient, x, rng, trajectories=2, step=step, steps=8)
            pull = (x - noisy) / sigma**2
            total += pull
            squares += pull**2
        mean = total / draws
        spread: Array = np.sqrt(np.maximum(squares / draws - mean**2, 0.0) / draws)
        return mean, spread

    def with_log_z(
        self, rng: np.random.Generator, *, chains: int = 400, levels: int = 80
    ) -> "Phi4":
        """The same system with `log_z` estimated by annealed importance sampling (Neal 2001).

        The path goes from a free field with kappa_0 = min(kappa, 0.2), whose log Z is exact, to S.
        """
        free = min(self.kappa, 0.2)
        k = 2 * np.pi * np.arange(self.size) / self.size
        stiffness = 1.0 - 2 * free * (np.cos(k)[:, None] + np.cos(k)[None, :])
        log_z_free = 0.5 * np.log(np.pi / stiffness).sum()
        white = np.fft.fft2(rng.standard_normal((chains, *self.shape)), norm="ortho")
        x: Array = np.fft.ifft2(white / np.sqrt(2 * stiffness), norm="ortho").real
        start = Phi4(self.size, free, 0.0)
        log_weight = np.zeros(chains)
        for level in range(1, levels + 1):
            t0, t1 = (level - 1) / levels, level / levels
            log_weight -= (t1 - t0) * (self.action(x) - start.action(x))
            mixed = _Mixed(start, self, t1)
            x, _ = hmc(mixed.action, mixed.gradient, x, rng, trajectories=2)
        top = log_weight.max()
        log_z = float(log_z_free + top + np.log(np.exp(log_weight - top).mean()))
        return Phi4(self.size, self.kappa, self.lam, log_z)


@dataclass(frozen=True)
class _Mixed:
    start: Phi4
    end: Phi4
    share: float

    def action(self, x: Array) -> Array:
        return (1 - self.share) * self.start.action(x) + self.share * self.end.action(x)

    def gradient(self, x: Array) -> Array:
        start = self.start.action_gradient(x)
        return (1 - self.share) * start + self.share * self.end.action_gradient(x)


@dataclass(frozen=True)
class GinzburgLandauChain:
    """A periodic chain of double wells; Z is exact by the transfer matrix.

    S = sum over sites of (phi_{i+1} - phi_i)^2 / (2 a) + a h (phi_i^2 - 1)^2, with lattice step a
    and barrier h.
    """

    length: int = 32
    step: float = 0.5
    barrier: float = 1.0
    name: str = "ginzburg-landau"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def log_z(self) -> float:
        """Log Tr T^N, with T on a grid fine enough that refining it changes nothing.

        The integrand is smooth and vanishes at the ends, so the error of the rectangle rule falls
        exponentially with the number of points (tested by doubling it).
        """
        grid = np.linspace(-4.0, 4.0, 401)
        well = self.step * self.barrier * (grid**2 - 1) ** 2
        hop = (grid[:, None] - grid[None, :]) ** 2 / (2 * self.step)
        transfer = np.exp(-hop - 0.5 * (well[:, None] + well[None, :])) * (grid[1] - grid[0])
        eigenvalues = np.linalg.eigvalsh(transfer)
        largest = eigenvalues[-1]
        ratio = np.abs(eigenvalues / largest) ** self.length
        return float(self.length * np.log(largest) + np.log(ratio.sum()))

    def action(self, x: Array) -> Array:
        """S(phi), nats, shape (N,)."""
        hop = (np.roll(x, -1, axis=-1) - x) ** 2 / (2 * self.step)
        action: Array = (hop + self.step * self.barrier * (x**2 - 1) ** 2).sum(axis=-1)
        return action

    def action_gradient(self, x: Array) -> Array:
        """dS/dphi, shape of x."""
        hop = (2 * x - np.roll(x, -1, axis=-1) - np.roll(x, 1, axis=-1)) / self.step
        gradient: Array = hop + 4 * self.step * self.barrier * x * (x**2 - 1)
        return gradient

    def stiffness(self) -> Array:
        """Curvature of S at the bottom of the wells for each Fourier mode."""
        k = 2 * np.pi * np.arange(self.length) / self.length
        stiffness: Array = 2 * (1 - np.cos(k)) / self.step + 8 * self.step * self.barrier
        return stiffness

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """S + log Z. Raises ValueError for sigma > 0 (see `verification.oracles`)."""
        _need_clean(sigma)
        return self.action(x) + self.log_z

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """-dS/dphi. Raises ValueError for sigma > 0 (see `verification.oracles`)."""
        _need_clean(sigma)
        return -self.action_gradient(x)

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """`num` configurations from up to 512 chains that begin in either well."""

        def start(shape: tuple[int, ...]) -> Array:
            sign = rng.choice([-1.0, 1.0], size=(shape[0], 1))
            begun: Array = sign + 0.3 * rng.standard_normal(shape)
            return begun

        return chains(self, start, num, rng, step=0.15)


def chains(
    system: "Phi4 | GinzburgLandauChain",
    start: "Callable[[tuple[int, ...]], Array]",
    num: int,
    rng: np.random.Generator,
    *,
    step: float,
    burn_in: int = 200,
    apart: int = 10,
) -> Array:
    """`num` configurations by HMC: up to 512 chains, `burn_in` trajectories, one kept in `apart`.

    Returned in random order, so that neighbours are not of one chain.
    """
    count = min(num, 512)
    x = start((count, *system.shape))
    x, _ = hmc(system.action, system.action_gradient, x, rng, trajectories=burn_in, step=step)
    kept = [x]
    while len(kept) * count < num:
        x, _ = hmc(system.action, system.action_gradient, x, rng, trajectories=apart, step=step)
        kept.append(x)
    return rng.permutation(np.concatenate(kept))[:num]


def hmc(
    energy: "EnergyFunction",
    gradient: "EnergyFunction",
    x: Array,
    rng: np.random.Generator,
    *,
    trajectories: int,
    step: float = 0.2,
    steps: int = 8,
) -> tuple[Array, float]:
    """Hamiltonian Monte Carlo on many chains at once (Duane et al. 1987): leapfrog, accept, repeat.

    The step is drawn anew for each trajectory, within 30 per cent of `step`. With a fixed length a
    mode whose half period it is goes from x to -x for ever and never forgets its amplitude: on the
    4 x 4 lattice E[x . dS/dx] was 17.1 where 16 is exact.

    Returns:
        The last state of each chain, and the mean acceptance.
    """
    axes = tuple(range(1, x.ndim))
    accepted = 0.0
    current = energy(x)
    nominal = step
    for _ in range(trajectories):
        step = nominal * rng.uniform(0.7, 1.3)
        momentum = rng.standard_normal(x.shape)
        kinetic = 0.5 * (momentum**2).sum(axis=axes)
        proposal = x
        momentum = momentum - 0.5 * step * gradient(proposal)
        for leap in range(steps):
            proposal = proposal + step * momentum
            factor = 0.5 if leap == steps - 1 else 1.0
            momentum = momentum - factor * step * gradient(proposal)
        proposed = energy(proposal)
        change = proposed + 0.5 * (momentum**2).sum(axis=axes) - current - kinetic
        accept = np.log(rng.random(len(x))) < -change
        keep = accept.reshape(-1, *([1] * len(axes)))
        x = np.where(keep, proposal, x)
        current = np.where(accept, proposed, current)
        accepted += float(accept.mean())
    return x, accepted / max(trajectories, 1)


class EnergyFunction(Protocol):
    """Takes (N, *shape); gives (N,) for an energy, (N, *shape) for a gradient."""

    def __call__(self, x: Array, /) -> Array: ...


def _need_clean(sigma: float) -> None:
    if sigma != 0.0:
        raise ValueError(f"the density smoothed by sigma = {sigma} has no closed form here")
