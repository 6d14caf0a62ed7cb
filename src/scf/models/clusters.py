"""A mixture of Gaussians that a model may depart from, in place of one Gaussian.

Records in groups of unequal width lie on shells whose energies differ by hundreds of nats in many
dimensions: no small network finds that beside a single Gaussian. Fitted by expectation
maximisation, smoothed exactly like the Gaussian (each covariance gains sigma^2, the weights stay),
so normalised at every sigma, with the same limit as sigma grows (docs/science.md eq. 19):

    E_mix(z, sigma) = -ln sum over k of pi_k N(z; m_k, C_k + sigma^2)

The network's inputs, the sampler's coordinates and the normaliser's particles stay those of the
single Gaussian.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scf.models.record import Floats

# Shapes: B minibatch, N records, D numbers, K clusters.

# Records that clusters are fitted to at most, and attempts from other beginnings.
ROWS_MAX = 20_000
_ATTEMPTS = 3
_ROUNDS_MAX = 100
# Nats a record by which a round must be better than the one before.
_GAIN_MIN = 1e-4
# Least standard deviation in any direction, in scales of the data.
_WIDTH_MIN = 1e-3


class FittedClusters(NamedTuple):
    """A mixture: ln weights (K,), means (K, D), covariances (K, D, D)."""

    log_weight_K: Floats
    mean_KD: Floats
    covariance_KDD: Floats


class Clusters(nn.Module):
    """The energy of the mixture; see the module's words."""

    log_weight_K: Tensor
    mean_KD: Tensor
    vectors_KDD: Tensor
    variance_KD: Tensor

    def __init__(self, num: int, size: int) -> None:
        super().__init__()
        self.register_buffer("log_weight_K", torch.full((num,), -float(np.log(num))))
        self.register_buffer("mean_KD", torch.zeros(num, size))
        self.register_buffer("vectors_KDD", torch.eye(size).repeat(num, 1, 1))
        self.register_buffer("variance_KD", torch.ones(num, size))

    def load(self, fitted: FittedClusters) -> None:
        """Take over a fitted mixture."""
        variance_KD, vectors_KDD = np.linalg.eigh(fitted.covariance_KDD)
        self.log_weight_K.copy_(torch.from_numpy(fitted.log_weight_K))
        self.mean_KD.copy_(torch.from_numpy(fitted.mean_KD))
        self.vectors_KDD.copy_(torch.from_numpy(vectors_KDD))
        self.variance_KD.copy_(torch.from_numpy(variance_KD.clip(min=_WIDTH_MIN**2)))

    def energy(self, z_BD: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (B,) in nats, dE/dz (B, D) and dE/d(ln sigma) (B,)."""
        w_KBD = torch.matmul(z_BD - self.mean_KD[:, None], self.vectors_KDD)
        noise_B1 = sigma_B[:, None].square()
        total_KBD = self.variance_KD[:, None] + noise_B1
        pull_KBD = w_KBD / total_KBD
        log_KB = -0.5 * (w_KBD * pull_KBD + (2 * torch.pi * total_KBD).log()).sum(dim=2)
        log_KB = log_KB + self.log_weight_K[:, None]
        share_KB1 = torch.softmax(log_KB, dim=0)[..., None]
        gradient_BD = (share_KB1 * torch.matmul(pull_KBD, self.vectors_KDD.mT)).sum(dim=0)
        slope_KB = (noise_B1 * (1 / total_KBD - pull_KBD.square())).sum(dim=2)
        return -torch.logsumexp(log_KB, dim=0), gradient_BD, (share_KB1[..., 0] * slope_KB).sum(0)


def fit_clusters(z_ND: Floats, num: int, *, seed: int) -> FittedClusters:
    """A mixture of `num` Gaussians by expectation maximisation, the best of some beginnings.

    Each covariance is drawn towards a multiple of the unit matrix by as much as its records are too
    few for it (Chen et al. 2010, oracle approximating shrinkage). Clusters that lose their records
    keep the covariance of all.
    """
    rng = np.random.default_rng(seed)
    z_ND = z_ND[rng.permutation(len(z_ND))[:ROWS_MAX]]
    best: FittedClusters | None = None
    best_gain = -np.inf
    for _ in range(_ATTEMPTS):
        fitted = _maximised(z_ND, _nearest_shares(z_ND, num, rng))
        last = -np.inf
        for _ in range(_ROUNDS_MAX):
            log_NK = _log_terms(z_ND, fitted)
            top_N1 = log_NK.max(axis=1, keepdims=True)
            share_NK = np.exp(log_NK - top_N1)
            total_N1 = share_NK.sum(axis=1, keepdims=True)
            gain = float((top_N1 + np.log(total_N1)).mean())
            if gain < last + _GAIN_MIN:
                break
            last = gain
            fitted = _maximised(z_ND, share_NK / total_N1)
        if last > best_gain:
            best, best_gain = fitted, last
    assert best is not None
    return best


def _nearest_shares(z_ND: Floats, num: int, rng: np.random.Generator) -> Floats:
    """A beginning: each record to the nearest of some records far apart (k-means++)."""
    centres = [z_ND[rng.integers(len(z_ND))]]
    square_N = np.full(len(z_ND), np.inf)
    for _ in range(num - 1):
        square_N = np.minimum(square_N, ((z_ND - centres[-1]) ** 2).sum(axis=1))
        centres.append(z_ND[rng.choice(len(z_ND), p=square_N / square_N.sum())])
    mean_KD = np.array(centres)
    for _ in range(10):  # Lloyd's rounds
        square_NK = (mean_KD**2).sum(axis=1) - 2 * z_ND @ mean_KD.T
        share_NK: Floats = np.eye(num)[square_NK.argmin(axis=1)]
        count_K1 = share_NK.sum(axis=0)[:, None]
        mean_KD = np.where(count_K1 > 0, share_NK.T @ z_ND / count_K1.clip(min=1), mean_KD)
    return share_NK


def _maximised(z_ND: Floats, share_NK: Floats) -> FittedClusters:
    """The mixture that records dealt out like this ask for."""
    size = z_ND.shape[1]
    count_K = share_NK.sum(axis=0) + 1e-9
    mean_KD = share_NK.T @ z_ND / count_K[:, None]
    covariance = np.empty((len(count_K), size, size))
    for k, count in enumerate(count_K):
        if count < 2:
            covariance[k] = np.cov(z_ND.T).reshape(size, size)
            continue
        apart_ND = (z_ND - mean_KD[k]) * np.sqrt(share_NK[:, k, None] / count)
        covariance[k] = _shrunk(apart_ND.T @ apart_ND, float(count))
    covariance += _WIDTH_MIN**2 * np.eye(size)
    return FittedClusters(np.log(count_K / count_K.sum()), mean_KD, covariance)


def _shrunk(sample_DD: Floats, count: float) -> Floats:
    """Chen, Wiesel, Eldar, Hero 2010, eq. 23."""
    size = len(sample_DD)
    square, trace = float((sample_DD**2).sum()), float(np.trace(sample_DD))
    above = (1 - 2 / size) * square + trace**2
    below = (count + 1 - 2 / size) * (square - trace**2 / size)
    share = 1.0 if below <= above else above / below
    shrunk: Floats = (1 - share) * sample_DD + share * trace / size * np.eye(size)
    return shrunk


def _log_terms(z_ND: Floats, fitted: FittedClusters) -> Floats:
    """Ln of pi_k N(z; m_k, C_k), (N, K)."""
    terms = np.empty((len(z_ND), len(fitted.mean_KD)))
    for k, (mean_D, covariance_DD) in enumerate(
        zip(fitted.mean_KD, fitted.covariance_KDD, strict=True)
    ):
        root_DD = np.linalg.cholesky(covariance_DD)
        white_DN = np.linalg.solve(root_DD, (z_ND - mean_D).T)
        log_root = np.log(np.diag(root_DD)).sum()
        terms[:, k] = fitted.log_weight_K[k] - 0.5 * (white_DN**2).sum(axis=0) - log_root
    terms -= 0.5 * z_ND.shape[1] * np.log(2 * np.pi)
    return terms
