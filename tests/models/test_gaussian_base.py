"""Large fields on a periodic grid: a Gaussian whose eigenvectors are waves."""

import numpy as np
import pytest
import torch

from scf.models.energy_model import LATTICE
from scf.models.frame import Symmetry
from scf.models.record import FieldLayout, RecordLayout
from scf.verification.reference_systems import GaussianField
from support.gaussian_records import record_energy

SIDE = 40  # 1,600 numbers: above the limit of a full covariance
STATIONARY = Symmetry(translation=True)


def model_of(x: np.ndarray, names=("phi",)):
    shape = (SIDE, SIDE)
    layout = RecordLayout.of(
        [FieldLayout(name, "float64", shape, name) for name in names], boundary="periodic"
    )
    return record_energy(
        layout, x, body=LATTICE, width=4, translation_symmetric=True, symmetry=STATIONARY
    )


@pytest.fixture(scope="module")
def field():
    system = GaussianField.power_law(SIDE)
    x = system.sample(1500, np.random.default_rng(0)) + 3.0
    return system, x, model_of(x.reshape(len(x), -1))


def test_a_stationary_field_is_known_before_the_first_step(field) -> None:
    """Energy and score of the smoothed field, from 1,500 records of 1,600 numbers."""
    system, _, energy = field
    assert energy.model.base.mixing_SCC is not None
    rng = np.random.default_rng(1)
    x = system.sample(200, rng) + 3.0
    for sigma in (0.1, 0.5):
        noisy = x + sigma * rng.standard_normal(x.shape)
        flat = noisy.reshape(len(x), -1)
        found = energy.energy(flat, sigma, flat[:, :0])
        truth = system.energy(noisy - 3.0, sigma)
        assert np.abs(found - truth).mean() < 3.0  # of 1,600 numbers with fitted variances
        assert np.corrcoef(found, truth)[0, 1] > 0.98
        score = energy.score(flat, sigma, flat[:, :0]).reshape(x.shape)
        exact = system.score(noisy - 3.0, sigma)
        assert np.linalg.norm(score - exact) < 0.05 * np.linalg.norm(exact)


def test_there_and_back_is_the_same_record(field) -> None:
    _, x, energy = field
    base = energy.model.base
    z, c = energy.to_model(x[:4].reshape(4, -1), np.zeros((4, 0)))
    w = base.rotate(z, c)
    torch.testing.assert_close(base.rotate_back(w, c), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w.norm(dim=1), z.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_one_number_has_the_variance_of_the_field(field) -> None:
    """1 in the model's scale, the same at all sites."""
    base = field[2].model.base
    marginal = base.spread_of(base.variance_D[None])[0]
    torch.testing.assert_close(marginal, torch.ones_like(marginal), rtol=0.02, atol=0)


def test_channels_that_go_together_are_told(field) -> None:
    """v = -u/2 + noise at each site: samples of the Gaussian have that correlation."""
    _, x, _ = field
    u = x - 3.0
    v = -0.5 * u + 0.3 * np.random.default_rng(2).standard_normal(u.shape)
    both = np.concatenate([u.reshape(len(u), -1), v.reshape(len(u), -1)], axis=1)
    energy = model_of(both, ("u", "v"))
    drawn = energy.sample(np.zeros((64, 0)), steps=4, generator=torch.Generator().manual_seed(0))
    first, second = drawn[:, : SIDE**2].ravel(), drawn[:, SIDE**2 :].ravel()
    expected = np.corrcoef(u.ravel(), v.ravel())[0, 1]
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(expected, abs=0.02)
    assert drawn.std() == pytest.approx(both.std(), rel=0.05)


def test_a_field_that_is_not_alike_everywhere_has_no_waves(field) -> None:
    _, x, _ = field
    layout = RecordLayout.of(
        [FieldLayout("phi", "float64", (SIDE, SIDE), "1")], boundary="periodic"
    )
    plain = record_energy(layout, x[:100].reshape(100, -1), body=LATTICE, width=4)
    assert plain.model.base.mixing_SCC is None
    assert plain.model.base.vectors_DD is None


def test_a_true_score_is_trusted_as_far_as_it_is_sharp() -> None:
    """Gaussian data: 1/E[s^2] is the variance. Two wells at +-2: the variance 4.25 says too much."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.standard_normal(20_000), rng.choice([-2.0, 2.0], 20_000)], axis=1)
    x[:, 1] += 0.5 * rng.standard_normal(20_000)
    layout = RecordLayout.of([FieldLayout("x", "float64", (2,), "m")])
    energy = record_energy(layout, x)
    base, scale = energy.model.base, energy.frame.scale_D
    wells = -(x[:, 1] - 2.0 * np.tanh(8.0 * x[:, 1])) / 0.25  # of the mixture of both wells
    score = np.stack([-x[:, 0], wells], axis=1) * scale
    base.load_true_score(torch.from_numpy(score).float())
    along = base.turn_gradient(torch.eye(2)).abs().argmax(dim=1)  # which eigenvector is whose
    assert float(base.certain_D[along[0]]) == pytest.approx(1.0 / scale[0] ** 2, rel=0.05)
    assert float(base.certain_D[along[1]]) == pytest.approx(0.25 / scale[1] ** 2, rel=0.1)


def test_a_checkpoint_of_before_trusts_as_before() -> None:
    layout = RecordLayout.of([FieldLayout("x", "float64", (2,), "m")])
    model = record_energy(layout, np.random.default_rng(0).standard_normal((50, 2))).model
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("certain_D")}
    model.base.certain_D.zero_()
    model.load_state_dict(state)
    torch.testing.assert_close(model.base.certain_D, model.base.variance_D)
