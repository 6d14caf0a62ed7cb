"""Mixtures: how often, in which order, and that nothing has to be remembered for it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.core.errors import UsageError
from scf.fertilization.mixture import Group, Mixture, check_shares, whole_weights
from scf.fertilization.shuffle import BLOCK_RECORDS, EpochOrder


def group(start: int, count: int, share: float = 1.0, weights=None) -> Group:
    whole = None if weights is None else whole_weights(np.asarray(weights, float))
    return Group(np.array([start]), np.array([count]), share, whole)


def epoch_of(mixture: Mixture, epoch: int) -> np.ndarray:
    return mixture.places(epoch, np.arange(mixture.num_slots))


def uses(mixture: Mixture, epochs: int, size: int) -> np.ndarray:
    counted = np.zeros(size, int)
    for epoch in range(epochs):
        counted += np.bincount(epoch_of(mixture, epoch), minlength=size)
    return counted


SIZES = st.integers(1, 400)
SHARES = st.floats(0.01, 100)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, SHARES), min_size=1, max_size=4), st.integers(0, 5))
def test_each_epoch_has_each_groups_share_to_within_one_slot(parts, epoch) -> None:
    starts = np.cumsum([0, *(size for size, _ in parts)])
    groups = [group(int(s), n, share) for s, (n, share) in zip(starts, parts, strict=False)]
    mixture = Mixture(groups, seed=3)

    places = epoch_of(mixture, epoch)

    total = int(starts[-1])
    assert total <= mixture.num_slots < total + len(parts), "one slot at least for each"
    found = np.histogram(places, starts)[0]
    assert found.tolist() == mixture.slots_of
    for count, (_, share) in zip(found, parts, strict=True):
        wanted = total * share / sum(s for _, s in parts)
        assert abs(count - wanted) < 1 or count == 1


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, SHARES, st.integers(1, 6))
def test_no_fossil_is_used_again_before_all_of_its_group_were(few, many, share, epochs) -> None:
    """Also over the border between two epochs."""
    mixture = Mixture([group(0, few, share), group(few, many)], seed=1)

    counted = uses(mixture, epochs, few + many)

    for part in (counted[:few], counted[few:]):
        assert part.max() - part.min() <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(1, 25))
def test_a_fossil_is_used_as_often_as_its_weight_says(weights, epochs) -> None:
    """In an epoch rounded down or up; over the epochs never two off; those of weight 0 never."""
    weights = np.array(weights)
    weights[0] += 1.0
    mixture = Mixture([group(0, len(weights), weights=weights)], seed=5)
    expected = weights * (np.count_nonzero(weights) / weights.sum())
    tolerance = 1e-6 * (1 + expected)

    once = uses(mixture, 1, len(weights))
    often = uses(mixture, epochs, len(weights))

    assert mixture.num_slots == np.count_nonzero(weights)
    assert (once >= np.floor(expected - tolerance)).all()
    assert (once <= np.ceil(expected + tolerance)).all()
    assert (np.abs(often - epochs * expected) < 2 + epochs * tolerance).all()
    assert often[weights == 0].sum() == 0


def test_shares_and_weights_go_together() -> None:
    """A group keeps its share whatever its weights are; in it only ratios matter."""
    mixture = Mixture(
        [group(0, 100, 0.25, [1e-3] * 50 + [3e-3] * 50), group(100, 300, 0.75)], seed=0
    )

    counted = uses(mixture, 12, 400)

    assert mixture.slots_of == [100, 300]
    assert counted[:50].sum() == pytest.approx(12 * 25, abs=2)
    assert counted[50:100].sum() == pytest.approx(12 * 75, abs=2)
    assert (counted[100:] == 12).all()


def test_alternating_weights_do_not_pick_every_second_fossil() -> None:
    """Points at even distances along the stored order would take only even time steps."""
    weights = np.where(np.arange(6400) < 3200, 1.0, 3.0)  # 0.5 and 1.5 times an epoch
    mixture = Mixture([group(0, 6400, weights=weights)], seed=2)

    picked = np.unique(epoch_of(mixture, 0))
    picked = picked[picked < 3200]

    assert len(picked) == pytest.approx(1600, abs=50)
    assert (picked % 2).mean() == pytest.approx(0.5, abs=0.04)
    in_blocks = [int((picked // 64 == block).sum()) for block in range(50)]
    assert min(in_blocks) >= 31
    assert max(in_blocks) <= 33


def test_a_little_of_a_large_group_is_read_in_whole_blocks() -> None:
    """A window of 8,192 slots with 2 % replay of a million fossils reads few blocks, not 8,192."""
    mixture = Mixture([group(0, 10**6, 0.02), group(10**6, 10**5, 0.98)], seed=0)
    order = EpochOrder(mixture.num_slots, seed=0, epoch=0, window_records=8192)

    for window in (0, 5, order.num_windows - 2):
        places = mixture.places(0, order.window(window))
        assert len(np.unique(places // BLOCK_RECORDS)) <= 2 * 128


def test_groups_may_lie_in_pieces() -> None:
    """As replayed shards do that stand between fresh ones."""
    pieces = Group(np.array([10, 50]), np.array([5, 7]), 1.0)
    mixture = Mixture([pieces], seed=0)

    assert sorted(epoch_of(mixture, 0).tolist()) == [*range(10, 15), *range(50, 57)]


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
def test_shares_are_finite_and_above_0(share: float) -> None:
    with pytest.raises(UsageError, match="shares are finite and above 0"):
        check_shares([1.0, share])


def test_weights_become_whole_numbers_and_keep_what_is_0() -> None:
    assert whole_weights(np.array([0.0, 1e-30, 0.5, 1.0])).tolist() == [0, 1, 2147483648, 2**32 - 1]
    assert whole_weights(np.zeros(2)).tolist() == [0, 0]


def test_a_minibatch_is_as_mixed_as_without_a_mixture() -> None:
    """Design effect of a trend along the file, 64 to a minibatch: near that of all fossils alike."""
    size = 200_000
    rng = np.random.default_rng(0)
    mixture = Mixture([group(0, size, weights=rng.exponential(size=size))], seed=1)
    order = EpochOrder(mixture.num_slots, seed=1, epoch=0, window_records=8192)
    places = np.concatenate(
        [mixture.places(0, order.window(w)) for w in range(order.num_windows)]
    ).astype(float)

    means = places[: size // 64 * 64].reshape(-1, 64).mean(axis=1)
    effect = means.var() / (places.var() / 64)

    assert effect < 1.7
    assert Counter(places.astype(int).tolist()).most_common(1)[0][1] < 20
