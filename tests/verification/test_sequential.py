"""The sequential test stops where it may, says why, and errs no more often than it promises."""

import math

import numpy as np
import pytest

from scf.verification.sequential import (
    BETTER,
    NO_BETTER,
    UNDECIDED,
    SequentialLimits,
    llr_paths,
    sequential_test,
    stops,
)

LIMITS = SequentialLimits()


def block_means(gain: float, trials: int, *, rho: float = 0.3, seed: int = 3) -> np.ndarray:
    """Means of ten correlated fossils with spread 1, drawn from their own distribution."""
    spread = math.sqrt((1 + 9 * rho) / 10)
    return np.random.default_rng(seed).normal(gain, spread, size=(trials, 400))


def promoted(gain: float, trials: int = 1500) -> float:
    llr = llr_paths(block_means(gain, trials), np.ones(trials), LIMITS)
    return float((stops(llr, LIMITS)[1] >= LIMITS.llr_high).mean())


def test_the_bounds_are_walds() -> None:
    assert LIMITS.llr_high == pytest.approx(math.log(19))
    assert LIMITS.llr_low == pytest.approx(-math.log(19))


def test_error_rates_are_those_promised() -> None:
    """1,500 trials a row: no gain passes in 5 %, a gain of 0.1 in 85 %, a loss of 0.05 in 1 %."""
    assert promoted(0.0) < 0.065
    assert promoted(0.1) > 0.83
    assert promoted(-0.05) < 0.01


def test_it_stops_at_the_first_bound_that_is_reached() -> None:
    gains = [1.0 if i % 2 else 0.6 for i in range(60)]

    result = sequential_test(gains, fossil_sigma=1.0, limits=LIMITS)

    assert (result.decision, result.blocks) == (BETTER, LIMITS.blocks_min)
    assert result.path[: LIMITS.blocks_min - 1] == (0.0,) * (LIMITS.blocks_min - 1)
    assert result.llr >= LIMITS.llr_high
    assert "better than the champion on the sealed pool" in result.sentence("champion")


def test_a_loss_ends_it_early() -> None:
    gains = [-1.0 if i % 2 else -0.6 for i in range(60)]

    result = sequential_test(gains, fossil_sigma=1.0, limits=LIMITS)

    assert (result.decision, result.blocks) == (NO_BETTER, LIMITS.blocks_min)


def test_too_few_families_leave_it_undecided_and_it_is_said_what_they_could_show() -> None:
    """The quickstart's 24 families: no fault of the candidate, and honest about it."""
    gains = block_means(0.1, 1, seed=5)[0, :24].tolist()

    result = sequential_test(gains, fossil_sigma=None, limits=LIMITS)

    said = result.sentence("champion")
    assert result.decision == UNDECIDED
    assert result.needed_about == pytest.approx(530, abs=2)
    assert result.visible_sigma == pytest.approx(2.944 / 2.4 + 0.05, rel=0.01)
    assert "24 held-out families are all there are" in said
    assert "only show a gain of about 1.3 sigma; one of 0.1 sigma" in said
    assert "takes about 530 families, of which at most 440 are looked at" in said


def test_no_more_than_the_most_families_are_looked_at() -> None:
    gains = np.resize([0.45, -0.35], 1000).tolist()

    result = sequential_test(gains, fossil_sigma=1.0, limits=LIMITS)

    assert result.blocks <= LIMITS.blocks_max
    assert result.blocks_there == 1000


@pytest.mark.parametrize(("gain", "decision"), [(0.2, BETTER), (0.0, NO_BETTER), (-1.0, NO_BETTER)])
def test_equal_gains_have_no_spread_and_still_decide(gain: float, decision: str) -> None:
    result = sequential_test([gain] * 20, fossil_sigma=1.0, limits=LIMITS)

    assert result.decision == decision
    assert all(math.isfinite(value) for value in result.path)


def test_a_single_family_decides_nothing() -> None:
    assert sequential_test([5.0], fossil_sigma=None, limits=LIMITS).decision == UNDECIDED
