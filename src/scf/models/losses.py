"""The losses of training. Each has its closed-form optimum pinned in tests/models/test_losses.py.

Denoising score matching (Vincent 2011) with EDM's weight (arXiv 2206.00364 eq. 2, 8), and the dual
term (dual score matching, arXiv 2506.05310): the energy must also change with sigma as the density
does. The second ties all noise levels together, down from sigma_max where the density is Gaussian
and its normaliser known; this is what makes E a normalised -log p.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.noise import loss_weight

# Shapes: B minibatch, D modelled numbers, K given numbers.

# Sigma^2 below which a steady target counts no more than here.
STEADY_FLOOR = 0.02
# Numbers of a record up to which the dual term counts in full. Its target fluctuates by sqrt(D) and
# its slope with the weights grows like D, so beside the denoising loss, whose noise is averaged
# over D numbers, its gradient grows noisier like D; so does what it can tell. With its weight
# falling like 64/D, a 32x32 lattice had a score error of 0.036 after 104 CPU seconds and an
# effective sample share of 0.67; without, 0.059 and 0.41 at best (docs/LOG.md).
_DUAL_SIZE = 64


# Records that one block of distances is taken for: bounds the memory, not the result.
_ROWS_AT_ONCE = 1024


class Losses(NamedTuple):
    """Each (B,), of order one at every noise level."""

    denoising_B: Tensor
    dual_B: Tensor


class Expected(NamedTuple):
    """Means over the clean records that a noisy one may have come from.

    Attributes:
        noise_BD: Of the noise n.
        square_B: Of |n|^2.
    """

    noise_BD: Tensor
    square_B: Tensor


def expected_noise(
    clean_BD: Tensor, noise_BD: Tensor, sigma_B: Tensor, *, among_MD: Tensor
) -> Expected:
    """Means of n and |n|^2 given z = clean + sigma n and a set of clean records.

    Args:
        clean_BD: The record x that each noise was added to.
        noise_BD: n.
        sigma_B: Noise levels.
        among_MD: The set: all records that are noised, each once (or each equally often).

    Which of them z came from is not known from z alone: record j with the chance

        q_j = exp(-|z - x_j|^2 / 2 sigma^2) / sum over k of exp(-|z - x_k|^2 / 2 sigma^2).

    Denoising score matching takes the one that happened; any other would have served z as well. The
    mean over q is the conditional mean of the same target given z and the set of records, so it has
    the same mean given z and never a larger variance (Rao, Blackwell): the optimum of both losses
    stays where it is, and their gradients fluctuate less. (Xu, Tong, Jaakkola 2023, arXiv
    2302.00670, take such means for the score, over a larger set.) Where records are far apart
    against sigma, q is one for the own record and nothing changes.

    Which row has which sigma and noise must not depend on the records. They must be draws of one
    density: records with given numbers of their own are not.
    """
    noisy_BD = clean_BD.double() + sigma_B[:, None].double() * noise_BD.double()
    x_MD = among_MD.double()
    means, squares = [], []
    parts = torch.split(noisy_BD, _ROWS_AT_ONCE), torch.split(sigma_B[:, None], _ROWS_AT_ONCE)
    for z_RD, sigma_R1 in zip(*parts, strict=True):
        # |z - x|^2 by one matrix product; float64 keeps it exact where sigma is small.
        gap_RM = z_RD.square().sum(1)[:, None] + x_MD.square().sum(1) - 2 * z_RD @ x_MD.T
        gap_RM = (gap_RM / sigma_R1.square()).clamp_(min=0).float()
        share_RM = torch.softmax(-0.5 * gap_RM, dim=1)
        mean_RD = share_RM.double() @ x_MD
        means.append(((z_RD - mean_RD) / sigma_R1).to(clean_BD.dtype))
        squares.append((share_RM * gap_RM).sum(dim=1).to(clean_BD.dtype))
    return Expected(torch.cat(means), torch.cat(squares))


def denoising_and_dual(
    model: EnergyModel,
    clean_BD: Tensor,
    noise_BD: Tensor,
    sigma_B: Tensor,
    c_BK: Tensor,
    *,
    true_score_BD: Tensor | None = None,
    expected: Expected | None = None,
    is_steady: bool = False,
    create_graph: bool = True,
) -> Losses:
    """Both losses at z = clean + sigma noise, ready for backward (with `create_graph`).

    Where the score s0 of the clean density is known at the clean records (`true_score_BD`), both
    targets are mixed with it (target score matching, arXiv 2402.08667). -n/sigma and s0 have the
    same mean given z, the smoothed score; the first fluctuates like 1/sigma, the second does not.
    Along eigenvector i of the data's covariance, a_i = 1 / (1 + sigma^2 F_i), F_i = E[s0_i^2],

        score target   a_i s0_i + (1 - a_i)(-n_i/sigma)
        slope target   sum over i of a_i sigma n_i s0_i + (1 - a_i)(1 - n_i^2)

    For Gaussian data F_i = 1/lambda_i, and the first does not fluctuate at all. What F_i has beyond
    that is noise of s0_i that z knows nothing of, and this a_i is the one of least variance. The
    second holds because integration by parts over the posterior gives
    E[1 - n_i^2 | z] = sigma E[n_i s0_i | z].

    `expected` (`expected_noise`) stands in for n and |n|^2 in the targets; not beside a true score.

    With `is_steady` small noise counts for more. That pays where the target does not fluctuate
    there: with the true score, or where each record comes with a noise and with its opposite (for
    small sigma the pair's loss is that of score matching along a random direction, free of noise).

    The dual target is exact: d/dsigma of -ln of N(z; clean, sigma^2) is D/sigma - |n|^2/sigma, and
    the derivative of the smoothed energy is its mean over the posterior of clean given z. So
    E[(sigma dE/dsigma - (D - |n|^2))^2] has its minimum at the true derivative; divided by D it is
    of order one (its floor is the posterior variance, at most 2). Above 64 numbers it is made
    smaller by 64/D.
    """
    noisy_BD = clean_BD + sigma_B[:, None] * noise_BD
    found = model.derivatives(noisy_BD, sigma_B, c_BK, create_graph=create_graph)
    # The denoiser is z - sigma^2 dE/dz; its error in units of sigma is n - sigma dE/dz.
    target_BD = noise_BD
    size = clean_BD.shape[1]
    target_B = size - noise_BD.square().sum(dim=1)
    if expected is not None:
        assert true_score_BD is None
        target_BD, target_B = expected.noise_BD, size - expected.square_B
    if true_score_BD is not None:
        base = model.base
        share_BD = base.certain_D / (base.certain_D + sigma_B[:, None].square())
        n_BD = base.turn_gradient(noise_BD)  # along the eigenvectors
        gap_BD = share_BD * (n_BD + sigma_B[:, None] * base.turn_gradient(true_score_BD))
        target_BD = noise_BD - base.turn_back(gap_BD)
        # 1 - n^2 and n sigma s0 differ by n (n + sigma s0) - 1.
        target_B = target_B + (n_BD * gap_BD - share_BD).sum(dim=1)
    error_BD = target_BD - sigma_B[:, None] * found.gradient_BD
    denoising_B = loss_weight(sigma_B) * sigma_B.square() * error_BD.square().mean(dim=1)
    dual_B = (found.noise_slope_B - target_B).square() / (size * max(1.0, size / _DUAL_SIZE))
    if is_steady:
        # EDM's weight follows the target's fluctuation. Where that is gone, the score counts alike
        # at all small sigma: sigma^2 (1 + sigma^2) becomes about (1 + sigma^2)^2.
        denoising_B = denoising_B * (1 + sigma_B.square()) / (sigma_B.square() + STEADY_FLOOR)
    return Losses(denoising_B, dual_B)
