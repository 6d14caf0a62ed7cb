import torch

from scf.models.networks import ResidualMLP


def test_it_begins_as_zero() -> None:
    """The head starts at zero: a new model adds nothing to its Gaussian."""
    net = ResidualMLP(5, 3, width=16, depth=2)
    assert torch.equal(net(torch.randn(7, 5), torch.randn(7, 3)), torch.zeros(7))


def test_records_do_not_see_each_other() -> None:
    """The value of a record does not depend on the others of its minibatch."""
    net = ResidualMLP(5, 3, width=16, depth=2)
    torch.nn.init.normal_(net.head.weight)
    inputs, noise = torch.randn(7, 5), torch.randn(7, 3)
    torch.testing.assert_close(net(inputs[:2], noise[:2]), net(inputs, noise)[:2])
