"""Nonlinear least squares for many records at once, without a matrix: Gauss-Newton and CG.

    minimise  |y|^2 / 2 + |f(y)|^2 / 2     for each record by itself,

y (B, D) and f (B, R). Each step solves (1 + mu + J^T J) p = -gradient by conjugate gradients, J
the derivative of f at y. Products with J and its transpose come from differentiating f twice in
reverse, which any differentiable function allows. mu (Levenberg 1944) is zero until a step fails.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Shapes: B records, A of them still at work, D numbers, R residuals.

_STEPS_MAX = 30
_CG_MAX = 400
# A step's system is solved to this share of its right side: the next step begins where it ends.
_CG_SHARE = 0.1
_HALVINGS = 6
# Settled: a step gained less than this share of the objective, or hardly anything (nats).
_SETTLED, _NOTHING = 1e-2, 1e-3

Function = Callable[[Tensor, Tensor], Tensor]  # y (A, D), which records (A,) -> f (A, R)
Linear = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """Where it is least (B, D), the objective there (B,), and the CG iterations that it took."""

    y_BD: Tensor
    objective_B: Tensor
    iterations: int


def least_squares(function: Function, start_BD: Tensor) -> Found:
    """Minimise from `start`; a record whose steps gain nothing any more rests.

    No step makes a record's objective larger, and what is not finite counts as larger.
    """
    y_BD = start_BD.clone()
    at_A = torch.arange(len(y_BD), device=y_BD.device)
    objective_B = _objective(function, y_BD, at_A)
    damping_B = torch.zeros_like(objective_B)
    iterations = 0
    for _ in range(_STEPS_MAX):
        y_AD, damping_A1 = y_BD[at_A], damping_B[at_A, None]
        f_AR, jvp, vjp = _linearised(function, y_AD, at_A)

        def curvature(p_AD: Tensor, jvp: Linear = jvp, vjp: Linear = vjp,
                      damping_A1: Tensor = damping_A1) -> Tensor:  # fmt: skip
            return p_AD * (1 + damping_A1) + vjp(jvp(p_AD))

        p_AD, used = _conjugate_gradients(curvature, -(y_AD + vjp(f_AR)))
        iterations += used
        before_A = objective_B[at_A]
        y_AD, after_A = _along(function, y_AD, p_AD, before_A, at_A)
        failed_A = after_A >= before_A
        y_BD[at_A], objective_B[at_A] = y_AD, after_A
        damping_B[at_A] = torch.where(failed_A, 10 * damping_A1[:, 0] + 0.1, damping_A1[:, 0] / 10)
        # A record rests when a step gained little; one whose step failed tries again, shorter.
        gain_A = before_A - after_A
        at_A = at_A[failed_A & (damping_B[at_A] < 1e6) | (gain_A > _SETTLED * after_A + _NOTHING)]
        if len(at_A) == 0:
            break
    return Found(y_BD, objective_B, iterations)


def _objective(function: Function, y_AD: Tensor, at_A: Tensor) -> Tensor:
    with torch.no_grad():
        f_AR = function(y_AD, at_A)
    value_A = 0.5 * (y_AD.square().sum(dim=1) + f_AR.square().sum(dim=1))
    return torch.where(value_A.isfinite(), value_A, torch.inf)


def _along(
    function: Function, y_AD: Tensor, p_AD: Tensor, before_A: Tensor, at_A: Tensor
) -> tuple[Tensor, Tensor]:
    """The longest of the steps p, p/2, p/4, ... that lowers each record's objective, or none."""
    best_AD, best_A = y_AD, before_A
    for halving in range(_HALVINGS):
        tried_AD = y_AD + 0.5**halving * p_AD
        value_A = _objective(function, tried_AD, at_A)
        take_A = (best_A >= before_A) & (value_A < before_A)
        best_AD = torch.where(take_A[:, None], tried_AD, best_AD)
        best_A = torch.where(take_A, value_A, best_A)
        if bool((best_A < before_A).all()):
            break
    return best_AD, best_A


def _linearised(function: Function, y_AD: Tensor, at_A: Tensor) -> tuple[Tensor, Linear, Linear]:
    """Value at y, and the products with its derivative and with the transpose."""
    with torch.enable_grad():
        y_AD = y_AD.detach().requires_grad_()
        f_AR = function(y_AD, at_A)
        if not f_AR.requires_grad:  # no record breaks it: an inequality that is kept, say
            return f_AR, lambda _: torch.zeros_like(f_AR), lambda _: torch.zeros_like(y_AD)
        q_AR = torch.zeros_like(f_AR, requires_grad=True)
        (pulled_AD,) = torch.autograd.grad(f_AR, y_AD, q_AR, create_graph=True)

    def vjp(q_AR: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(f_AR, y_AD, q_AR, retain_graph=True)
        return pulled

    def jvp(p_AD: Tensor) -> Tensor:
        # The pulled-back vector is linear in q, so its derivative by q is J^T, and this is J p.
        (pushed,) = torch.autograd.grad(pulled_AD, q_AR, p_AD, retain_graph=True)
        return pushed

    return f_AR.detach(), jvp, vjp


def _conjugate_gradients(matrix: Linear, right_AD: Tensor) -> tuple[Tensor, int]:
    """Solve for all records at once (Hestenes, Stiefel 1952), to a share of the right side."""
    x_AD = torch.zeros_like(right_AD)
    r_AD = p_AD = right_AD
    square_A = right_AD.square().sum(dim=1)
    enough_A = _CG_SHARE**2 * square_A
    for iteration in range(1, _CG_MAX + 1):
        q_AD = matrix(p_AD)
        step_A1 = (square_A / (p_AD * q_AD).sum(dim=1).clamp(min=1e-300))[:, None]
        x_AD, r_AD = x_AD + step_A1 * p_AD, r_AD - step_A1 * q_AD
        new_A = r_AD.square().sum(dim=1)
        if bool((new_A <= enough_A).all()):
            return x_AD, iteration
        p_AD = r_AD + (new_A / square_A.clamp(min=1e-300))[:, None] * p_AD
        square_A = new_A
    return x_AD, _CG_MAX
