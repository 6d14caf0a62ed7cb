"""How well real and sampled records keep the physics: mean residuals, in each constraint's unit."""

from typing import Any

import torch

from scf.models.physics import PhysicsConstraint
from scf.models.record import Floats, RecordLayout

# Shapes: N records, D modelled numbers, K given numbers.


def mean_residual(
    constraint: PhysicsConstraint, layout: RecordLayout, x_ND: Floats, c_NK: Floats
) -> float:
    """Mean absolute residual over records and sites, in the constraint's unit."""
    fields = {}
    for flat, parts, given in ((x_ND, layout.modelled, False), (c_NK, layout.given, True)):
        for field, place in zip(parts, layout.slices(given=given).values(), strict=True):
            values = torch.from_numpy(flat[:, place]).reshape(-1, *field.shape)
            fields[field.name] = values.double()
    return float(constraint.residual(fields).abs().mean())


def check_physics(
    constraints: tuple[PhysicsConstraint, ...],
    layout: RecordLayout,
    real: tuple[Floats, Floats],
    sampled: tuple[Floats, Floats],
) -> dict[str, dict[str, Any]]:
    """For each constraint: residual of real and of sampled records, and whether samples keep it.

    Samples keep a constraint when their mean residual is within its tolerance, or is no larger than
    that of the real records: nothing can be asked of a model that its data do not show.
    """
    checks = {}
    for constraint in constraints:
        real_residual = mean_residual(constraint, layout, *real)
        sampled_residual = mean_residual(constraint, layout, *sampled)
        checks[constraint.name] = {
            "real": real_residual,
            "sampled": sampled_residual,
            "unit": constraint.unit,
            "tolerance": constraint.tolerance,
            "ok": sampled_residual <= max(constraint.tolerance, real_residual),
        }
    return checks
