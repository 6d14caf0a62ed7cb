"""The further pages of a report: right for the truth, and each sees what it is there for."""

import numpy as np
import pytest

from scf.models.record import FieldLayout, RecordLayout
from scf.verification.agreement import agreement, loss_by_sigma, observables, paired, pareto, ranks
from scf.verification.denoising import HeldOut, add_noise
from support.gaussian_records import gaussian_points, record_energy

LAYOUT = RecordLayout.of([FieldLayout("u", "float64", (8,), "m")])


def waves(num: int, seed: int) -> np.ndarray:
    """Gaussian records whose neighbours go together."""
    white = np.random.default_rng(seed).standard_normal((num, 10))
    return white[:, :8] + white[:, 1:9] + white[:, 2:]


def held_out(x: np.ndarray, *, per_family: int = 1) -> HeldOut:
    names = [f"cid-{row:04d}" for row in range(len(x))]
    families = [f"family-{row // per_family:04d}" for row in range(len(x))]
    return HeldOut(x, x[:, :0], names, families)


def test_the_truth_agrees_with_itself() -> None:
    x = waves(600, 0)
    energy = record_energy(LAYOUT, x)
    held, sampled = held_out(waves(400, 1)), waves(300, 2)
    e = [energy.energy(part, 0.3, part[:, :0]) for part in (held.x_ND, sampled)]
    spoiled = held.x_ND[:, ::-1] + 3
    changed = np.ones(400, dtype=bool)
    pages = agreement(
        energy, held, sampled, (e[0], e[1]),
        {"raised": (changed, energy.energy(spoiled, 0.3, spoiled[:, :0]))},
        add_noise(held, energy, seed=0), seed=0,
    )  # fmt: skip
    assert pages["sliced_wasserstein"]["sampled"] < 2 * pages["sliced_wasserstein"]["floor"]
    assert pages["ranks"]["gap"] < 1.3 * pages["ranks"]["chance"]
    assert all(abs(page["apart_in_errors"]) < 4 for page in pages["observables"].values())
    # At its beginning a model is its Gaussian.
    for band in pages["loss_by_sigma"]:
        assert band["loss"] == pytest.approx(band["gaussian"], rel=1e-4)
        assert abs(band["slope_gap"]) < 5 * band["slope_gap_error"]
    assert pages["auroc_paired"]["raised"] > 0.9
    low, high = pages["energy_real"]["ci95"]
    assert low < pages["energy_real"]["mean"] < high


def test_the_slope_s_gap_sees_a_normaliser_that_drifts() -> None:
    """Half a nat too much for each factor e of sigma: seen in every band, in nats."""
    energy, held = record_energy(LAYOUT, waves(600, 0)), held_out(waves(250, 1))
    noisy = add_noise(held, energy, seed=0)
    before = loss_by_sigma(energy, noisy, held.families)
    energy.model.offset_L.copy_(0.5 * energy.model.offset_grid_L)
    after = loss_by_sigma(energy, noisy, held.families)
    for one, other in zip(before, after, strict=True):
        assert other["slope_gap"] - one["slope_gap"] == pytest.approx(0.5, abs=1e-3)
        assert other["loss"] == one["loss"]


def test_observables_see_amplitude_and_lost_neighbours() -> None:
    x = waves(600, 0)
    energy, rng = record_energy(LAYOUT, x), np.random.default_rng(0)
    small = observables(energy, held_out(x), 0.8 * waves(600, 1))
    assert small["u.spread"]["apart_in_errors"] < -5
    shuffled = rng.permuted(waves(600, 1), axis=1)
    torn = observables(energy, held_out(x), shuffled)
    assert torn["u.neighbours"]["apart_in_errors"] < -5
    assert abs(torn["u.mean"]["apart_in_errors"]) < 4


def test_a_family_counts_once() -> None:
    """The same records, ten a family: the standard error grows."""
    x = np.repeat(waves(60, 0), 10, axis=0)
    energy = record_energy(LAYOUT, x)
    sampled = waves(600, 1) + 0.5
    alone = observables(energy, held_out(x), sampled)["u.mean"]["apart_in_errors"]
    together = observables(energy, held_out(x, per_family=10), sampled)["u.mean"]["apart_in_errors"]
    assert abs(together) < 0.7 * abs(alone)


def test_ranks_see_samples_of_too_low_energy() -> None:
    rng = np.random.default_rng(0)
    found = ranks(rng.normal(size=400), rng.normal(size=300) - 1)
    assert found["gap"] > 2 * found["chance"]


def test_paired_counts_ties_half() -> None:
    real = np.array([0.0, 1.0, 2.0])
    rows = np.array([True, False, True])
    assert paired(real, {"moved": (rows, np.array([1.0, 2.0]))}) == {"moved": 0.75}


def test_one_number_has_no_spread() -> None:
    layout = RecordLayout.of([FieldLayout("x", "float64", (), "m")])
    x = gaussian_points(100)[:, :1]
    found = observables(record_energy(layout, x), held_out(x), x)
    assert set(found) == {"x.mean"}
    assert found["x.mean"]["apart_in_errors"] == pytest.approx(0)


def test_residuals_stand_beside_the_distance() -> None:
    checks = {
        "closure": {"real": 0.7, "sampled": 4.5, "unit": "W/m2", "tolerance": 15.0, "ok": True}
    }
    found = pareto(checks, {"sampled": 0.06, "floor": 0.04})
    assert found["distance_over_floor"] == pytest.approx(1.5)
    assert found["residuals"] == {"closure": {"real": 0.7, "sampled": 4.5, "unit": "W/m2"}}
