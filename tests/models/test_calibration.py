import numpy as np
import pytest
import torch

from scf.models.calibration import calibrate
from support.gaussian_records import POINT, gaussian_points, record_energy


def log_z(energy, sigma: float) -> float:
    """ln of the integral of exp(-E) over a grid of the model's plane."""
    reach = 7 * (1 + sigma**2) ** 0.5
    line = torch.linspace(-reach, reach, 121)
    plane = torch.cartesian_prod(line, line)
    with torch.no_grad():
        e = energy.model.energy(plane, torch.full((len(plane),), sigma), torch.zeros(len(plane), 0))
    return float((-e.double()).logsumexp(0) + 2 * torch.log(line[1] - line[0]).double())


def test_a_wrong_normaliser_is_put_right() -> None:
    """With random weights exp(-E) integrates to something else than 1; afterwards to 1."""
    energy = record_energy(POINT, gaussian_points(500), noise=1.0)
    before = [log_z(energy, sigma) for sigma in (0.2, 1.0, 5.0)]
    assert max(map(abs, before)) > 0.25

    found = calibrate(
        energy.model, torch.zeros(1024, 0), moves=2, generator=torch.Generator().manual_seed(0)
    )

    after = [log_z(energy, sigma) for sigma in (0.2, 1.0, 5.0)]
    np.testing.assert_allclose(after, 0, atol=0.08)
    assert found.standard_error < 0.05


def test_a_gaussian_needs_no_offset() -> None:
    """For a model that is its Gaussian base every weight is 1 and the offsets are 0, exactly."""
    energy = record_energy(POINT, gaussian_points(500))
    found = calibrate(
        energy.model, torch.zeros(64, 0), moves=1, generator=torch.Generator().manual_seed(0)
    )
    assert float(found.offset_L.abs().max()) == pytest.approx(0, abs=1e-4)
