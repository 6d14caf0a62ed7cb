"""Least squares without a matrix: closed forms, a hard valley, records that do not disturb."""

import math

import pytest
import torch

from scf.models.least_squares import least_squares

DOUBLE = {"dtype": torch.float64}


def test_a_linear_problem_is_solved_as_with_a_matrix() -> None:
    """The minimum of |y|^2/2 + |A y - b|^2/2 is (1 + A^T A)^-1 A^T b, however stiff A is."""
    torch.manual_seed(0)
    a_RD = torch.randn(6, 9, **DOUBLE) * torch.logspace(-1, 3, 6, **DOUBLE)[:, None]
    b_BR = torch.randn(4, 6, **DOUBLE) * 50
    found = least_squares(lambda y, at: y @ a_RD.T - b_BR[at], torch.zeros(4, 9, **DOUBLE))
    exact = torch.linalg.solve(torch.eye(9, **DOUBLE) + a_RD.T @ a_RD, a_RD.T @ b_BR.T).T
    gap = exact @ a_RD.T - b_BR
    least = 0.5 * (exact.square().sum(dim=1) + gap.square().sum(dim=1))
    assert bool((found.objective_B < 1.02 * least).all())
    torch.testing.assert_close(found.y_BD, exact, rtol=0.05, atol=0.02)


def test_a_curved_valley_is_followed_to_its_end() -> None:
    """Rosenbrock's valley, from its far side: no step goes up, and both ends are found."""

    def valley(y: torch.Tensor, _at: torch.Tensor) -> torch.Tensor:
        x = y + torch.tensor([-1.2, 1.0], **DOUBLE)
        return torch.stack([1e2 * (1 - x[:, 0]), 1e3 * (x[:, 1] - x[:, 0] ** 2)], dim=1)

    found = least_squares(valley, torch.zeros(1, 2, **DOUBLE))
    torch.testing.assert_close(found.y_BD[0], torch.tensor([2.2, 0.0], **DOUBLE), atol=0.01, rtol=0)


def test_each_record_has_its_own_problem() -> None:
    """Records solved together and alone agree; one at rest stays where it is."""
    target_BR = torch.tensor([[0.0], [3.0], [-40.0]], **DOUBLE)

    def away(y: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return 10 * (y + y**3 - target_BR[at])

    together = least_squares(away, torch.zeros(3, 1, **DOUBLE)).y_BD
    assert together[0] == 0
    for row in range(3):
        alone = least_squares(lambda y, at, row=row: away(y, at + row), torch.zeros(1, 1, **DOUBLE))
        torch.testing.assert_close(alone.y_BD[0], together[row], rtol=0.02, atol=1e-3)


def test_what_is_not_finite_is_never_taken() -> None:
    """A full step would leave the domain of the logarithm; shorter ones are tried."""

    def away(y: torch.Tensor, _at: torch.Tensor) -> torch.Tensor:
        return 100 * torch.log(1 + y) + 300

    found = least_squares(away, torch.full((1, 1), 0.5, **DOUBLE))
    assert bool(found.objective_B.isfinite().all())
    assert float(found.y_BD) == pytest.approx(math.exp(-3) - 1, abs=0.01)


def test_a_residual_that_nothing_changes_is_left_alone() -> None:
    """Inequalities that all records keep have no derivative at all."""
    start = torch.zeros(2, 3, **DOUBLE)
    found = least_squares(lambda y, at: torch.zeros(len(at), 1, **DOUBLE), start)
    torch.testing.assert_close(found.y_BD, start)
