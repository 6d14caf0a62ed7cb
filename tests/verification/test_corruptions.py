import numpy as np
import pytest

from scf.models.record import FieldLayout, RecordLayout
from scf.verification.corruptions import auroc, corruptions_for
from support.gaussian_records import solar_days

RNG = 0


def test_auroc_of_separated_equal_and_reversed() -> None:
    """1 when every corrupted energy is higher, 1/2 for ties, 0 upside down."""
    low, high = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert auroc(low, high) == 1.0
    assert auroc(low, low) == 0.5
    assert auroc(high, low) == 0.0


def test_radiation_corruptions_break_only_how_numbers_go_together() -> None:
    """A shuffled channel holds the same numbers; the other channels are untouched."""
    days, units = solar_days(30)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, _ = layout.pack(days)
    ghi, dni = layout.slices()["ghi"], layout.slices()["dni"]
    spoiled = corruptions_for(layout)["ghi_shuffled"](x, np.random.default_rng(RNG))
    np.testing.assert_array_equal(np.sort(spoiled[:, ghi]), np.sort(x[:, ghi]))
    np.testing.assert_array_equal(spoiled[:, dni], x[:, dni])
    assert (spoiled[:, ghi] != x[:, ghi]).any(axis=1).all()
    scaled = corruptions_for(layout)["ghi_scaled_1.1"](x, np.random.default_rng(RNG))
    np.testing.assert_allclose(scaled[:, ghi], 1.1 * x[:, ghi])


def test_dew_point_is_raised_above_the_air() -> None:
    """Every hour ends a degree above, or where it was if that was higher."""
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (3,), "degC") for n in ("temp_air", "temp_dew")]
    )
    x = np.array([[10.0, 20.0, 30.0, 5.0, 20.5, 35.0]])
    spoiled = corruptions_for(layout)["dew_point_above_air"](x, np.random.default_rng(RNG))
    assert spoiled[0].tolist() == [10.0, 20.0, 30.0, 11.0, 21.0, 35.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([FieldLayout("x", "float64", (2,), "m")], {"x_shuffled", "halves_spliced"}),
        ([FieldLayout("x", "float64", (), "m")], set()),
        (
            [FieldLayout("a", "float64", (), "m"), FieldLayout("b", "float64", (4,), "m")],
            {"b_shuffled", "a_exchanged", "b_exchanged"},
        ),
    ],
)
def test_any_record_gets_the_corruptions_that_make_sense(fields, expected) -> None:
    """One number alone cannot be corrupted in this sense; fields can be exchanged."""
    assert set(corruptions_for(RecordLayout.of(fields))) == expected


def test_an_exchange_never_gives_a_record_its_own_numbers() -> None:
    """The other half always comes from another record."""
    layout = RecordLayout.of([FieldLayout("x", "float64", (2,), "m")])
    x = np.arange(40.0).reshape(20, 2)
    spoiled = corruptions_for(layout)["halves_spliced"](x, np.random.default_rng(RNG))
    assert (spoiled[:, 1] != x[:, 1]).all()
    assert sorted(spoiled[:, 1]) == sorted(x[:, 1])
