"""The held-out denoising loss, family by family, so that models can be compared noise for noise.

The noise of a fossil is drawn from its CID, so every model meets the same noise on the same fossil,
whenever it is measured. Errors are taken in the coordinates of one frame (the candidate's): another
model sees the same noisy record in the data's own coordinates and is judged in these.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scf.models.record import Floats
from scf.models.record_energy import RecordEnergy

# Shapes: N fossils, D modelled numbers, K given numbers, L noise levels of a fossil.

LEVELS = 16
_RESAMPLES = 2000


@dataclass(frozen=True)
class HeldOut:
    """Held-out fossils, flat and in original units.

    Attributes:
        x_ND: Modelled numbers.
        c_NK: Given numbers.
        cids: Of each fossil.
        families: Of each fossil.
    """

    x_ND: Floats
    c_NK: Floats
    cids: list[str]
    families: list[str]

    def take(self, wanted_N: npt.NDArray[np.bool_]) -> "HeldOut":
        """Those that are wanted, in the same order."""
        index = np.flatnonzero(wanted_N)
        cids, families = ([texts[i] for i in index] for texts in (self.cids, self.families))
        return HeldOut(self.x_ND[index], self.c_NK[index], cids, families)


@dataclass(frozen=True)
class NoisyHeldOut:
    """The same with noise: L rows a fossil, fossil after fossil.

    Attributes:
        noise_ND: Standard normal numbers.
        sigma_N: Levels in the frame's units.
        x_ND: Noisy records in original units.
        c_NK: Given numbers.
    """

    noise_ND: Floats
    sigma_N: Floats
    x_ND: Floats
    c_NK: Floats


def add_noise(held_out: HeldOut, energy: RecordEnergy, *, seed: int) -> NoisyHeldOut:
    """Noise in the candidate's frame, at its trained levels, drawn from (seed, CID)."""
    noises, sigmas = [], []
    for cid in held_out.cids:
        digest = hashlib.sha256(f"measure:{seed}:{cid}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        sigmas.append(energy.noise.draw(LEVELS, generator).double())
        noises.append(torch.randn(LEVELS, energy.layout.size, generator=generator).double())
    noise_ND, sigma_N = torch.cat(noises).numpy(), torch.cat(sigmas).numpy()
    clean_ND = np.repeat(held_out.x_ND, LEVELS, axis=0)
    x_ND = clean_ND + sigma_N[:, None] * energy.frame.scale_D * noise_ND
    return NoisyHeldOut(noise_ND, sigma_N, x_ND, np.repeat(held_out.c_NK, LEVELS, axis=0))


def model_losses(noisy: NoisyHeldOut, energy: RecordEnergy, frame_of: RecordEnergy) -> Floats:
    """Loss of each fossil under `energy`, in the coordinates of `frame_of`, (N,)."""
    scale_D = frame_of.frame.scale_D
    # One number stands for the ratio of noise in the two frames; it is exact where the records have
    # one unit, or where a model keeps its parent's frame.
    ratio = float(np.exp(np.mean(np.log(scale_D / energy.frame.scale_D))))
    gradients = []
    for start in range(0, len(noisy.x_ND), 4096):
        rows = slice(start, start + 4096)
        z, c = energy.to_model(noisy.x_ND[rows], noisy.c_NK[rows])
        sigma = torch.from_numpy(noisy.sigma_N[rows] * ratio).to(z)
        gradients.append(energy.model.derivatives(z, sigma, c).gradient_BD.cpu().double().numpy())
    gradient_ND = np.concatenate(gradients) / energy.frame.scale_D * scale_D
    return _losses(noisy, gradient_ND)


def gaussian_losses(noisy: NoisyHeldOut, energy: RecordEnergy, *, independent: bool) -> Floats:
    """Loss of each fossil under the exact score of a Gaussian, (N,).

    Args:
        noisy: The noisy fossils.
        energy: Whose frame and Gaussian base are used.
        independent: Each number alone, by its training mean and variance. Otherwise the base
        itself:
            full covariance, mean linear in the given numbers.
    """
    z, c = energy.to_model(noisy.x_ND, noisy.c_NK)
    if independent:
        variance_D = torch.from_numpy(energy.frame.variance_D)
        total_ND: Tensor = variance_D + torch.from_numpy(noisy.sigma_N)[:, None].square()
        return _losses(noisy, (z.cpu().double() / total_ND).numpy())
    sigma = torch.from_numpy(noisy.sigma_N).to(z)
    _, gradient_ND, _ = energy.model.base.energy(z, sigma, c)
    return _losses(noisy, gradient_ND.cpu().double().numpy())


def summary(losses_N: Floats, families: list[str], *, seed: int) -> dict[str, Any]:
    """Mean, 95 % interval (bootstrap over families) and mean of each family."""
    by_family: dict[str, list[float]] = {}
    for loss, family in zip(losses_N.tolist(), families, strict=True):
        by_family.setdefault(family, []).append(loss)
    sums = np.array([sum(values) for values in by_family.values()])
    counts = np.array([len(values) for values in by_family.values()])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(losses_N.mean()),
        "ci95": [float(low), float(high)],
        "by_family": {name: float(np.mean(v)) for name, v in sorted(by_family.items())},
    }


def _losses(noisy: NoisyHeldOut, gradient_ND: Floats) -> Floats:
    """EDM-weighted squared error of the denoiser, mean over numbers and levels, (N,)."""
    sigma_N1 = noisy.sigma_N[:, None]
    error_ND = noisy.noise_ND - sigma_N1 * gradient_ND
    weighted_ND = (1 + np.square(sigma_N1)) * np.square(error_ND)
    losses: Floats = weighted_ND.mean(axis=1).reshape(-1, LEVELS).mean(axis=1)
    return losses
