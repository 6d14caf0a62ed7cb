import torch

from scf.models.activation import bounded, log_phi, silu


def test_silu_is_torch_s_with_both_derivatives() -> None:
    """Value and gradient as torch has them; the second derivative by finite differences."""
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))
    assert torch.autograd.gradcheck(silu, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))


def test_bounded_inputs_stay_within_five() -> None:
    """x / sqrt(1 + x^2/25), with both derivatives by finite differences."""
    x = torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(bounded(x), x / torch.sqrt(1 + x**2 / 25))
    assert float(bounded(x).detach().abs().max()) < 5
    assert torch.autograd.gradcheck(bounded, (x,))
    assert torch.autograd.gradgradcheck(bounded, (x,))


def test_log_phi_has_finite_derivatives_everywhere() -> None:
    """By finite differences near zero; far out the asymptotes x^2/2, -x, 1 and zero."""
    x = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_phi, (x,))
    assert torch.autograd.gradgradcheck(log_phi, (x,))
    far = torch.tensor([-300.0, -31.0, -29.0, 14.0, 100.0], requires_grad=True)
    (slope,) = torch.autograd.grad(log_phi(far).sum(), far, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), far)
    torch.testing.assert_close(slope[:3].detach(), -far[:3].detach(), rtol=2e-3, atol=0)
    torch.testing.assert_close(bend, torch.tensor([-1.0, -1.0, -1.0, 0.0, 0.0]), rtol=0, atol=2e-3)
