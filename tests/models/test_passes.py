"""Passes written by hand, held to plain double backward in float64."""

import numpy as np
import pytest
import torch

from scf.models.energy_model import EnergyModel
from scf.models.losses import denoising_and_dual
from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import record_energy

CASES = {
    "mlp": ((5,), 1, "", {"width": 12, "depth": 2, "site_width": 0}),
    "mlp, no block": ((5,), 1, "", {"width": 12, "depth": 0, "site_width": 0}),
    "mlp and sites": ((6,), 2, "", {"width": 12, "depth": 1, "site_width": 7}),
    "lattice": ((4, 6), 1, "periodic", {"body": "lattice", "width": 8, "depth": 1}),
    "lattice, narrow": ((9,), 3, "periodic", {"body": "lattice", "width": 4, "depth": 2}),
    "lattice, wide": ((4, 4), 1, "periodic", {"body": "lattice", "width": 24, "depth": 1}),
    "lattice, even": (
        (4, 4), 1, "periodic",
        {"body": "lattice", "width": 8, "depth": 1, "translation_symmetric": True,
         "sign_symmetric": True},
    ),
    "lattice, levels": ((4, 8), 2, "periodic",
                        {"body": "lattice", "width": 6, "depth": 1, "levels": 3}),
    "lattice, spectral": ((5, 6), 1, "periodic",
                          {"body": "lattice", "width": 6, "depth": 1, "modes": 2}),
    "lattice, spectral, walls": ((4, 8), 1, "wall,periodic",
                                 {"body": "lattice", "width": 6, "depth": 1, "levels": 2,
                                  "modes": 1}),
    "lattice, open": ((4, 4), 1, "open", {"body": "lattice", "width": 8, "depth": 1}),
    "lattice, wall": ((4, 4), 1, "wall", {"body": "lattice", "width": 8, "depth": 1}),
    "lattice, three axes": ((4, 4, 4), 1, "periodic,open,wall",
                            {"body": "lattice", "width": 6, "depth": 1}),
}  # fmt: skip


def made(name: str, **more: object) -> EnergyModel:
    shape, channels, boundary, config = CASES[name]
    fields = [FieldLayout(f"f{n}", "float64", shape, "m") for n in range(channels)]
    layout = RecordLayout.of(fields, boundary=boundary)
    rows = np.random.default_rng(0).normal(size=(400, layout.size))
    rows[:, 1:] += 0.5 * rows[:, :-1]
    torch.manual_seed(1)
    model = record_energy(layout, rows, **config, **more).model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.offset_L.normal_()
    return model


def both(model: EnergyModel) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Energies, scores, slopes; gradients of a loss of all three by the weights: both ways."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size, num = model.layout.size, 7
    clean, noise, c = drawn(num, size), drawn(num, size), drawn(num, model.layout.given_size)
    sigma = drawn(num).exp()
    found = []
    for is_explicit in (False, True):
        model.has_explicit_adjoint = is_explicit
        derived = model.derivatives(clean, sigma, c, create_graph=True)
        losses = denoising_and_dual(model, clean, noise, sigma, c)
        loss = losses.denoising_B.sum() + 0.3 * losses.dual_B.sum()
        # The losses leave the energy itself out; contrastive divergence does not.
        loss = loss + (derived.energy_B * torch.arange(num)).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append(([part.detach() for part in derived], list(gradients)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_passes_by_hand_are_double_backward(name: str) -> None:
    """Energies, scores, noise slopes and the weights' gradients agree to rounding."""
    (plain, plain_gradients), (explicit, explicit_gradients) = both(made(name))

    for expected, actual in zip(plain, explicit, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    for expected, actual in zip(plain_gradients, explicit_gradients, strict=True):
        scale = float(expected.abs().max())
        assert scale > 0  # a weight without a gradient would prove nothing
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-11)


def test_no_graph_without_being_asked() -> None:
    """Scores for sampling carry no graph, and are those of training."""
    model = made("lattice")
    z, sigma, c = torch.randn(3, 24).double(), torch.ones(3).double(), torch.zeros(3, 0).double()

    alone = model.derivatives(z, sigma, c)
    trained = model.derivatives(z, sigma, c, create_graph=True)

    assert not alone.gradient_BD.requires_grad
    assert trained.gradient_BD.requires_grad
    torch.testing.assert_close(alone.gradient_BD, trained.gradient_BD.detach())


def test_second_backward_is_refused() -> None:
    """What the passes keep is let go with the first backward; a second one says so."""
    model = made("mlp")
    z, sigma, c = torch.randn(3, 5).double(), torch.ones(3).double(), torch.zeros(3, 0).double()
    loss = model.derivatives(z, sigma, c, create_graph=True).gradient_BD.square().sum()
    loss.backward(inputs=list(model.parameters()), retain_graph=True)

    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward(inputs=list(model.parameters()))
