"""The order of fossils: every one once, nearly random, and the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.fertilization.shuffle import BLOCK_RECORDS, EpochOrder, KeyedPermutation


def order_of(num_records: int, **options) -> np.ndarray:
    order = EpochOrder(num_records, **{"seed": 0, "epoch": 0, "window_records": 8192} | options)
    return np.concatenate([order.window(w) for w in range(order.num_windows)])


@settings(deadline=None)
@given(st.integers(1, 5000), st.text(max_size=10))
def test_a_keyed_permutation_holds_every_number_once(size: int, key: str) -> None:
    everything = np.arange(size)
    permuted = KeyedPermutation(size, key)(everything)

    np.testing.assert_array_equal(np.sort(permuted), everything)
    np.testing.assert_array_equal(KeyedPermutation(size, key).inverse(permuted), everything)


def test_a_keyed_permutation_needs_no_table() -> None:
    """One place of a permutation of 10^15 numbers costs nothing."""
    permutation = KeyedPermutation(10**15, "large")
    there = permutation(np.array([123456789]))

    assert 0 <= there[0] < 10**15
    assert permutation.inverse(there)[0] == 123456789


@settings(deadline=None)
@given(
    st.integers(1, 3000),
    st.sampled_from([1, 64, 128, 192, 8192]),
    st.booleans(),
    st.integers(0, 3),
)
def test_an_epoch_holds_every_record_once_and_knows_its_windows(
    num_records: int, window_records: int, shuffle: bool, epoch: int
) -> None:
    order = EpochOrder(
        num_records, seed=7, epoch=epoch, window_records=window_records, shuffle=shuffle
    )
    position = 0
    seen = []
    for window in range(order.num_windows):
        records = order.window(window)
        assert order.window_start(window) == position
        assert order.window_at(position) == window
        assert order.window_at(position + len(records) - 1) == window
        position += len(records)
        seen.append(records)

    whole = np.concatenate(seen)
    np.testing.assert_array_equal(np.sort(whole), np.arange(num_records))
    if not shuffle:
        np.testing.assert_array_equal(whole, np.arange(num_records))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert (order_of(1000) == order_of(1000)).all()
    assert (order_of(1000) != order_of(1000, epoch=1)).any()
    assert (order_of(1000) != order_of(1000, seed=1)).any()


@pytest.mark.parametrize("tenth", [*range(10), None])
def test_minibatches_are_nearly_as_varied_as_independent_draws(tenth: int | None) -> None:
    """Design effect of a linear trend over file order: 1.5 by design; each tenth of an epoch too."""
    num_records, size = 400_000, 64
    order = order_of(num_records).astype(float) / num_records
    means = order[: num_records // size * size].reshape(-1, size).mean(axis=1)
    part = means if tenth is None else np.array_split(means, 10)[tenth]

    design_effect = part.var() / (1 / 12 / size)

    # A tenth has 625 minibatches in about 5 windows, so its estimate scatters by a fifth.
    assert design_effect < (1.7 if tenth is None else 2.2)


def test_a_window_is_read_in_whole_blocks() -> None:
    """The records of a window come from few places on the disk."""
    order = EpochOrder(100_000, seed=0, epoch=0, window_records=8192)
    blocks = np.unique(order.window(0) // BLOCK_RECORDS)

    assert len(blocks) == 128
