import numpy as np
import pytest

from scf.verification.denoising import (
    LEVELS,
    HeldOut,
    add_noise,
    gaussian_losses,
    model_losses,
    summary,
)
from support.gaussian_records import POINT, gaussian_points, record_energy


def held_out(num: int = 200, *, scale: float = 1.0) -> HeldOut:
    return HeldOut(
        scale * gaussian_points(num, seed=5),
        np.zeros((num, 0)),
        [f"cid{row}" for row in range(num)],
        [f"week{row // 20}" for row in range(num)],
    )


def test_noise_depends_on_the_fossil_alone() -> None:
    """The same fossil meets the same noise in any company and any order."""
    energy = record_energy(POINT, gaussian_points(500))
    all_of_them = held_out()
    last = HeldOut(
        all_of_them.x_ND[-1:],
        all_of_them.c_NK[-1:],
        all_of_them.cids[-1:],
        all_of_them.families[-1:],
    )
    together, alone = (add_noise(h, energy, seed=0) for h in (all_of_them, last))
    np.testing.assert_array_equal(together.x_ND[-LEVELS:], alone.x_ND)
    assert not np.array_equal(add_noise(last, energy, seed=1).x_ND, alone.x_ND)


def test_the_gaussian_s_loss_is_that_of_a_model_without_its_network() -> None:
    """Two ways to the same number."""
    energy = record_energy(POINT, gaussian_points(500))
    noisy = add_noise(held_out(), energy, seed=0)
    np.testing.assert_allclose(
        model_losses(noisy, energy, energy),
        gaussian_losses(noisy, energy, independent=False),
        rtol=1e-5,
    )


def test_correlation_is_worth_something() -> None:
    """For correlated points the full Gaussian beats independent ones; the truth is at most one."""
    energy = record_energy(POINT, gaussian_points(5000))
    noisy = add_noise(held_out(1000), energy, seed=0)
    full, independent = (
        gaussian_losses(noisy, energy, independent=alone).mean() for alone in (False, True)
    )
    assert full < independent
    assert full < 1.05


def test_models_in_other_frames_are_judged_in_one() -> None:
    """Metres and kilometres are no advantage: a model of other scale is asked about the same noise."""
    one = record_energy(POINT, gaussian_points(4000))
    other = record_energy(POINT, gaussian_points(4000, seed=3) * 1.3)
    noisy = add_noise(held_out(), one, seed=0)
    assert other.frame.scale_D[0] > 1.2 * one.frame.scale_D[0]
    matched = model_losses(noisy, other, one).mean()
    assert np.isfinite(matched)
    assert matched > model_losses(noisy, one, one).mean()


def test_summary_counts_families() -> None:
    """Mean of all, mean of each family, and an interval that holds the mean."""
    losses = np.arange(10.0)
    found = summary(losses, ["a"] * 4 + ["b"] * 6, seed=0)
    assert found["mean"] == 4.5
    assert found["by_family"] == {"a": 1.5, "b": 6.5}
    assert found["ci95"][0] <= 4.5 <= found["ci95"][1]
    assert found["ci95"][0] == pytest.approx(1.5)
