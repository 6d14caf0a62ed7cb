"""The mixture is exact at every noise level, its fit finds what is there, a model departs from it."""

import numpy as np
import pytest
import torch

import scf
from scf.core.errors import UsageError
from scf.models.clusters import Clusters, _shrunk, fit_clusters
from scf.verification.reference_systems import GaussianMixture

SYSTEM = GaussianMixture.cloud(5, num=3)


def loaded(num: int = 3, rows: int = 6000) -> Clusters:
    x = SYSTEM.sample(rows, np.random.default_rng(0))
    clusters = Clusters(num, 5)
    clusters.load(fit_clusters(x, num, seed=0))
    return clusters


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_smoothed_mixture_is_the_system_s(sigma: float) -> None:
    """Energies, scores and slopes of a mixture that is the system itself."""
    clusters = Clusters(3, 5).double()
    clusters.log_weight_K.copy_(torch.from_numpy(np.log(SYSTEM.weights)))
    clusters.mean_KD.copy_(torch.from_numpy(SYSTEM.means))
    clusters.variance_KD.copy_(torch.from_numpy(SYSTEM.widths[:, None] ** 2).expand(3, 5))
    rng = np.random.default_rng(1)
    y = SYSTEM.sample(50, rng) + sigma * rng.standard_normal((50, 5))
    z, sigma_B = torch.from_numpy(y), torch.full((50,), sigma, dtype=torch.float64)
    energy, gradient, slope = clusters.energy(z, sigma_B)
    np.testing.assert_allclose(energy, SYSTEM.energy(y, sigma), rtol=1e-9)
    np.testing.assert_allclose(-gradient, SYSTEM.score(y, sigma), rtol=1e-7, atol=1e-9)
    step = 1e-5
    ends = [SYSTEM.energy(y, sigma * np.exp(s)) for s in (-step, step)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * step), rtol=1e-5, atol=1e-5)


def test_the_fit_finds_the_groups() -> None:
    """Energies of fresh records within what 6,000 records can tell."""
    clusters, rng = loaded(), np.random.default_rng(2)
    x = SYSTEM.sample(500, rng)
    found = clusters.energy(torch.from_numpy(x).float(), torch.full((500,), 1e-3))[0].numpy()
    assert np.abs(found - SYSTEM.energy(x)).mean() < 0.1
    np.testing.assert_allclose(sorted(clusters.log_weight_K.exp()), SYSTEM.weights, atol=0.02)


def test_too_many_clusters_do_no_harm() -> None:
    clusters, rng = loaded(num=8), np.random.default_rng(3)
    x = SYSTEM.sample(500, rng)
    found = clusters.energy(torch.from_numpy(x).float(), torch.full((500,), 1e-3))[0].numpy()
    assert np.abs(found - SYSTEM.energy(x)).mean() < 0.2


def test_few_records_give_a_round_covariance() -> None:
    """Of 40 draws of a round Gaussian in 30 dimensions the sample covariance is far from round."""
    x = np.random.default_rng(4).standard_normal((40, 30))
    sample = x.T @ x / 40
    assert np.linalg.cond(sample) > 100
    assert np.linalg.cond(_shrunk(sample, 40)) < 2


def test_a_model_departs_from_the_mixture_and_keeps_it(tmp_path) -> None:
    """Two steps of training: the energy is the mixture's; sampled, saved and read again it stays."""
    x = SYSTEM.sample(3000, np.random.default_rng(5))
    model = scf.fit(
        x, preset="tiny", max_steps=2, learning_rate=1e-6, clusters=3, evaluate_every=1, seconds=60
    )
    fresh = SYSTEM.sample(300, np.random.default_rng(6))
    noisy = fresh + 0.2 * np.random.default_rng(7).standard_normal(fresh.shape)
    assert np.abs(model.energy(noisy, 0.2) - SYSTEM.energy(noisy, 0.2)).mean() < 0.25
    score, truth = model.score(noisy, 0.2), SYSTEM.score(noisy, 0.2)
    assert np.sqrt(((score - truth) ** 2).sum() / (truth**2).sum()) < 0.15
    share = np.bincount(SYSTEM.likeliest(model.sample(1000, steps=16)), minlength=3) / 1000
    np.testing.assert_allclose(share, SYSTEM.weights, atol=0.08)
    again = scf.load(model.save(tmp_path / "kept"))
    assert np.array_equal(again.energy(fresh), model.energy(fresh))


def test_by_hand_as_by_autograd() -> None:
    """The derivatives in training are those of the energy that is told."""
    x = SYSTEM.sample(500, np.random.default_rng(8))
    model = scf.fit(
        x, preset="tiny", max_steps=3, clusters=2, calibration_particles=0
    ).energies.model
    z, c = torch.randn(20, 5), torch.zeros(20, 0)
    sigma = torch.linspace(0.1, 3.0, 20)
    assert model.has_explicit_adjoint
    by_hand = model.derivatives(z, sigma, c)
    model.has_explicit_adjoint = False
    for one, other in zip(by_hand, model.derivatives(z, sigma, c), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_hand.energy_B, model.energy(z, sigma, c), rtol=1e-4, atol=1e-4)


def test_clusters_are_refused_where_they_do_not_fit() -> None:
    x = np.random.default_rng(9).standard_normal((100, 4, 4))
    with pytest.raises(UsageError, match="clusters"):
        scf.fit(x, boundary="periodic", clusters=2, max_steps=1)
    arrays = {"a": x[:, 0], "b": x[:, 1]}
    with pytest.raises(UsageError, match="clusters"):
        scf.fit(arrays, given=["b"], body="mlp", clusters=2, max_steps=1)
