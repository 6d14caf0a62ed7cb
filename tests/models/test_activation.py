import torch

from scf.models.activation import bounded, silu


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
