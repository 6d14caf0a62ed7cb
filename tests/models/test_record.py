import numpy as np
import pytest

from scf.models.record import FieldLayout, LayoutMismatch, RecordLayout

FIELDS = [
    FieldLayout("wind", "float32", (3,), "m/s"),
    FieldLayout("count", "int16", (), "1"),
    FieldLayout("clock", "float64", (3,), "h"),
]


def test_packing_and_unpacking_gives_the_same_arrays() -> None:
    """Flat rows turn back into the arrays they came from, dtypes and shapes included."""
    layout = RecordLayout.of(FIELDS, ["clock"])
    arrays = {
        "wind": np.arange(6, dtype=np.float32).reshape(2, 3),
        "count": np.array([7, -3], dtype=np.int16),
        "clock": np.ones((2, 3)),
    }

    x, c = layout.pack(arrays)

    assert (x.shape, c.shape) == ((2, 4), (2, 3))
    for name, array in (layout.unpack(x) | layout.unpack(c, given=True)).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


def test_whole_numbers_are_rounded_into_their_range() -> None:
    """A sample of 40000.6 for an int16 is 32767, not a wrapped negative number."""
    layout = RecordLayout.of([FIELDS[1]])
    assert layout.unpack(np.array([[40000.6], [-1.4]]))["count"].tolist() == [32767, -1]


def test_order_in_the_file_does_not_matter() -> None:
    """The same fields in another order are the same layout."""
    assert RecordLayout.of(FIELDS, ["clock"]) == RecordLayout.of(FIELDS[::-1], ["clock"])
    layout = RecordLayout.of(FIELDS, ["clock"])
    assert RecordLayout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    "arrays", [{"wind": np.zeros((2, 3))}, {"wind": np.zeros((2, 4)), "count": np.zeros(2)}]
)
def test_a_missing_or_misshapen_field_is_named(arrays) -> None:
    """Packing refuses records of another layout and says which field differs."""
    with pytest.raises(LayoutMismatch, match=r"count|wind"):
        RecordLayout.of(FIELDS[:2]).pack(arrays)


def test_there_must_be_something_to_model() -> None:
    """Records whose every field is given have no density."""
    with pytest.raises(LayoutMismatch, match="no field to model"):
        RecordLayout.of([FIELDS[2]], ["clock"])
