"""The scan finds exactly what a comparison of all pairs finds."""

from collections.abc import Iterator

import numpy as np
import pytest

from scf.verification import near_duplicates
from scf.verification.near_duplicates import TOLERANCE, find_near_duplicates


def brute(held_out: np.ndarray, training: np.ndarray) -> np.ndarray:
    apart = np.linalg.norm(held_out[:, None] - training[None], axis=2)
    return (apart <= TOLERANCE * np.linalg.norm(held_out, axis=1)[:, None]).any(axis=1)


@pytest.mark.parametrize("size", [4, 24, 200])
@pytest.mark.parametrize("pairs_at_once", [7, 200_000])
def test_it_finds_what_all_pairs_find(
    size: int, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies with noise just below and just above the tolerance, among records of mixed spread."""
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(size)
    spread = np.geomspace(3.0, 0.01, size)
    training = rng.normal(size=(900, size)) * spread
    held_out = rng.normal(size=(120, size)) * spread
    for row in range(0, 120, 3):
        aside = rng.normal(size=size)
        length = rng.choice([0.0, 0.9, 1.1]) * TOLERANCE * np.linalg.norm(training[row])
        held_out[row] = training[row] + aside / np.linalg.norm(aside) * length

    found = find_near_duplicates(held_out, [training[:400], training[400:]])

    expected = brute(held_out, training)
    assert 20 <= expected.sum() < 40
    assert (found.is_near_N == expected).all()
    assert (found.scanned, found.is_complete) == (900, True)


def test_records_that_are_all_alike_take_bounded_memory() -> None:
    """Where no axis tells records apart, every pair is compared, a bounded number at a time."""
    held_out, training = np.ones((50, 8)), np.ones((5000, 8))
    assert find_near_duplicates(held_out, [training]).is_near_N.all()


def test_points_of_few_numbers_are_not_compared_and_it_says_so() -> None:
    found = find_near_duplicates(np.zeros((5, 2)), [np.zeros((5, 2))])
    assert not found.is_near_N.any()
    assert found.to_json(["a"] * 5)["skipped"].startswith("records of fewer than 4 numbers")


def test_a_scan_that_ran_out_of_time_says_how_far_it_came() -> None:
    def endless() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        while True:
            yield rng.normal(size=(64, 6))

    found = find_near_duplicates(np.ones((5, 6)), endless(), seconds_max=0.05)
    assert not found.is_complete
    assert found.scanned % 64 == 0
