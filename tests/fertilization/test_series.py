"""Steps to windows: every window is right whatever the chunks, and chunks are read once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.core.errors import InputError, UsageError
from scf.fertilization.readers import series as module
from scf.fertilization.readers.leading_axis import leading_axis
from scf.fertilization.readers.series import (
    Series,
    Trajectory,
    Windows,
    grid_params,
    plain,
    records,
)
from scf.vault.quarantine import Rejection
from support.readings import origin_of

HERE = origin_of(Path(__file__))


@given(
    num_steps=st.integers(1, 60),
    window_steps=st.integers(1, 9),
    stride=st.none() | st.integers(1, 9),
    chunk_steps=st.integers(1, 20),
    fit_steps=st.integers(1, 25),
)
def test_every_window_holds_its_steps(
    num_steps: int, window_steps: int, stride: int | None, chunk_steps: int, fit_steps: int
) -> None:
    reads: list[tuple[int, int]] = []
    values = np.arange(num_steps * 2.0).reshape(num_steps, 2)

    def read(start: int, stop: int) -> np.ndarray:
        reads.append((start, stop))
        return values[start:stop]

    field = Series("u", values.dtype, (2,), read, chunk_steps=chunk_steps)
    windows = Windows(window_steps, stride)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", fit_steps * 16)
        found = list(records([Trajectory(num_steps, (field,))], windows, HERE, source="s"))

    starts = range(0, num_steps - window_steps + 1, stride or window_steps)
    assert [r.index for r in found] == list(range(max(1, len(starts))))
    for start, record in zip(starts, found, strict=False):
        expected = values[start : start + window_steps]
        np.testing.assert_array_equal(
            record.arrays["u"], expected[0] if window_steps == 1 else expected
        )
    if window_steps == 1 and chunk_steps <= 2 * fit_steps and (stride or 1) == 1:
        chunks = [
            at for start, stop in reads for at in {s // chunk_steps for s in range(start, stop)}
        ]
        assert len(chunks) == len(set(chunks)), "a chunk was read twice"


def test_a_read_that_fails_costs_only_the_windows_in_it() -> None:
    def read(start: int, stop: int) -> np.ndarray:
        if start <= 3 < stop:
            raise OSError("step 3 is damaged")
        return np.arange(start, stop, dtype=np.float64)

    field = Series("u", np.dtype(np.float64), (), read)

    found = list(records([Trajectory(8, (field,))], Windows(), HERE, source="s"))

    assert [r.index for r in found if isinstance(r, Rejection)] == [3]
    assert found[7].arrays["u"] == 7.0


def test_a_file_that_goes_away_ends_the_reading(tmp_path: Path) -> None:
    def read(start: int, stop: int) -> np.ndarray:
        raise OSError("input/output error")

    field = Series("u", np.dtype(np.float64), (), read)

    with pytest.raises(InputError, match="has gone"):
        list(records([Trajectory(8, (field,))], Windows(), origin_of(tmp_path / "x"), source="s"))


def test_wrong_windows_are_refused() -> None:
    for options in ({"window_steps": 0}, {"stride": 0}, {"fields": ()}):
        with pytest.raises(UsageError):
            Windows(**options)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.array([3]), 3),
        (b"text", "text"),
        (np.bytes_(b"text"), "text"),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        (float("nan"), None),
        ([1.0, float("inf")], None),
        (np.zeros(65), None),
        (1j, None),
        (None, None),
        (True, True),
    ],
)
def test_parameters_are_numbers_texts_and_short_lists(value, expected) -> None:
    assert plain(value) == expected


def test_an_even_grid_is_three_numbers_and_another_is_all_of_them() -> None:
    even = np.linspace(0, 1, 513, dtype=np.float32)

    assert grid_params("x", even) == {"grid_x": [0.0, 1.0, 513]}
    assert grid_params("x", [1.0, 2.0, 4.0])["grid_x_values"] == [1.0, 2.0, 4.0]
    assert grid_params("x", [np.nan]) == {}


def test_the_largest_array_says_what_the_records_are() -> None:
    shapes = {"x": (3,), "u": (5, 3), "t": (5,)}

    axis = leading_axis(shapes, Windows())

    assert (axis.num_records, axis.columns, axis.coordinates) == (5, ("u", "t"), ("x",))
    with pytest.raises(InputError, match="u has"):
        leading_axis({**shapes, "v": (4, 3)}, Windows())
    with pytest.raises(InputError, match="no array"):
        leading_axis({}, Windows())
