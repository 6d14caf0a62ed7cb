"""A ring of rotors (the XY model in one dimension), exact at every noise level.

S = -beta sum cos(theta_i - theta_{i+1}) on a ring of L angles, seen as points (cos, sin) of the
plane: records (2, L), cosines first. Noise moves them off the circle. Given noisy points y, the
angles are the same ring in a field y_i / sigma^2, so the smoothed density is a trace,

    p(y; sigma) = Tr prod_i [ T D_i ] / Z,   T = exp(beta cos(a - b)),  D_i = N(y_i; u(a), sigma^2),

taken over Fourier modes of the angle: T is diagonal there and falls so fast that 25 modes are exact
to rounding; D_i is a Toeplitz matrix of its Fourier coefficients. Z = sum_n t_n^L.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scf.verification.reference_systems import Array

# Shapes: N records, L rotors, M modes, A angles.

Complex = NDArray[np.complex128]

_MODES = 12  # on either side of zero
_SWEEPS = 60


@dataclass(frozen=True)
class RotorRing:
    """The system; see the module's words.

    Attributes:
        length: Rotors, L, even.
        beta: Coupling over temperature, at most 3 for the modes that are kept.
    """

    length: int = 12
    beta: float = 1.5
    name: str = "rotors"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, self.length)

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """Independent rings by heat bath: each angle anew given its neighbours, 60 sweeps."""
        theta = rng.uniform(-np.pi, np.pi, size=(num, self.length))
        for _ in range(_SWEEPS):
            for parity in (0, 1):
                unit = np.exp(1j * theta)
                field = (np.roll(unit, 1, axis=1) + np.roll(unit, -1, axis=1))[:, parity::2]
                theta[:, parity::2] = rng.vonmises(np.angle(field), self.beta * np.abs(field))
        return np.stack([np.cos(theta), np.sin(theta)], axis=1)

    def energy(self, x: Array, sigma: float = 0.0) -> Array:
        """-log of the smoothed density over the plane of each rotor, nats, (N,).

        Raises:
            ValueError: sigma is 0: on the circle itself there is no density over the plane.
        """
        d_NLK, log_scale_N = self._fields(x, sigma)
        product, log_NL = self._products(d_NLK)
        trace_N = np.einsum("nmm->n", product[-1]).real
        log_z = np.log((self._spectrum() ** self.length).sum())
        energy: Array = log_z - np.log(trace_N) - log_NL - log_scale_N
        return energy

    def score(self, x: Array, sigma: float = 0.0) -> Array:
        """Gradient of the log density: (E[u | y] - y) / sigma^2, shape of x."""
        d_NLK, _ = self._fields(x, sigma)
        prefix, _ = self._products(d_NLK)
        suffix = np.broadcast_to(np.eye(2 * _MODES + 1, dtype=complex), prefix[0].shape)
        mean = np.zeros(x.shape)
        transfer = self._spectrum()
        for site in reversed(range(self.length)):
            d_NK = d_NLK[:, site]
            # cos and sin times D, in Fourier coefficients.
            cosine = (d_NK[:, :-2] + d_NK[:, 2:]) / 2
            sine = (d_NK[:, :-2] - d_NK[:, 2:]) / 2j
            here = transfer[:, None] * _toeplitz(d_NK[:, 1:-1])
            around = suffix @ prefix[site]
            total_N = np.einsum("nab,nba->n", around, here).real
            for row, coefficients in enumerate((cosine, sine)):
                matrix = transfer[:, None] * _toeplitz(coefficients)
                mean[:, row, site] = np.einsum("nab,nba->n", around, matrix).real / total_N
            suffix = here @ suffix
            suffix = suffix / np.abs(suffix).max(axis=(1, 2), keepdims=True)
        score: Array = (mean - x) / sigma**2
        return score

    def _spectrum(self) -> Array:
        """t_n, the integral of exp(beta cos a) exp(-i n a) da, for the modes that are kept."""
        angle = 2 * np.pi * np.arange(256) / 256
        modes = np.fft.fft(np.exp(self.beta * np.cos(angle))).real * (2 * np.pi / 256)
        spectrum: Array = modes[np.arange(-_MODES, _MODES + 1)]
        return spectrum

    def _fields(self, x: Array, sigma: float) -> tuple[Complex, Array]:
        """Fourier coefficients of each D_i over its largest value (N, L, K); ln of those, (N,)."""
        if not sigma > 0:
            raise ValueError("on the circle itself the rotors have no density over the plane")
        num = 512
        angle = 2 * np.pi * np.arange(num) / num
        radius, place = np.hypot(x[:, 0], x[:, 1]), np.arctan2(x[:, 1], x[:, 0])
        # |y - u|^2 = (|y| - 1)^2 + 2 |y| (1 - cos(a - phi)).
        bend = radius / sigma**2
        shape = np.exp(bend[..., None] * (np.cos(angle - place[..., None]) - 1))
        keep = np.arange(-2 * _MODES - 1, 2 * _MODES + 2)
        coefficients = np.fft.fft(shape, axis=-1)[..., keep] / num
        log_top = -((radius - 1) ** 2) / (2 * sigma**2) - np.log(2 * np.pi * sigma**2)
        return coefficients, log_top.sum(axis=1)

    def _products(self, d_NLK: Complex) -> tuple[list[Complex], Array]:
        """Product of the first 0, 1, ..., L factors T D_i, each scaled; and ln of all scales."""
        transfer = self._spectrum()
        eye = np.broadcast_to(
            np.eye(2 * _MODES + 1, dtype=complex), (len(d_NLK), *[2 * _MODES + 1] * 2)
        )
        products: list[Complex] = [eye]
        log_N = np.zeros(len(d_NLK))
        for site in range(self.length):
            product = products[-1] @ (transfer[:, None] * _toeplitz(d_NLK[:, site, 1:-1]))
            top = np.abs(product).max(axis=(1, 2))
            products.append(product / top[:, None, None])
            log_N = log_N + np.log(top)
        return products, log_N


def _toeplitz(c_NK: Complex) -> Complex:
    """Matrices (N, M, M) with entry c[n - m] from coefficients for -2 modes .. 2 modes."""
    index = np.arange(2 * _MODES + 1)
    matrix: Complex = c_NK[:, index[:, None] - index[None, :] + 2 * _MODES]
    return matrix
