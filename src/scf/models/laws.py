"""Physical laws as constraints on records: what is conserved, what is bounded, which PDE holds.

Each function returns a `PhysicsConstraint` with its residual in the unit that is named. `register`
makes it known to training, measuring and loading. A law of one's own is as short:

    def residual(fields):                      # torch tensors [B, time, x], original units
        u = fields["u"]
        flux = derivative(u**2 / 2, axis=1, spacing=0.1)
        return midpoint_step(u, -flux, dt=0.01)

    register(PhysicsConstraint(name="advection", unit="m/s2", needs=("u",),
                               residual=residual, tolerance=0.05))

Fields that evolve have time as their first axis (a window). Their equations du/dt = N(u) are held
to the midpoint rule between neighbouring times, of second order:

    r = (u(t+1) - u(t)) / dt - N((u(t) + u(t+1)) / 2)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scf.models.physics import Bound, Fields, PhysicsConstraint
from scf.models.stencils import PERIODIC, derivative, flux_divergence, laplacian

# Shapes: fields [B, *grid], or [B, T, *grid] where they evolve.


def midpoint_step(u: Tensor, rate: Tensor, *, dt: float) -> Tensor:
    """(u(t+1) - u(t))/dt minus the mean rate of both times: [B, T, ...] -> [B, T-1, ...]."""
    return (u[:, 1:] - u[:, :-1]) / dt - (rate[:, 1:] + rate[:, :-1]) / 2


def _evolution(
    field: str, rate: Callable[[Tensor], Tensor], *, dt: float
) -> Callable[[Fields], Tensor]:
    def residual(fields: Fields) -> Tensor:
        u = fields[field]
        return (u[:, 1:] - u[:, :-1]) / dt - rate((u[:, 1:] + u[:, :-1]) / 2)

    return residual


def _space(u: Tensor) -> range:
    """The axes after time."""
    return range(1, u.dim() - 1)


def heat(field: str, *, diffusivity: float, dt: float, dx: float, tolerance: float,
         unit: str = "1/s", boundary: str = PERIODIC) -> PhysicsConstraint:  # fmt: skip
    """du/dt = D laplacian(u)."""

    def rate(u: Tensor) -> Tensor:
        return diffusivity * laplacian(u, _space(u), dx, boundary)

    return PhysicsConstraint(
        name=f"heat_{field}", unit=unit, needs=(field,), tolerance=tolerance,
        residual=_evolution(field, rate, dt=dt),
    )  # fmt: skip


def burgers(field: str, *, viscosity: float, dt: float, dx: float, tolerance: float,
            unit: str = "m/s2", boundary: str = PERIODIC) -> PhysicsConstraint:  # fmt: skip
    """du/dt = -d(u^2/2)/dx + nu d2u/dx2, one space axis."""

    def rate(u: Tensor) -> Tensor:
        return viscosity * laplacian(u, [1], dx, boundary) - derivative(u * u / 2, 1, dx, boundary)

    return PhysicsConstraint(
        name=f"burgers_{field}", unit=unit, needs=(field,), tolerance=tolerance,
        residual=_evolution(field, rate, dt=dt),
    )  # fmt: skip


def allen_cahn(field: str, *, width: float, dt: float, dx: float, tolerance: float,
               unit: str = "1/s", boundary: str = PERIODIC) -> PhysicsConstraint:  # fmt: skip
    """du/dt = width^2 laplacian(u) + u - u^3."""

    def rate(u: Tensor) -> Tensor:
        return width**2 * laplacian(u, _space(u), dx, boundary) + u - u * u * u

    return PhysicsConstraint(
        name=f"allen_cahn_{field}", unit=unit, needs=(field,), tolerance=tolerance,
        residual=_evolution(field, rate, dt=dt),
    )  # fmt: skip


def gray_scott(u: str, v: str, *, diffusivities: tuple[float, float], feed: float, kill: float,
               dt: float, dx: float, tolerance: float, unit: str = "1/s",
               boundary: str = PERIODIC) -> PhysicsConstraint:  # fmt: skip
    """du/dt = Du lap u - u v^2 + F (1 - u);  dv/dt = Dv lap v + u v^2 - (F + k) v.

    The residual holds both equations, that of u first, side by side along time.
    """

    def residual(fields: Fields) -> Tensor:
        a, b = fields[u], fields[v]
        a_mid, b_mid = (a[:, 1:] + a[:, :-1]) / 2, (b[:, 1:] + b[:, :-1]) / 2
        reaction = a_mid * b_mid * b_mid
        da = diffusivities[0] * laplacian(a_mid, _space(a), dx, boundary)
        db = diffusivities[1] * laplacian(b_mid, _space(b), dx, boundary)
        ra = (a[:, 1:] - a[:, :-1]) / dt - (da - reaction + feed * (1 - a_mid))
        rb = (b[:, 1:] - b[:, :-1]) / dt - (db + reaction - (feed + kill) * b_mid)
        return torch.cat([ra, rb], dim=1)

    return PhysicsConstraint(
        name=f"gray_scott_{u}_{v}", unit=unit, needs=(u, v), tolerance=tolerance, residual=residual
    )


def darcy(pressure: str, log_permeability: str, *, source: float, dx: float, tolerance: float,
          unit: str = "1/s", edge_value: float | None = 0.0) -> PhysicsConstraint:  # fmt: skip
    """div(K grad p) + source = 0, K = exp(log permeability), p known on the edge (or periodic)."""

    def residual(fields: Fields) -> Tensor:
        p, k = fields[pressure], fields[log_permeability].exp()
        axes = range(p.dim() - 1)
        return flux_divergence(k, p, axes, dx, edge_value=edge_value) + source

    return PhysicsConstraint(
        name=f"darcy_{pressure}", unit=unit, needs=(pressure, log_permeability),
        tolerance=tolerance, residual=residual,
    )  # fmt: skip


def conserved(field: str, *, tolerance: float, unit: str) -> PhysicsConstraint:
    """The mean over space is the same at all times of a window."""

    def residual(fields: Fields) -> Tensor:
        mean_BT = fields[field].flatten(2).mean(dim=2)
        return mean_BT[:, 1:] - mean_BT[:, :-1]

    return PhysicsConstraint(
        name=f"{field}_conserved", unit=unit, needs=(field,), tolerance=tolerance, residual=residual
    )


def divergence_free(components: Sequence[str], *, dx: float, tolerance: float,
                    unit: str = "1/s", boundary: str = PERIODIC) -> PhysicsConstraint:  # fmt: skip
    """Sum over axes of d v_a / d x_a is zero; component a flows along space axis a."""

    def residual(fields: Fields) -> Tensor:
        parts = [derivative(fields[name], a, dx, boundary) for a, name in enumerate(components)]
        return torch.stack(parts).sum(dim=0)

    return PhysicsConstraint(
        name=f"divergence_{'_'.join(components)}", unit=unit, needs=tuple(components),
        tolerance=tolerance, residual=residual,
    )  # fmt: skip


def energy_decays(field: str, energy: Callable[[Tensor], Tensor], *, tolerance: float,
                  unit: str) -> PhysicsConstraint:  # fmt: skip
    """A functional of the field never rises in time.

    Args:
        field: With time as its first axis.
        energy: [B, T, *grid] -> [B, T].
        tolerance: Mean rise between neighbouring times that is still agreement.
        unit: Of the functional.
    """

    def residual(fields: Fields) -> Tensor:
        energy_BT = energy(fields[field])
        return (energy_BT[:, 1:] - energy_BT[:, :-1]).clamp(min=0)

    return PhysicsConstraint(
        name=f"{field}_energy_decays", unit=unit, needs=(field,), tolerance=tolerance,
        residual=residual,
    )  # fmt: skip


def bounded_field(field: str, *, lower: float | None = None, upper: float | None = None,
                  tolerance: float, unit: str) -> PhysicsConstraint:  # fmt: skip
    """Every number lies between the bounds. The bound is built into the energy as well."""

    def residual(fields: Fields) -> Tensor:
        x = fields[field]
        below = (lower - x).clamp(min=0) if lower is not None else torch.zeros_like(x)
        above = (x - upper).clamp(min=0) if upper is not None else torch.zeros_like(x)
        return below + above

    return PhysicsConstraint(
        name=f"{field}_within_bounds", unit=unit, needs=(field,), tolerance=tolerance,
        residual=residual, bound=Bound(field=field, lower=lower, upper=upper),
    )  # fmt: skip
