"""Symmetries by averaging, and what lies beyond an edge."""

import numpy as np
import pytest
import torch

from scf.core.errors import UsageError
from scf.models.energy_model import LATTICE
from scf.models.frame import Moments, Symmetry
from scf.models.images import place_images
from scf.models.lattice import neighbour_table
from scf.models.record import FieldLayout, LayoutMismatch, RecordLayout, boundary_of
from support.gaussian_records import record_energy


def layout(shape=(4, 4), boundary="", num=1) -> RecordLayout:
    fields = [FieldLayout(f"f{i}", "float64", shape, "1") for i in range(num)]
    return RecordLayout.of(fields, boundary=boundary)


def records(num: int, shape=(4, 4)) -> np.ndarray:
    """Skewed and different at each site: nothing about them is symmetric."""
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    return np.exp(0.5 * rng.standard_normal((num, size))) * np.linspace(1, 2, size)


@pytest.mark.parametrize(
    ("shape", "count"), [((5,), 2), ((4, 4), 8), ((4, 6), 4), ((3, 3, 3), 48), ((3, 4, 4), 16)]
)
def test_how_many_images_a_grid_has(shape, count) -> None:
    images = place_images(layout(shape))
    assert len(images) == count
    assert all(sorted(image) == list(range(int(np.prod(shape)))) for image in images)


@pytest.mark.parametrize(
    ("averaged", "body"), [("rotation", LATTICE), ("rotation,sign", "mlp"), ("sign", "mlp")]
)
def test_an_averaged_energy_is_the_same_for_all_images(averaged: str, body: str) -> None:
    """Energy and score, with a Gaussian that has the symmetry too; without it they differ."""
    x = records(200)
    symmetry = Symmetry(sign="sign" in averaged, rotation="rotation" in averaged)
    energy = record_energy(layout(), x, noise=0.5, averaged=averaged, body=body, symmetry=symmetry)
    plain = record_energy(layout(), x, noise=0.5, body=body)
    z = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    image = z.view(5, 4, 4).rot90(1, dims=(1, 2)).flip(1).reshape(5, 16)
    moved = (image if "rotation" in averaged else z) * (-1 if "sign" in averaged else 1)
    sigma, none = torch.full((5,), 0.3), torch.zeros(5, 0)
    found = [energy.model.energy(each, sigma, none) for each in (z, moved)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    apart = plain.model.energy(z, sigma, none) - plain.model.energy(moved, sigma, none)
    assert float(apart.detach().abs().max()) > 0.1


def test_given_fields_are_refused_under_averaging() -> None:
    fields = [FieldLayout("x", "float64", (4,), "1"), FieldLayout("c", "float64", (1,), "1")]
    with pytest.raises(UsageError, match="given"):
        record_energy(
            RecordLayout.of(fields, ["c"]), records(50, (4,)), records(50, (1,)), averaged="sign"
        )


def test_boundaries_in_words() -> None:
    assert boundary_of("periodic, periodic") == "periodic"
    assert boundary_of("periodic,wall") == "periodic,wall"
    assert boundary_of("sticky") == ""
    assert layout(boundary="periodic,wall").boundaries == ("periodic", "wall")
    assert layout().boundaries == ("open", "open")
    with pytest.raises(LayoutMismatch, match="3 axes"):
        _ = layout(boundary="periodic,wall,open").boundaries


def test_a_wall_mirrors_and_an_open_edge_ends() -> None:
    """Site 0 of four: what lies two to the left is site 1 behind a wall, 2 on a ring, else nothing."""
    left = [neighbour_table((4,), [word], 2)[0, 0].item() for word in ("wall", "periodic", "open")]
    assert left == [1, 2, 4]
    mixed = neighbour_table((3, 3), ["periodic", "open"], 1)
    assert mixed[0].tolist() == [9, 6, 7, 9, 0, 1, 9, 3, 4]


def test_a_network_is_told_of_walls_and_open_edges() -> None:
    """One row an axis that is not periodic: +1 at a wall, -1 at an open edge, falling inward."""
    x = records(60)
    encoder = record_energy(layout(boundary="wall,open"), x, body=LATTICE).model.encoder
    wall, edge = encoder.edge_ES.view(2, 4, 4)
    assert wall[0, 0] == wall[3, 2] == 1
    assert wall[1, 0] == pytest.approx(np.exp(-1))
    assert edge[2, 3] == -1
    assert record_energy(layout(boundary="periodic"), x, body=LATTICE).model.encoder.num_edges == 0
    energies = [
        record_energy(layout(boundary=word), x, noise=0.5, body=LATTICE).energy(x, 0.3, x[:, :0])
        for word in ("wall", "open")
    ]
    assert np.abs(energies[0] - energies[1]).max() > 1e-3


def test_the_gaussian_keeps_the_symmetry() -> None:
    """Its covariance is the same after a turn."""
    moments = Moments(layout())
    moments.add(records(200), np.zeros((200, 0)))
    moments.symmetry = Symmetry(rotation=True)
    _, second = moments.second()
    turn = place_images(layout())[3]
    np.testing.assert_allclose(second[np.ix_(turn, turn)], second, atol=1e-12)
