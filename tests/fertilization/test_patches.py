"""Fields cut into patches, and windows, masks and families of what is cut."""

from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import UsageError
from scf.fertilization.readers import series as module
from scf.fertilization.readers.options import Windows
from scf.fertilization.readers.patches import Grid, Patches, PatchInvalid
from scf.fertilization.readers.series import (
    Constant,
    RecordTooLarge,
    Series,
    Trajectory,
    num_records,
    records,
    summaries,
)
from scf.vault.quarantine import Rejection
from support.readings import origin_of

HERE = origin_of(Path(__file__))
U = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
V = np.arange(3 * 4 * 6 * 2, dtype=np.float32).reshape(3, 4, 6, 2)


def series(name: str, values: np.ndarray, **options) -> Series:
    return Series(name, values.dtype, values.shape[1:], lambda a, b: values[a:b].copy(), **options)


def flow(**options) -> Trajectory:
    """A scalar and a vector field on a grid of 4x6, and a wall that is constant."""
    wall = Constant("wall", np.eye(4, 6, dtype=np.uint8))
    fields = (series("u", U), series("v", V, num_components=1))
    return Trajectory(3, fields, constants=(wall,), **options)


def test_patches_tile_the_fields_and_say_where_they_lie() -> None:
    found = list(records([flow()], Windows(patch=(2, 3)), HERE, source="s"))

    assert [r.index for r in found] == list(range(12))
    assert [r.params["patch"] for r in found[:4]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    third = found[6]  # step 1, patch [1, 0]
    assert third.params["patch_start"] == [2, 0]
    np.testing.assert_array_equal(third.arrays["u"], U[1, 2:4, 0:3])
    np.testing.assert_array_equal(third.arrays["v"], V[1, 2:4, 0:3])
    np.testing.assert_array_equal(third.arrays["wall"], np.eye(4, 6)[2:4, 0:3])
    assert third.params["condition_fields"] == ["wall"]


def test_a_window_leads_the_axes_of_a_patch() -> None:
    windows = Windows(window_steps=2, stride=1, patch=(4, 3))
    found = list(records([flow()], windows, HERE, source="s"))

    assert num_records(flow(), windows) == len(found) == 4
    assert [(s.name, s.shape) for s in summaries(flow(), windows)] == [
        ("u", (2, 4, 3)),
        ("v", (2, 4, 3, 2)),
        ("wall", (4, 3)),
    ]
    np.testing.assert_array_equal(found[3].arrays["v"], V[1:3, :, 3:6])


def test_patches_of_a_step_are_of_one_family() -> None:
    """Also where no family is known: neighbours would give the answer away."""
    stated = records([flow(family="run-1")], Windows(patch=(2, 3)), HERE, source="s")
    many = np.zeros((70, 4, 6), np.float32)
    unknown = records(
        [Trajectory(70, (series("u", many),))], Windows(patch=(2, 3)), HERE, source="s"
    )

    assert {r.family for r in stated} == {"run-1"}
    families = [r.family for r in unknown]
    assert set(families[: 64 * 4]) == {f"{HERE.name}#0"}
    assert set(families[64 * 4 :]) == {f"{HERE.name}#1"}


def test_what_is_left_over_is_in_no_patch_and_said() -> None:
    patches = Patches.of((3, 4), {"u": Grid((4, 6))})

    assert (patches.counts, len(patches)) == ((1, 1), 1)
    assert patches.notes() == ("patches leave out the last [1, 2] points of a grid of [4, 6]",)


def test_levels_stay_whole_and_fields_broadcast_along_axes_of_one_point() -> None:
    patches = Patches.of((2, 3), {"t": Grid((5, 4, 6)), "row": Grid((1, 6)), "dt": Grid(())})

    assert patches.shape(Grid((5, 4, 6))) == (5, 2, 3)
    assert patches.shape(Grid((1, 6))) == (1, 3)
    assert patches.cut(np.zeros((1, 6)), Grid((1, 6)), (1, 1)).shape == (1, 3)
    assert patches.shape(Grid(())) == ()


@pytest.mark.parametrize(
    ("lengths", "grids"),
    [
        ((5, 3), {"u": Grid((4, 6))}),
        ((2, 3), {"u": Grid((4,))}),
        ((2, 3), {"u": Grid((4, 6)), "w": Grid((8, 6))}),
    ],
)
def test_fields_that_have_no_such_patches_are_refused(lengths, grids) -> None:
    with pytest.raises(PatchInvalid):
        Patches.of(lengths, grids)


def test_a_field_past_the_limit_on_records_can_be_cut() -> None:
    origin = origin_of(Path(__file__), record_max_bytes=90)

    with pytest.raises(RecordTooLarge, match="at most 90 B"):
        list(records([flow()], Windows(fields=("u",)), origin, source="s"))
    small = Trajectory(3, (series("u", U),))
    assert len(list(records([small], Windows(patch=(2, 3)), origin, source="s"))) == 12


def test_fields_that_cannot_be_held_to_be_cut_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(module, "STEP_MAX_BYTES", 100)

    with pytest.raises(RecordTooLarge, match="held to be cut"):
        list(records([flow()], Windows(patch=(2, 3)), HERE, source="s"))


def test_a_gap_costs_its_own_patch_only() -> None:
    gappy = U.copy()
    gappy[1, 0, 0] = np.nan
    fields = (series("u", gappy, marks_gaps=True),)

    found = list(records([Trajectory(3, fields)], Windows(patch=(2, 3)), HERE, source="s"))

    assert [r.index for r in found if isinstance(r, Rejection)] == [4]


def test_a_masked_field_keeps_its_gaps_as_a_field() -> None:
    """NaN over land becomes 0 and `.valid` says so; a field without a mask is refused as before."""
    land = U.copy()
    land[:, 0, :2] = np.nan
    land[2] = np.nan
    fields = (series("u", land, marks_gaps=True), series("v", V, marks_gaps=True))
    windows = Windows(mask_fields=("u",))

    found = list(records([Trajectory(3, fields)], windows, HERE, source="s"))

    first = found[0]
    np.testing.assert_array_equal(first.arrays["u.valid"], ~np.isnan(land[0]))
    np.testing.assert_array_equal(first.arrays["u"], np.nan_to_num(land[0]))
    assert first.params["condition_fields"] == ["u.valid"]
    assert "v.valid" not in first.arrays
    assert [s.name for s in summaries(Trajectory(3, fields), windows)] == ["u", "u.valid", "v"]
    assert isinstance(found[2], Rejection)  # nothing but gaps is no record


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings in ({"patch": (0, 4)}, {"patch": (1,) * 4}):
        with pytest.raises(UsageError):
            Windows(**settings)
    with pytest.raises(UsageError, match="not among the fields"):
        Windows(fields=("u",), mask_fields=("v",))
