"""The losses of training. Each has its closed-form optimum pinned in tests/models/test_losses.py.

Denoising score matching (Vincent 2011) with EDM's weight (arXiv 2206.00364 eq. 2, 8), and the dual
term (dual score matching, arXiv 2506.05310): the energy must also change with sigma as the density
does. The second ties all noise levels together, down from sigma_max where the density is Gaussian
and its normaliser known; this is what makes E a normalised -log p.
"""

from typing import NamedTuple

from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.noise import loss_weight

# Shapes: B minibatch, D modelled numbers, K given numbers.


class Losses(NamedTuple):
    """Each (B,), of order one at every noise level."""

    denoising_B: Tensor
    dual_B: Tensor


def denoising_and_dual(
    model: EnergyModel,
    clean_BD: Tensor,
    noise_BD: Tensor,
    sigma_B: Tensor,
    c_BK: Tensor,
    *,
    create_graph: bool = True,
) -> Losses:
    """Both losses at z = clean + sigma noise, ready for backward (with `create_graph`).

    The dual target is exact: d/dsigma of -ln of N(z; clean, sigma^2) is D/sigma - |n|^2/sigma, and
    the derivative of the smoothed energy is its mean over the posterior of clean given z. So
    E[(sigma dE/dsigma - (D - |n|^2))^2] has its minimum at the true derivative; divided by D it is
    of order one (its floor is the posterior variance, at most 2).
    """
    noisy_BD = clean_BD + sigma_B[:, None] * noise_BD
    found = model.derivatives(noisy_BD, sigma_B, c_BK, create_graph=create_graph)
    # The denoiser is z - sigma^2 dE/dz; its error in units of sigma is n - sigma dE/dz.
    error_BD = noise_BD - sigma_B[:, None] * found.gradient_BD
    denoising_B = loss_weight(sigma_B) * sigma_B.square() * error_BD.square().mean(dim=1)
    size = clean_BD.shape[1]
    target_B = size - noise_BD.square().sum(dim=1)
    dual_B = (found.noise_slope_B - target_B).square() / size
    return Losses(denoising_B, dual_B)
