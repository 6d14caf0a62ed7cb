"""The noise level sigma: how it is drawn in training, weighted, embedded and stepped down.

Inside the models sigma is dimensionless: it is measured in the scale of the data (`frame.py`),
where the data have variance 1 on average, so sigma_data of the papers is 1 throughout.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Shapes: B minibatch, E embedding.


@dataclass(frozen=True, kw_only=True)
class NoiseRange:
    """Which noise levels are trained.

    Attributes:
        sigma_min: Smallest trained level. Below it an energy is an extrapolation.
        sigma_max: Largest trained level. There the density is Gaussian to all purposes.
        log_mean: Mean of ln sigma of the bell-shaped half of the draws (EDM's P_mean; where details
            are decided).
        log_std: Its standard deviation (EDM's P_std).
        uniform_fraction: Fraction of the draws that is uniform in ln sigma over the whole range,
            without which the energy's way from sigma_max down has gaps.
    """

    sigma_min: float = 0.01
    sigma_max: float = 30.0
    log_mean: float = -0.7
    log_std: float = 1.3
    uniform_fraction: float = 0.5

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Give `num` levels, shape (B,), on the CPU, in random order.

        Stratified: quantiles (i + u)/n with one u for each half, so that each minibatch sees all
        levels. This lowers the variance of the loss without changing its mean.
        """
        num_uniform = round(self.uniform_fraction * num)
        log_low, log_high = math.log(self.sigma_min), math.log(self.sigma_max)
        offset = torch.rand((2,), generator=generator, dtype=torch.float64)
        uniform = (torch.arange(num_uniform) + offset[0]) / max(num_uniform, 1)
        bell = (torch.arange(num - num_uniform) + offset[1]) / max(num - num_uniform, 1)
        low, high = _quantiles_of_ends(self)
        log_bell = self.log_mean + self.log_std * torch.special.ndtri(low + (high - low) * bell)
        log_sigma = torch.cat([log_low + (log_high - log_low) * uniform, log_bell])
        order = torch.randperm(num, generator=generator)
        return log_sigma[order].exp().float()

    def steps(self, num: int, *, rho: float = 7.0) -> Tensor:
        """Give num + 1 levels from sigma_max to sigma_min and then 0: EDM eq. (5)."""
        ramp = torch.linspace(0, 1, num, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / rho), self.sigma_min ** (1 / rho)
        return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


@functools.cache
def _quantiles_of_ends(noise: NoiseRange) -> tuple[float, float]:
    """The bell is cut off at both ends of the range: its quantiles are drawn between these."""
    ends = torch.tensor([noise.sigma_min, noise.sigma_max], dtype=torch.float64).log()
    low, high = torch.special.ndtr((ends - noise.log_mean) / noise.log_std).tolist()
    return low, high


def loss_weight(sigma_B: Tensor) -> Tensor:
    """EDM's weight of the squared denoising error, 1/c_out^2 with sigma_data = 1: shape (B,)."""
    return (1 + sigma_B.square()) / sigma_B.square()


class NoiseEmbedding(nn.Module):
    """Slow waves in ln sigma, (B,) -> (B, E). Smooth, because dE/d(ln sigma) is trained too."""

    def __init__(self, num_waves: int = 8) -> None:
        super().__init__()
        # Wavelengths from 24 (wider than the whole range of ln sigma) down to 2 (a factor of e^2).
        wavelength = torch.logspace(math.log10(24.0), math.log10(2.0), num_waves)
        self.frequency: Tensor
        self.register_buffer("frequency", 2 * math.pi / wavelength, persistent=False)
        self.size = 2 * num_waves + 1

    def forward(self, log_sigma_B: Tensor) -> Tensor:
        phase_BE = log_sigma_B[:, None] * self.frequency
        return torch.cat([log_sigma_B[:, None] / 4, phase_BE.sin(), phase_BE.cos()], dim=1)

    def slope(self, log_sigma_B: Tensor) -> Tensor:
        """Its derivative by ln sigma, (B, E)."""
        phase_BE = log_sigma_B[:, None] * self.frequency
        linear_B1 = torch.full_like(log_sigma_B[:, None], 0.25)
        waves = self.frequency * phase_BE.cos(), -self.frequency * phase_BE.sin()
        return torch.cat([linear_B1, *waves], dim=1)
