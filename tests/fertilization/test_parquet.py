"""Parquet, written by pyarrow: one record a row."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.parquet import ColumnUnknown, ParquetReader
from scf.fertilization.readers.registry import READERS, reader_for
from scf.vault.quarantine import Rejection
from support.readings import read

pa = pytest.importorskip("pyarrow", reason="extra [parquet]")
pq = pytest.importorskip("pyarrow.parquet", reason="extra [parquet]")


def write(path: Path, columns, **options) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def test_numbers_are_scalars_and_lists_are_vectors(tmp_path: Path) -> None:
    moment = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    path = write(
        tmp_path / "a",
        {
            "p [hPa]": pa.array([1.5, 2.5, 3.5]),
            "n": pa.array([1, 2, 3], pa.int16()),
            "ok": pa.array([True, False, True]),
            "ragged": pa.array([[1.0], [2.0, 3.0], [4.0]], pa.list_(pa.float32())),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2),
            "family": ["a", "a", "b"],
            "time": pa.array([moment] * 3),
            "station": ["s", None, "t"],
        },
        row_group_size=2,
    )

    records = read(path)

    assert reader_for(path) is READERS["parquet"]
    assert [r.index for r in records] == [0, 1, 2]
    second = records[1]
    assert second.arrays["p"] == 2.5
    assert second.arrays["n"].dtype == np.int16
    assert second.arrays["ok"].dtype == bool
    np.testing.assert_array_equal(second.arrays["ragged"], np.array([2, 3], np.float32))
    np.testing.assert_array_equal([r.arrays["v"] for r in records], [[0, 1], [2, 3], [4, 5]])
    assert [r.family for r in records] == ["a", "a", "b"]
    assert second.observed_at == "2020-01-01T00:00:00+00:00"
    assert second.units == {"p": "hPa"}
    assert [r.params for r in records] == [{"station": "s"}, {}, {"station": "t"}]


def test_arrays_of_more_axes_are_read_in_all_their_forms(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    flat = pa.array(values.ravel())
    rows = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 3), 2)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    lists = pa.array(values.tolist(), pa.list_(pa.list_(pa.float32())))
    path = write(tmp_path / "a.parquet", {"fixed": rows, "tensor": tensors, "lists": lists})

    records = read(path)

    for name in ("fixed", "tensor", "lists"):
        np.testing.assert_array_equal([r.arrays[name] for r in records], values)
    told = describe(ParquetReader(), path)
    assert told is not None
    assert [field.shape for field in told.fields] == [(2, 3), (2, 3), None]


def test_units_may_stand_in_the_columns_metadata(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("p", pa.float64(), metadata={"units": "Pa"})])
    path = write(tmp_path / "a.parquet", pa.table({"p": [1.0]}, schema=schema))

    assert read(path)[0].units == {"p": "Pa"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0, None, 3.0]),
        pa.array([[1.0], None, [3.0]]),
        pa.array([[1.0], [None], [3.0]]),
        pa.array([[1.0], [], [3.0]]),
        pa.array([[1.0], None, [3.0]], pa.list_(pa.float64(), 1)),
        pa.array([[[1.0]], None, [[3.0]]]),
        pa.array([[[1.0, 2.0]], [[1.0, 2.0], [3.0]], [[3.0, 1.0]]]),
    ],
)
def test_a_row_without_a_value_is_refused_and_the_rest_read(tmp_path: Path, column) -> None:
    path = write(tmp_path / "a.parquet", {"p": column, "q": [1, 2, 3]})

    records = read(path)

    assert [isinstance(r, Rejection) for r in records] == [False, True, False]
    assert records[1].kind in {"gap", "row"}
    assert records[2].arrays["p"].ravel()[0] == 3.0


def test_a_time_without_a_zone_is_a_parameter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"p": [1.0], "time": pa.array([0], pa.timestamp("s"))})

    record = read(path)[0]

    assert record.observed_at is None
    assert record.params == {"time": "1970-01-01T00:00:00"}


@pytest.mark.parametrize(
    "column",
    [pa.array([b"x"]), pa.array([{"a": 1}]), pa.array([[("k", 1)]], pa.map_("string", "int8"))],
)
def test_other_columns_are_refused_unless_fields_are_named(tmp_path: Path, column) -> None:
    path = write(tmp_path / "a.parquet", {"p": [1.0], "o": column})

    with pytest.raises(ColumnUnknown, match="'o'"):
        read(path)
    assert len(read(path, ParquetReader(fields=("p",)))) == 1


def test_a_table_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ColumnUnknown):
        read(write(tmp_path / "a.parquet", {"name": ["x"]}))


def test_a_truncated_or_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"p": np.arange(10000.0)}, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(InputError):
        read(path)

    path.write_bytes(data[:2000] + b"\x00" * 2000 + data[4000:])
    with pytest.raises(InputError):
        read(path)
