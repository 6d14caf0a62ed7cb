"""Finite differences on fields [B, *grid], with a boundary for each axis. Second order.

A boundary says what lies beyond the last site: `periodic` (the other side), `wall` (a mirror image:
nothing flows through) or `open` (the line through the last two sites goes on). Axes are counted
from the first after the records; a time axis, where there is one, is the first of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PERIODIC, WALL, OPEN = "periodic", "wall", "open"
BOUNDARIES = (PERIODIC, WALL, OPEN)


def neighbour(field: Tensor, axis: int, step: int, boundary: str = PERIODIC) -> Tensor:
    """The field one site further along an axis (`step` 1 or -1), shaped like it."""
    dim = axis + 1
    if boundary == PERIODIC:
        return field.roll(-step, dims=dim)
    length = field.shape[dim]
    if step == 1:
        inside, edge, before = field.narrow(dim, 1, length - 1), length - 1, length - 2
    else:
        inside, edge, before = field.narrow(dim, 0, length - 1), 0, 1
    last = field.narrow(dim, edge, 1)
    ghost = last if boundary == WALL else 2 * last - field.narrow(dim, before, 1)
    return torch.cat([inside, ghost] if step == 1 else [ghost, inside], dim=dim)


def derivative(field: Tensor, axis: int, spacing: float = 1.0, boundary: str = PERIODIC) -> Tensor:
    """Central difference along an axis, in units of the field over that of `spacing`."""
    ahead, behind = (neighbour(field, axis, step, boundary) for step in (1, -1))
    return (ahead - behind) / (2 * spacing)


def laplacian(
    field: Tensor, axes: Sequence[int], spacing: float = 1.0, boundary: str = PERIODIC
) -> Tensor:
    """Sum of second differences along `axes`."""
    total = torch.zeros_like(field)
    for axis in axes:
        ahead, behind = (neighbour(field, axis, step, boundary) for step in (1, -1))
        total = total + (ahead - 2 * field + behind) / spacing**2
    return total


def flux_divergence(
    conductivity: Tensor, potential: Tensor, axes: Sequence[int], spacing: float = 1.0,
    *, edge_value: float | None = None,
) -> Tensor:  # fmt: skip
    """div(K grad p) by finite volumes, K at a face the harmonic mean of both cells.

    With `edge_value` p has that value on the boundary, half a cell beyond the last cells; without
    it the grid is periodic.
    """
    total = torch.zeros_like(potential)
    for axis in axes:
        dim, length = axis + 1, potential.shape[axis + 1]
        for step in (1, -1):
            near = neighbour(conductivity, axis, step)
            face = 2 * conductivity * near / (conductivity + near)
            flow = face * (neighbour(potential, axis, step) - potential)
            if edge_value is not None:
                edge = torch.zeros(length, dtype=torch.bool, device=potential.device)
                edge[-1 if step == 1 else 0] = True
                shape = [length if d == dim else 1 for d in range(potential.dim())]
                flow = torch.where(
                    edge.view(shape), 2 * conductivity * (edge_value - potential), flow
                )
            total = total + flow
    return total / spacing**2
