import numpy as np
import pytest
import torch

from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import POINT, gaussian_points, record_energy, solar_days

NOTHING = np.zeros((0, 0))


def solar_energy(noise: float = 0.3):
    days, units = solar_days(200)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    return record_energy(layout, x, c, noise=noise), x, c


def test_score_is_minus_the_gradient_of_the_energy() -> None:
    """Finite differences of E agree with the score, physics features and given fields included."""
    energy, x, c = solar_energy()
    model = energy.model.double()
    z, g = (t[:4].double() for t in energy.to_model(x, c))
    sigma = torch.tensor([0.02, 0.1, 0.5, 3.0], dtype=torch.float64)
    score = model.score(z, sigma, g)
    step = 1e-5 * torch.randn_like(z)
    difference = model.energy(z + step, sigma, g) - model.energy(z - step, sigma, g)
    torch.testing.assert_close(difference, -2 * (score * step).sum(1), rtol=1e-4, atol=1e-8)


def test_noise_slope_is_the_derivative_in_ln_sigma() -> None:
    """Finite differences of E in ln sigma agree with the slope that the dual term trains."""
    energy, x, c = solar_energy()
    model = energy.model.double()
    model.offset_L.copy_(torch.linspace(0, 3, len(model.offset_L)))
    z, g = (t[:4].double() for t in energy.to_model(x, c))
    sigma = torch.tensor([0.02, 0.1, 0.5, 3.0], dtype=torch.float64)
    slope = model.derivatives(z, sigma, g).noise_slope_B
    up, down = (model.energy(z, sigma * float(np.exp(h)), g) for h in (1e-5, -1e-5))
    torch.testing.assert_close((up - down) / 2e-5, slope, rtol=1e-4, atol=1e-5)


def test_a_new_model_is_its_gaussian() -> None:
    """Before the first step the network adds nothing."""
    energy = record_energy(POINT, gaussian_points(500))
    z, c = energy.to_model(gaussian_points(20, seed=1), np.zeros((20, 0)))
    sigma = torch.full((20,), 0.3)
    base, _, _ = energy.model.base.energy(z, sigma, c)
    torch.testing.assert_close(energy.model.energy(z, sigma, c), base)


def test_at_large_noise_the_energy_is_the_gaussian_s() -> None:
    """The network's part fades like 1/sigma, so the normaliser is anchored at the top."""
    energy = record_energy(POINT, gaussian_points(500), noise=1.0)
    z, c = energy.to_model(gaussian_points(20, seed=1), np.zeros((20, 0)))
    gaps = []
    for sigma in (1.0, 100.0, 10_000.0):
        sigma_B = torch.full((20,), sigma)
        base, _, _ = energy.model.base.energy(z, sigma_B, c)
        gaps.append(float((energy.model.energy(z, sigma_B, c) - base).detach().abs().max()))
    assert gaps[2] < 0.02 * max(gaps[0], 1.0)


def test_far_from_the_data_nothing_looks_normal() -> None:
    """However wild the weights, energy rises far out: the network's part is bounded."""
    energy = record_energy(POINT, gaussian_points(500), noise=30.0)
    direction = np.array([[0.6, -0.8]])
    distances = np.array([[300.0], [3000.0], [30_000.0]])
    far = energy.energy(distances * direction, 0.1, np.zeros((3, 0)))
    near = energy.energy(gaussian_points(200), 0.1, np.zeros((200, 0)))
    assert near.max() < far[0] < far[1] < far[2]


def test_records_without_a_grid_need_no_site_network() -> None:
    """Scalars and mixed shapes have no sites; the whole-record network serves alone."""
    layout = RecordLayout.of(
        [FieldLayout("a", "float64", (), "m"), FieldLayout("b", "float64", (3,), "m")]
    )
    x = np.random.default_rng(0).normal(size=(50, 4))
    energy = record_energy(layout, x, noise=0.3)
    assert energy.model.site_body is None
    assert np.isfinite(energy.energy(x, 0.1, np.zeros((50, 0)))).all()


def test_two_dimensional_fields_have_sites() -> None:
    """A 3 x 4 field has 12 sites with coordinates along both axes."""
    layout = RecordLayout.of([FieldLayout("phi", "float32", (3, 4), "1")])
    x = np.random.default_rng(0).normal(size=(60, 12))
    energy = record_energy(layout, x, noise=0.3)
    assert energy.model.encoder.coordinates_SX.shape == (12, 6)
    assert energy.model.site_body is not None
    assert np.isfinite(energy.scored(x, 0.1, np.zeros((60, 0))).score_norm_N).all()


@pytest.mark.parametrize("size", [1537])
def test_large_records_get_a_diagonal_gaussian(size: int) -> None:
    """Above the limit the covariance is kept by number; there is no D x D matrix."""
    layout = RecordLayout.of([FieldLayout("x", "float32", (size,), "m")])
    x = np.random.default_rng(0).normal(size=(40, size)) * np.linspace(0.5, 2, size)
    energy = record_energy(layout, x, noise=0.1, site_width=0)
    assert energy.model.base.vectors_DD is None
    assert np.isfinite(energy.energy(x, 0.1, np.zeros((40, 0)))).all()
