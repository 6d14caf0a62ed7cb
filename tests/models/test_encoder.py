import numpy as np
import pytest
import torch

from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import record_energy, solar_days


def test_closure_residual_is_read_off_its_formula() -> None:
    """The feature is (ghi - dni cos_zenith - dhi) over its spread under noise and tolerance."""
    days, units = solar_days(100)
    days["ghi"][0, 12] += 150.0
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    energy = record_energy(layout, x, c)
    encoder = energy.model.encoder
    (closure,) = encoder.residuals
    z, g = energy.to_model(x, c)
    sigma = torch.full((len(z),), 0.1)

    found = closure(z, sigma, g, encoder).numpy()

    up = np.clip(days["cos_zenith"], 0, None)
    residual = days["ghi"] - days["dni"] * up - days["dhi"]
    noise = 0.1 * energy.frame.scale_D[0] * np.sqrt(2 + up**2)
    expected = residual / np.sqrt(noise**2 + closure.constraint.tolerance**2)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert abs(found[0, 12]) > 2 > 1e-2 > np.abs(found[1:]).max()


def test_inputs_are_of_order_one_at_every_noise_level() -> None:
    """Whatever sigma is, no input exceeds its bound and the record's part stays informative."""
    days, units = solar_days(200)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    energy = record_energy(layout, x, c)
    z, g = energy.to_model(x, c)
    for sigma in (0.01, 0.3, 30.0):
        noisy = z + sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        inputs, sites = energy.model.encoder(
            noisy, torch.full((len(z),), sigma), g, energy.model.base
        )
        assert inputs.abs().max() <= 5
        assert sites.abs().max() <= 5
        assert sites.shape == (200, 24, energy.model.encoder.num_site_features)


def energies_of(fields: list[FieldLayout], given: list[str], boundary: str = "", **changes):
    """Energies of four records with every given number, and with each given field moved in turn."""
    layout = RecordLayout.of(fields, given, boundary=boundary)
    rng = np.random.default_rng(0)
    units = changes.pop("in_units_of", {})
    arrays = {
        f.name: rng.normal(3.0, 1.0, size=(300, *f.shape)) * units.get(f.name, 1.0) for f in fields
    }
    x, c = layout.pack(arrays)
    body = "lattice" if len(layout.site_shape or ()) > 1 else "mlp"
    energy = record_energy(layout, x, c, noise=0.3, body=body, **changes)
    sigma = torch.full((4,), 0.4)
    z, g = energy.to_model(x[:4], c[:4])
    found = {"": energy.model.energy(z, sigma, g).detach()}
    for name in given:
        moved = {**arrays, name: arrays[name] + 0.5 * units.get(name, 1.0)}
        z, g = energy.to_model(*(part[:4] for part in layout.pack(moved)))
        found[name] = energy.model.energy(z, sigma, g).detach()
    return energy, found


GIVEN = [
    FieldLayout("viscosity", "float64", (), "Pa s"),  # a physical parameter
    FieldLayout("total_mass", "float64", (), "kg"),  # a conserved quantity
    FieldLayout("total_energy", "float64", (), "J"),
]


@pytest.mark.parametrize(
    ("shape", "boundary"),
    [((7,), ""), ((5, 4), "periodic,wall"), ((4, 4, 4), "open"), ((3, 6), "open,periodic")],
    ids=["vector", "plane", "space", "window of three times"],
)
def test_parameters_and_conserved_totals_condition_every_kind_of_record(
    shape: tuple[int, ...], boundary: str
) -> None:
    """Scalars with units, given beside vectors, windows, planes and space: each moves the energy,
    and none depends on the unit that it is written in."""
    fields = [FieldLayout("u", "float64", shape, "m/s"), FieldLayout("p", "float64", shape, "Pa")]
    names = [field.name for field in GIVEN]

    _, found = energies_of([*fields, *GIVEN], names, boundary)
    _, in_grams = energies_of(
        [*fields, *GIVEN], names, boundary, in_units_of={"total_mass": 1000.0}
    )

    for name in names:
        assert (found[name] - found[""]).abs().min() > 1e-6
    for name in found:
        torch.testing.assert_close(in_grams[name], found[name], rtol=1e-4, atol=1e-3)


def test_channels_coordinates_boundaries_and_noise_reach_the_network() -> None:
    """Fields swapped, a record rolled along a wall, another boundary, another sigma: each is seen."""
    fields = [FieldLayout(name, "float64", (6, 4), "m") for name in ("u", "v")]

    def at(boundary: str, change=lambda z: z, sigma: float = 0.4) -> torch.Tensor:
        energy, _ = energies_of(fields, [], boundary)
        z = torch.linspace(-1, 1, 48)[None].sin()
        return energy.model.correction(change(z), torch.tensor([sigma]).log(), z[:, :0])

    def swapped(z: torch.Tensor) -> torch.Tensor:
        return z.view(1, 2, -1).flip(1).flatten(1)

    def rolled(z: torch.Tensor) -> torch.Tensor:
        return z.view(1, 2, 6, 4).roll(1, dims=2).flatten(1)

    before = at("wall")
    for other in (at("wall", swapped), at("wall", rolled), at("wall", sigma=0.8), at("open"),
                  at("periodic"), at("wall,open")):  # fmt: skip
        assert (other - before).abs() > 1e-5
