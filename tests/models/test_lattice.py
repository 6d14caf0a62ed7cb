"""The network for fields on a grid: what it sees, and what it must not tell apart."""

import numpy as np
import pytest
import torch

from scf.models.energy_model import LATTICE, BodyDoesNotFit
from scf.models.frame import Moments, Symmetry
from scf.models.lattice import LatticeNet, levels_for, neighbour_table
from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import record_energy

FIELD = RecordLayout.of([FieldLayout("phi", "float64", (8, 8), "1")], boundary="periodic")
OPEN = RecordLayout.of([FieldLayout("phi", "float64", (8, 8), "1")])


def net(shape=(8, 8), *, seed=0, **options) -> LatticeNet:
    torch.manual_seed(seed)
    settings = {
        "boundaries": ["periodic"] * len(shape),
        "width": 6,
        "depth": 1,
        "levels": 1,
        "is_even": False,
    } | options
    made = LatticeNet(shape, 2, 3, **settings).double()
    torch.nn.init.normal_(made.head.weight)
    return made


def inputs(num_sites: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sites = torch.randn(3, num_sites, 2, generator=generator, dtype=torch.float64)
    return sites, torch.randn(3, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(8,), (4, 6), (4, 3, 5)])
def test_neighbours_are_the_sites_around(shape) -> None:
    """Against numpy's roll, in one, two and three dimensions."""
    index = np.arange(np.prod(shape)).reshape(shape)
    table = neighbour_table(shape, ["periodic"] * len(shape), 1).numpy()
    for column, offset in enumerate(np.ndindex(*[3] * len(shape))):
        moved = np.roll(index, [1 - o for o in offset], axis=range(len(shape)))
        np.testing.assert_array_equal(table[:, column], moved.ravel())


def test_beyond_an_open_edge_there_is_nothing() -> None:
    """A corner of a 3 x 3 grid has five neighbours that are not there."""
    table = neighbour_table((3, 3), ["open", "open"], 1)
    assert (table[0] == 9).sum() == 5
    assert (table[4] == 9).sum() == 0


@pytest.mark.parametrize(("shape", "levels"), [((8, 8), 1), ((16, 16), 2)])
def test_a_periodic_net_is_blind_to_translations(shape, levels) -> None:
    """By any site on one level, by whole coarse sites on two; a different field is told apart."""
    model = net(shape, levels=levels)
    sites, noise = inputs(int(np.prod(shape)))
    step = 2 ** (levels - 1)
    moved = sites.view(3, *shape, 2).roll((3 * step, step), dims=(1, 2)).reshape(sites.shape)
    torch.testing.assert_close(model(moved, noise), model(sites, noise))
    assert (model(sites.flip(1).exp(), noise) - model(sites, noise)).abs().min() > 1e-6


def test_an_open_net_sees_the_edge() -> None:
    model = net(boundaries=["open", "open"])
    sites, noise = inputs(64)
    moved = sites.view(3, 8, 8, 2).roll(1, dims=1).reshape(sites.shape)
    assert (model(moved, noise) - model(sites, noise)).abs().min() > 1e-9


def test_an_even_net_gives_the_same_for_minus_x() -> None:
    sites, noise = inputs(64)
    even, plain = net(is_even=True), net()
    torch.testing.assert_close(even(-sites, noise), even(sites, noise))
    assert (plain(-sites, noise) - plain(sites, noise)).abs().min() > 1e-6


def test_levels_follow_the_grid() -> None:
    """Below 16 sites a side one level; odd sides are never halved."""
    shapes = [(8, 8), (16, 16), (32, 64), (30, 30), (17, 64)]
    assert [levels_for(s) for s in shapes] == [1, 2, 3, 2, 1]


def fields(num: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(num, 8, 8))
    smooth = white + 0.7 * np.roll(white, 1, axis=1) + 0.5 * np.roll(white, 1, axis=2)
    return smooth.reshape(num, 64)


def lattice_energy(layout=FIELD, **config):
    return record_energy(
        layout, fields(), noise=0.5, body=LATTICE, width=6, depth=1, site_width=0, **config
    )


@pytest.mark.parametrize("layout", [FIELD, OPEN])
def test_energies_of_fields_have_their_gradients(layout) -> None:
    """Score and noise slope of a lattice energy are its derivatives, by finite differences."""
    energy = lattice_energy(layout)
    model = energy.model.double()
    z, c = (t.double() for t in energy.to_model(fields(4, 1), np.zeros((4, 0))))
    sigma = torch.tensor([0.02, 0.1, 0.5, 3.0], dtype=torch.float64)
    found = model.derivatives(z, sigma, c)
    step = 1e-5 * torch.randn_like(z)
    change = model.energy(z + step, sigma, c) - model.energy(z - step, sigma, c)
    torch.testing.assert_close(change, 2 * (found.gradient_BD * step).sum(1), rtol=1e-4, atol=1e-8)
    up, down = (model.energy(z, sigma * float(np.exp(h)), c) for h in (1e-5, -1e-5))
    torch.testing.assert_close((up - down) / 2e-5, found.noise_slope_B, rtol=1e-4, atol=1e-4)


def test_given_numbers_off_the_grid_reach_a_lattice() -> None:
    """A coupling that belongs to the whole record changes the network's part."""
    layout = RecordLayout.of(
        [FieldLayout("phi", "float64", (8, 8), "1"), FieldLayout("beta", "float64", (), "1")],
        ["beta"],
        boundary="periodic",
    )
    c = np.random.default_rng(0).normal(size=(400, 1))
    energy = record_energy(
        layout, fields(), c, noise=0.5, body=LATTICE, width=6, depth=1, site_width=0
    )
    z, a = energy.to_model(fields(3), c[:3])
    log_sigma = torch.zeros(3)
    assert (energy.model.correction(z, log_sigma, a)
            != energy.model.correction(z, log_sigma, a + 1)).all()  # fmt: skip


def test_what_a_lattice_cannot_read_is_said() -> None:
    point = RecordLayout.of([FieldLayout("a", "float64", (), "1")])
    with pytest.raises(BodyDoesNotFit, match="grid"):
        record_energy(point, fields()[:, :1], body=LATTICE)
    with pytest.raises(BodyDoesNotFit, match="sign"):
        lattice_energy(sign_symmetric=True)


def test_a_stationary_gaussian_is_the_mean_over_translations() -> None:
    """Second moments under translation symmetry: brute force over all 64 shifts."""
    x = fields(50)
    plain, shifted = Moments(FIELD), Moments(FIELD)
    plain.add(x, np.zeros((50, 0)))
    plain.symmetry = Symmetry(translation=True)
    for i, j in np.ndindex(8, 8):
        moved = np.roll(x.reshape(-1, 8, 8), (i, j), axis=(1, 2)).reshape(-1, 64)
        shifted.add(moved, np.zeros((50, 0)))
    np.testing.assert_allclose(plain.mean(), shifted.mean())
    np.testing.assert_allclose(plain.second()[1], shifted.second()[1], atol=1e-12)


def test_stationary_fields_are_told_from_others() -> None:
    """Means that differ from site to site, or variances, are seen."""
    for x, expected in (
        (fields(), True),
        (fields() + np.linspace(0, 3, 64), False),
        (fields() * np.linspace(1, 2, 64), False),
    ):
        moments = Moments(FIELD)
        moments.add(x, np.zeros((len(x), 0)))
        assert moments.looks_stationary() is expected
