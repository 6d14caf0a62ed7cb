"""A known residual as a term of the energy: what is known of a record counts as evidence.

Let r(x) be a residual that should be zero within tau. If a record's clean density is the Gaussian
base times exp(-r^2 / (2 tau^2)), the smoothed one is the Gaussian times the mean of that factor
over the base's posterior of the clean record (docs/science.md eq. 16). With r taken as Gaussian
there, of mean r(D) and variance V(sigma), D the base's denoised record,

    E = E_Gauss + weight * sum over sites of [ r(D)^2 / (2 (tau^2 + V)) + ln(tau^2 + V) / 2 ]

V is measured once, as the mean square of r(D + d) - r(D) over draws d of the posterior, at some
noise levels. For a linear residual this is exact. As sigma falls, D is the record itself and V is
zero; as sigma grows, D is a constant and the term no longer pulls, which is why it may stand beside
the Gaussian at every noise level. The network learns what is left.

(A term r(z)^2 on the noisy record itself would count the noise twice.)
"""

import math

import torch
from torch import Tensor, nn

from scf.core.errors import InputError
from scf.models.encoder import PhysicsEncoder
from scf.models.gaussian_base import GaussianBase
from scf.models.physics import PhysicsConstraint
from scf.models.record import RecordLayout

# Shapes: B minibatch, D modelled numbers, K given numbers, L noise levels.

_LEVELS = 33
_ROWS = 64
# Noise levels at which V is measured, in scales of the data.
_LOW, _HIGH = 1e-3, 100.0


class NonFiniteEvidence(InputError):
    """A residual that is to enter the energy is NaN or infinite near the data."""

    def __init__(self, name: str, sigma: float) -> None:
        super().__init__(
            f"the residual of constraint {name!r} is not finite at noise {sigma:.3g} scales",
            remedy="Make the residual finite for noisy records, or set residual_weight to 0.",
        )


class Evidence(nn.Module):
    """The energy of constraints, as a function of the base's denoised record.

    Attributes:
        weight: 1 takes tolerances as standard deviations at each site.
    """

    grid_L: Tensor
    variance_CL: Tensor
    weight: Tensor

    def __init__(self, layout: RecordLayout, constraints: tuple[PhysicsConstraint, ...]) -> None:
        super().__init__()
        self.layout = layout
        self.constraints = constraints
        grid_L = torch.linspace(math.log(_LOW), math.log(_HIGH), _LEVELS)
        self.register_buffer("grid_L", grid_L, persistent=False)
        self.register_buffer("variance_CL", torch.zeros(len(constraints), _LEVELS))
        self.register_buffer("weight", torch.ones(()))

    def load(
        self,
        encoder: PhysicsEncoder,
        base: GaussianBase,
        z_ND: Tensor,
        c_NK: Tensor,
        weight: float,
        *,
        rows: int = _ROWS,
    ) -> None:
        """Measure V on `rows` records z (N, D) of the training data; the same draws at all levels.

        Raises:
            NonFiniteEvidence: A residual is not finite on them.
        """
        self.weight.fill_(weight)
        z_ND, c_NK = z_ND[:rows], c_NK[:rows]
        generator = torch.Generator().manual_seed(0)
        white_ND, noise_ND = (
            torch.randn(z_ND.shape, generator=generator).to(z_ND.device) for _ in range(2)
        )
        with torch.no_grad():
            for level, log_sigma in enumerate(self.grid_L.tolist()):
                sigma = math.exp(log_sigma)
                sigma_N = z_ND.new_full((len(z_ND),), sigma)
                mean_ND, kept_ND = base.denoise(z_ND + sigma * noise_ND, sigma_N, c_NK)
                spread_ND = (base.variance_D * (1 - kept_ND)).sqrt()
                moved_ND = mean_ND + base.turn_back(white_ND * spread_ND)
                at = self.residuals(mean_ND, c_NK, encoder)
                beside = self.residuals(moved_ND, c_NK, encoder)
                for index, (here, there) in enumerate(zip(at, beside, strict=True)):
                    variance = (there - here).square().mean()
                    if not bool(variance.isfinite()):
                        raise NonFiniteEvidence(self.constraints[index].name, sigma)
                    self.variance_CL[index, level] = variance

    def residuals(self, z_BD: Tensor, c_BK: Tensor, encoder: PhysicsEncoder) -> list[Tensor]:
        """Each constraint's residual (B, sites) in its own unit."""
        fields = encoder.fields_of(z_BD, c_BK)
        return [c.residual(fields).reshape(len(z_BD), -1) for c in self.constraints]

    def forward(
        self, mean_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor, encoder: PhysicsEncoder
    ) -> Tensor:
        """Nats to subtract from the Gaussian's energy, (B,), at most about zero."""
        total_B = torch.zeros_like(log_sigma_B)
        for index, residual_BS in enumerate(self.residuals(mean_BD, c_BK, encoder)):
            tau2 = self.constraints[index].tolerance ** 2
            spread_B = tau2 + self._variance(index, log_sigma_B)
            square_B = residual_BS.square().sum(dim=1) / spread_B
            # Against its value at great noise, so that the term fades there.
            widest = tau2 + self.variance_CL[index, -1]
            sites = residual_BS.shape[1]
            total_B = total_B - 0.5 * (square_B + sites * (spread_B / widest).log())
        return self.weight * total_B

    def _variance(self, index: int, log_sigma_B: Tensor) -> Tensor:
        """V at each noise level, linear between levels in ln sigma."""
        grid_L, value_L = self.grid_L, self.variance_CL[index]
        place_B = ((log_sigma_B - grid_L[0]) / (grid_L[1] - grid_L[0])).clamp(0, _LEVELS - 1)
        lower_B = place_B.detach().floor().long().clamp(max=_LEVELS - 2)
        low_B, high_B = value_L[lower_B], value_L[lower_B + 1]
        return low_B + (place_B - lower_B) * (high_B - low_B)
