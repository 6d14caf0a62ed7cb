"""Powers of a field at a site: what they are, what they keep, and that they are trained."""

import numpy as np
import pytest
import torch

import scf
from scf.models.activation import widely_bounded
from scf.models.powers import SitePowers
from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import record_energy

GRID = RecordLayout.of([FieldLayout("phi", "float64", (4, 4), "")], boundary="periodic")


def powers(*, is_even: bool) -> SitePowers:
    return SitePowers((4, 4), 2, 3, boundaries=("periodic", "periodic"), is_even=is_even)


def test_they_begin_at_nothing_and_can_be_a_quartic() -> None:
    """Unit 0 is the site's own first feature: with c_4 = 1 for it the sum is that of fourth powers."""
    net = powers(is_even=True)
    x, noise = torch.randn(5, 16, 2), torch.randn(5, 3)
    assert bool((net(x, noise) == 0).all())
    with torch.no_grad():
        net.coefficients.bias[12] = 1.0  # after 12 coefficients of squares
    torch.testing.assert_close(net(x, noise), x[:, :, 0].pow(4).sum(dim=1))
    with torch.no_grad():
        net.coefficients.bias.zero_()
        net.coefficients.bias[2] = 1.0  # unit 2: the mean of the four nearest
    field = x[:, :, 0].view(5, 4, 4)
    near = sum(field.roll(step, dims=axis) for axis in (1, 2) for step in (-1, 1)) / 4
    torch.testing.assert_close(net(x, noise), near.square().sum(dim=(1, 2)))


@pytest.mark.parametrize("is_even", [True, False])
def test_signs(is_even: bool) -> None:
    """Even ones are blind to the sign; the others are not."""
    net = powers(is_even=is_even)
    torch.nn.init.normal_(net.coefficients.weight)
    x, noise = torch.randn(5, 16, 2), torch.randn(5, 3)
    assert torch.allclose(net(x, noise), net(-x, noise)) == is_even


def test_numbers_within_three_are_themselves_and_none_passes_six() -> None:
    x = torch.tensor([0.0, 0.5, 3.0, 100.0, -100.0])
    found = widely_bounded(x)
    torch.testing.assert_close(found[:3], x[:3], rtol=0.016, atol=0)
    torch.testing.assert_close(found[3:], torch.tensor([6.0, -6.0]), rtol=0.001, atol=0)


def test_a_model_with_powers_is_trained_saved_and_loaded(tmp_path) -> None:
    """`field_powers` is a setting like any other, and is in the checkpoint."""
    x = np.random.default_rng(0).standard_normal((100, 4, 4))
    model = scf.fit(x, boundary="periodic", preset="tiny", max_steps=3, field_powers=1,
                    calibration_particles=0, device="cpu")  # fmt: skip
    powers = model.energies.model.powers
    assert powers is not None
    assert bool((powers.coefficients.weight != 0).any())
    again = scf.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.energy(x[:5]), model.energy(x[:5]))


def test_derivatives_by_hand_and_by_autograd_agree() -> None:
    """An energy with powers: value, score and noise slope, and their gradient by a coefficient."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).double().numpy()
    config = {"body": "lattice", "width": 4, "site_width": 0, "powers": True}
    model = record_energy(GRID, x, noise=0.3, translation_symmetric=True, **config).model.double()
    assert model.powers is not None
    torch.nn.init.normal_(model.powers.coefficients.weight, std=0.1)
    z, sigma, c = torch.randn(3, 16).double(), torch.rand(3).double() + 0.1, torch.zeros(3, 0)
    found = []
    for model.has_explicit_adjoint in (True, False):
        model.zero_grad()
        got = model.derivatives(z, sigma, c.double(), create_graph=True)
        (got.gradient_BD.square().sum() + got.noise_slope_B.sum()).backward()
        weight = model.powers.coefficients.weight.grad
        assert weight is not None
        found.append([*(part.detach() for part in got), weight.clone()])
    for by_hand, plain in zip(*found, strict=True):
        torch.testing.assert_close(by_hand, plain)
