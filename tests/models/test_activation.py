import torch

from scf.models.activation import silu


def test_silu_is_torch_s_with_both_derivatives() -> None:
    """Value and gradient as torch has them; the second derivative by finite differences."""
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))
    assert torch.autograd.gradcheck(silu, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))
