"""Stencils against functions whose derivatives are known."""

import math

import pytest
import torch

from scf.models.stencils import derivative, flux_divergence, laplacian, neighbour

NUM = 64
X = (torch.arange(NUM, dtype=torch.float64) + 0.5) / NUM
DX = 1 / NUM


def test_derivatives_of_a_wave_on_a_ring() -> None:
    """Second order: the error falls like the square of the spacing."""
    wave = torch.sin(2 * math.pi * X)[None]
    slope = derivative(wave, 0, DX)
    torch.testing.assert_close(
        slope[0], 2 * math.pi * torch.cos(2 * math.pi * X), atol=0.02, rtol=0
    )
    bend = laplacian(wave, [0], DX)
    torch.testing.assert_close(bend, -((2 * math.pi) ** 2) * wave, atol=0.05, rtol=0)


def test_nothing_flows_through_a_wall() -> None:
    """With mirror images beyond it the total of the Laplacian is zero: heat is kept."""
    field = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = laplacian(field, [0, 1], 0.1, "wall").sum(dim=(1, 2))
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-9, rtol=0)


def test_a_line_goes_on_beyond_an_open_edge() -> None:
    line = 3 * X[None] + 1
    torch.testing.assert_close(derivative(line, 0, DX, "open"), torch.full_like(line, 3.0))
    assert neighbour(line, 0, 1, "wall")[0, -1] == line[0, -1]
    assert neighbour(line, 0, -1, "periodic")[0, 0] == line[0, -1]


@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_darcy_flow_between_plates(axes) -> None:
    """-p'' = 1 between p = 0 at both ends: p = x (1 - x) / 2, exact for finite volumes inside."""
    pressure = (X * (1 - X) / 2 + DX**2 / 8).expand(1, *[NUM] * len(axes))
    if len(axes) == 2:  # the same across the second axis, which is then left out
        pressure = pressure.mT
    conductivity = torch.ones_like(pressure)
    left = flux_divergence(conductivity, pressure, [0], DX, edge_value=0.0)
    torch.testing.assert_close(left, -torch.ones_like(left), atol=1e-8, rtol=0)
