"""Bring sampled records to the laws that they should keep: an implicit draw, for any residual.

A sampler's record z0 is right up to some noise s. What that leaves open of the clean record is,
under the Gaussian base, N(z0, S) with S = Q diag(lambda s^2 / (lambda + s^2)) Q^T. A law r(x) = 0,
known to tau at each site, is one more expert, exp(-|r|^2 / (2 tau^2)). Their product is drawn from
by randomising, then optimising (Bardsley et al. 2014, SIAM J. Sci. Comput. 36, A1895):

    x = z0 + S^(1/2) y,    y = argmin |y|^2 / 2 + |r(z0 + S^(1/2) y) / tau - e|^2 / 2     (20)

with e standard normal, so that what comes out has residuals of tau and not of zero. In `moves` z0
is randomised too; where r is linear, draws are then exact. The minimum is found by Gauss-Newton
steps (`models/least_squares.py`). An explicit step, Langevin's or that of the sampler's equation
with the residual in the energy, must be as short as the stiffest direction asks: on Darcy's second
differences no finite sample came of it. Here stiffness costs iterations, not stability.

S and not the whole covariance C: with C the smoothest, widest directions move at no cost. Darcy
samples then kept the law by changing ln K by a third of its spread, and lost a sixth of its
amplitude; with s = 0.1 they move by a tenth and lose nothing (docs/LOG.md).
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scf.core.errors import TrainingError, UsageError
from scf.models.energy_model import EnergyModel
from scf.models.least_squares import least_squares
from scf.models.physics import PhysicsConstraint

# Shapes: B records, A of them, D modelled numbers, K given numbers, R residuals of all laws.

# Root mean square residual, in tolerances, above which a record is said not to keep the laws.
_KEPT = 6.0
# Of what samples are trusted to, an error that they may have in any direction at all.
_ANYWHERE = 0.1
# Numbers worked on at once: bounds the memory, not the result.
_NUMBERS_AT_ONCE = 1 << 20


class LawsNotKept(TrainingError):
    """Some sampled records could not be brought to the laws that were asked for."""

    def __init__(self, num: int, total: int, worst: float) -> None:
        super().__init__(
            f"{num} of {total} samples do not keep the laws; the worst has a residual of "
            f"{worst:.3g} tolerances (root mean square)",
            remedy="Ask for a larger tolerance, or trust the samples less (a larger keep_sigma).",
        )


class Law(NamedTuple):
    """A constraint, and the standard deviation at each site to which it is to be kept."""

    constraint: PhysicsConstraint
    tolerance: float


def laws_named(
    asked: Mapping[str, float] | Sequence[str], known: Sequence[PhysicsConstraint]
) -> tuple[Law, ...]:
    """The laws that names mean, with the tolerances asked for (in their units) or their own.

    Raises:
        UsageError: A name that is none of `known`, or a tolerance that is not above 0.
    """
    by_name = {constraint.name: constraint for constraint in known}
    laws = []
    for name in asked:
        if name not in by_name:
            raise UsageError(
                f"no constraint {name!r} applies to these fields",
                remedy=f"Known: {', '.join(by_name) or 'none'}. register() adds one.",
            )
        tolerance = asked[name] if isinstance(asked, Mapping) else by_name[name].tolerance
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise UsageError(f"tolerance {tolerance} of {name!r} must be a number above 0")
        laws.append(Law(by_name[name], float(tolerance)))
    return tuple(laws)


def restrained(
    model: EnergyModel,
    z_BD: Tensor,
    c_BK: Tensor,
    laws: Sequence[Law],
    *,
    sigma: float,
    moves: int = 0,
    held_BD: Tensor | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Records (B, D) near those of `z_BD` that keep the laws, float64 on the CPU.

    Args:
        model: The energy.
        z_BD: Sampled records, in the model's coordinates.
        c_BK: Their given numbers.
        laws: What is to be kept.
        sigma: Noise level s up to which samples are trusted, in scales of the data.
        moves: Then so many rounds of: add noise of `sigma`, take it away by the learned energy,
            draw the clean record anew under the laws. For Gaussian records and linear laws they
            leave the product of density and laws as it is, exactly; else they rest on the Gaussian
            form of what `sigma` leaves open.
        held_BD: True where a number stays as it is.
        generator: On the CPU.

    Raises:
        LawsNotKept: The residual of some records stays far above its tolerance.
    """
    rows = max(1, _NUMBERS_AT_ONCE // z_BD.shape[1])
    bench = _Bench(model, laws, sigma, generator)
    drawn, away = [], []
    is_held_BD = torch.zeros_like(z_BD, dtype=torch.bool) if held_BD is None else held_BD
    for start in range(0, len(z_BD), rows):
        part = slice(start, start + rows)
        z_PD, c_PK, free_PD = z_BD[part], c_BK[part], (~is_held_BD[part]).cpu().double()
        c64_PK = c_PK.detach().cpu().double()
        x_PD = bench.draw(z_PD.detach().cpu().double(), c64_PK, free_PD, is_first=True)
        for _ in range(moves):
            noisy_PD = (x_PD + sigma * bench.white(x_PD)).to(z_PD)
            mean_PD = model.denoise(noisy_PD, noisy_PD.new_full((len(noisy_PD),), sigma), c_PK)
            mean_PD = mean_PD.detach().cpu().double() + bench.spread(bench.white(x_PD))
            mean_PD = torch.where(free_PD > 0, mean_PD, x_PD)
            x_PD = bench.draw(mean_PD, c64_PK, free_PD)
        drawn.append(x_PD)
        away.append(bench.residual(x_PD, c64_PK).square().mean(dim=1).sqrt())
    away_B = torch.cat(away)
    if bool((~(away_B <= _KEPT)).any()):
        raise LawsNotKept(int((~(away_B <= _KEPT)).sum()), len(away_B), float(away_B.max()))
    return torch.cat(drawn)


class _Bench:
    """The base and the residuals in float64, on the CPU: second differences eat half the digits."""

    def __init__(
        self, model: EnergyModel, laws: Sequence[Law], sigma: float, generator: torch.Generator
    ) -> None:
        self._base = copy.deepcopy(model.base).cpu().double()
        self._encoder = copy.deepcopy(model.encoder).cpu().double()
        self._layout, self._laws, self._generator = model.layout, laws, generator
        variance_D = self._base.variance_D
        open_D = variance_D * sigma**2 / (variance_D + sigma**2)
        self._spread_D = open_D.sqrt()
        # A sampler is also wrong where records hardly move. Where they never do, nothing moves.
        self._first_D = (open_D + (_ANYWHERE * sigma) ** 2 * (variance_D > 0)).sqrt()

    def white(self, like_AD: Tensor) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(like_AD.shape, generator=self._generator, dtype=torch.float64)

    def spread(self, y_AD: Tensor) -> Tensor:
        """S^(1/2) y."""
        return self._base.turn_back(y_AD * self._spread_D)

    def residual(self, z_AD: Tensor, c_AK: Tensor) -> Tensor:
        """All residuals over their tolerances, (A, R)."""
        fields = self._encoder.fields_of(z_AD, c_AK)
        parts = [law.constraint.residual(fields) / law.tolerance for law in self._laws]
        return torch.cat([part.reshape(len(z_AD), -1) for part in parts], dim=1)

    def draw(
        self, mean_BD: Tensor, c_BK: Tensor, free_BD: Tensor, *, is_first: bool = False
    ) -> Tensor:
        """Records (B, D) of N(mean, S) under the laws; where `free` is 0 they are the mean."""
        spread_D = self._first_D if is_first else self._spread_D
        begun_BR = self.residual(mean_BD, c_BK)
        # What is zero to the last digit is an inequality that is kept: nothing to miss it by.
        error_BR = self.white(begun_BR) * (begun_BR != 0)

        def moved(y_AD: Tensor, at_A: Tensor) -> Tensor:
            return mean_BD[at_A] + free_BD[at_A] * self._base.turn_back(y_AD * spread_D)

        def away(y_AD: Tensor, at_A: Tensor) -> Tensor:
            return self.residual(moved(y_AD, at_A), c_BK[at_A]) - error_BR[at_A]

        found = least_squares(away, torch.zeros_like(mean_BD))
        return moved(found.y_BD, torch.arange(len(mean_BD)))
