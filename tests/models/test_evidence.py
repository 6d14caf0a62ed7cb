"""Known bounds and residuals in the energy: exact where the arithmetic can be done by hand."""

import math

import numpy as np
import pytest
import torch

from scf.models.energy_model import EnergyModel, NetworkConfig
from scf.models.frame import Frame, LinearGaussian
from scf.models.noise import NoiseRange
from scf.models.physics import Bound, PhysicsConstraint
from scf.models.record import FieldLayout, RecordLayout

LAYOUT = RecordLayout.of([FieldLayout("x", "float64", (2,), "m")])
# Mean 0.5, variances 1 and 4 with correlation 0.6, in the record's own coordinates.
COVARIANCE = np.array([[1.0, 1.2], [1.2, 4.0]])


def model_with(
    constraint: PhysicsConstraint, layout=LAYOUT, extremes=None, **config
) -> EnergyModel:
    """A model at its beginning (the network is zero) with a known Gaussian."""
    size = layout.size
    model = EnergyModel(
        layout, NetworkConfig(width=8, depth=1, **config), NoiseRange(), (constraint,)
    ).double()
    covariance = COVARIANCE[:size, :size]
    variance, vectors = np.linalg.eigh(covariance)
    none = np.zeros(0)
    frame = Frame(np.full(size, 0.5), np.ones(size), np.diagonal(covariance).copy(), none, none)
    model.load_frame(frame, LinearGaussian(np.zeros((size, 0)), vectors, variance), extremes)
    return model


def smoothed_energy(z: torch.Tensor, sigma: float, weight) -> torch.Tensor:
    """-ln of (Gaussian x weight) smoothed by sigma, by integration over a grid; free constant."""
    side = torch.linspace(-10, 10, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    precision = torch.from_numpy(np.linalg.inv(COVARIANCE))
    log_p = -0.5 * torch.einsum("ni,ij,nj->n", grid, precision, grid) + weight(grid + 0.5).log()
    apart = torch.cdist(z, grid).square()
    return -(log_p - apart / (2 * sigma**2)).logsumexp(1) + z.shape[1] * math.log(sigma)


def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 2, generator=generator, dtype=torch.float64)


def energies(model: EnergyModel, z: torch.Tensor, sigma: float) -> torch.Tensor:
    given = z.new_zeros(len(z), 0)
    return model.energy(z, z.new_full((len(z),), sigma), given).detach()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_a_gaussian_cut_off_at_a_bound_is_exact(sigma: float) -> None:
    """One number, N(0.5, 1) with x >= 0: the smoothed energy by integration, constant included."""
    layout = RecordLayout.of([FieldLayout("x", "float64", (1,), "m")])
    constraint = PhysicsConstraint(
        name="positive", unit="m", needs=("x",), residual=lambda f: f["x"], tolerance=1.0,
        bound=Bound(field="x", lower=0.0),
    )  # fmt: skip
    model = model_with(constraint, layout, has_bounds=True)
    z = torch.linspace(-2, 3, 9, dtype=torch.float64)[:, None]
    grid = torch.linspace(-0.5, 9, 20_001, dtype=torch.float64)
    p = torch.exp(-(grid**2) / 2)
    p = p / torch.trapezoid(p, grid)
    noise = torch.exp(-((z - grid) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    expected = -torch.trapezoid(p * noise, grid).log()
    torch.testing.assert_close(energies(model, z, sigma), expected, atol=1e-5, rtol=0)


def test_numbers_with_an_atom_on_their_bound_are_inputs_alone() -> None:
    """Where a record lies exactly on the bound the energy at the start is the Gaussian's."""
    layout = RecordLayout.of([FieldLayout("x", "float64", (1,), "m")])
    constraint = PhysicsConstraint(
        name="positive", unit="m", needs=("x",), residual=lambda f: f["x"], tolerance=1.0,
        bound=Bound(field="x", lower=0.0),
    )  # fmt: skip
    plain = model_with(constraint, layout)
    z = torch.linspace(-2, 3, 9, dtype=torch.float64)[:, None]
    for lowest, is_same in ((0.0, True), (0.1, False)):
        extremes = (np.array([lowest]), np.array([5.0]))
        model = model_with(constraint, layout, extremes, has_bounds=True)
        gap = (energies(model, z, 0.3) - energies(plain, z, 0.3)).abs().max()
        assert (float(gap) < 1e-6) is is_same
        assert model.encoder.num_inputs == plain.encoder.num_inputs + 1


@pytest.mark.parametrize("sigma", [0.2, 1.0, 4.0])
def test_a_linear_residual_as_evidence_is_exact(sigma: float) -> None:
    """x_0 - x_1 = 0 within 0.5, times the Gaussian, smoothed: right up to a constant."""
    constraint = PhysicsConstraint(
        name="equal", unit="m", needs=("x",), tolerance=0.5,
        residual=lambda f: f["x"][:, :1] - f["x"][:, 1:],
    )  # fmt: skip
    model = model_with(constraint, evidence="equal")
    assert model.evidence is not None
    drawn = torch.from_numpy(np.random.default_rng(0).multivariate_normal([0, 0], COVARIANCE, 4000))
    model.evidence.load(model.encoder, model.base, drawn, drawn[:, :0], 1.0, rows=4000)
    z = points()
    expected = smoothed_energy(z, sigma, lambda x: torch.exp(-((x[:, 0] - x[:, 1]) ** 2) / 0.5))
    found = energies(model, z, sigma)
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), atol=0.1, rtol=0)


def test_evidence_fades_where_noise_covers_all() -> None:
    """At great noise the energy is the Gaussian's again, and its derivatives exist."""
    constraint = PhysicsConstraint(
        name="product", unit="m2", needs=("x",), tolerance=0.3,
        residual=lambda f: f["x"][:, :1] * f["x"][:, 1:] - 1,
    )  # fmt: skip
    model = model_with(constraint, evidence="product")
    plain = model_with(constraint)
    assert model.evidence is not None
    drawn = torch.from_numpy(np.random.default_rng(0).multivariate_normal([0, 0], COVARIANCE, 500))
    model.evidence.load(model.encoder, model.base, drawn, drawn[:, :0], 1.0)
    z = 30 * points()
    gap = energies(model, z, 30.0) - energies(plain, z, 30.0)
    assert float((gap - gap.mean()).abs().max()) < 0.3
    found = model.derivatives(points(), torch.full((12,), 0.05, dtype=torch.float64),
                              torch.zeros(12, 0, dtype=torch.float64), create_graph=True)  # fmt: skip
    (found.gradient_BD.square().sum() + found.noise_slope_B.square().sum()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
