"""NetCDF and Zarr, written by xarray: what becomes a record, and what a gap."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.gridded import NoRecordAxis
from scf.fertilization.readers.netcdf import NetcdfReader
from scf.fertilization.readers.registry import READERS, reader_for
from scf.fertilization.readers.zarr_store import UnsafeCodec, ZarrReader
from scf.vault.quarantine import Rejection
from support.readings import read

xarray = pytest.importorskip("xarray", reason="extra [netcdf]")
pytest.importorskip("h5netcdf", reason="extra [netcdf]")

T, Y, X = 6, 4, 5
TAS = np.arange(T * Y * X, dtype=np.float32).reshape(T, Y, X) / 8


def weather() -> "xarray.Dataset":
    """Six hours of temperature over a mask of land."""
    return xarray.Dataset(
        {
            "tas": (
                ("time", "lat", "lon"),
                TAS,
                {"units": "K", "standard_name": "air_temperature"},
            ),
            "land": (("lat", "lon"), np.eye(Y, X, dtype=np.int8), {"units": "1"}),
            "height": ((), 2.0),
        },
        coords={
            "time": (
                "time",
                np.arange(T, dtype=np.int32),
                {"units": "hours since 2001-02-03 04:30:00", "calendar": "standard"},
            ),
            "lat": ("lat", np.array([10.0, 20, 30, 40]), {"units": "degrees_north"}),
            "lon": ("lon", np.array([0.0, 1, 2, 4, 8]), {"units": "degrees_east"}),
        },
        attrs={"title": "Toy weather", "institution": "us", "license": "CC-BY-4.0"},
    )


def write(dataset: "xarray.Dataset", path: Path, kind: str) -> Path:
    """The dataset in one of the forms, as its own library writes it."""
    if kind == "netcdf3":
        dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
    elif kind == "netcdf4":
        dataset.to_netcdf(path, engine="h5netcdf")
    else:
        pytest.importorskip("zarr", reason="extra [netcdf]")
        options = {"zarr_format": int(kind[-1]), "consolidated": False}
        dataset.to_zarr(path, **options)
    return path


KINDS = ["netcdf3", "netcdf4", "zarr2", "zarr3"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_step_is_a_fossil(tmp_path: Path, kind: str) -> None:
    path = write(weather(), tmp_path / "a", kind)

    records = read(path)

    assert reader_for(path) is READERS["zarr" if "zarr" in kind else "netcdf"]
    assert [r.index for r in records] == list(range(T))
    np.testing.assert_array_equal([r.arrays["tas"] for r in records], TAS)
    np.testing.assert_array_equal(records[0].arrays["land"], np.eye(Y, X))
    first = records[0]
    assert first.arrays["tas"].dtype.name == "float32"
    assert first.units == {"tas": "K", "land": "1"}
    assert [r.observed_at for r in records[:2]] == ["2001-02-03T04:30:00Z", "2001-02-03T05:30:00Z"]
    assert first.source == "Toy weather"
    assert first.licence == "CC-BY-4.0"
    assert first.family is None
    assert records[5].params == {
        "institution": "us",
        "tas.standard_name": "air_temperature",
        "time.units": "hours since 2001-02-03 04:30:00",
        "grid_lat": [10.0, 40.0, 4],
        "grid_lat.units": "degrees_north",
        "grid_lon": [0.0, 8.0, 5],
        "grid_lon_values": [0.0, 1.0, 2.0, 4.0, 8.0],
        "grid_lon.units": "degrees_east",
        "height": 2.0,
        "time": 5,
        "condition_fields": ["land"],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_marks_as_missing_is_a_gap(tmp_path: Path, kind: str) -> None:
    """Packed integers are decoded; a record with a fill value is refused, and says how many."""
    dataset = weather()
    dataset["tas"] = dataset["tas"].where(TAS[2, 1, 1] != TAS)
    dataset["tas"].encoding = {"dtype": "int16", "scale_factor": 0.125, "_FillValue": np.int16(-1)}
    path = write(dataset, tmp_path / "a", kind)

    records = read(path)

    assert isinstance(records[2], Rejection)
    assert (records[2].kind, records[2].index) == ("gap", 2)
    assert records[2].reason == "field 'tas': 1 of 20 numbers are missing"
    np.testing.assert_array_equal(records[3].arrays["tas"], TAS[3])
    assert len(records) == T


@pytest.mark.parametrize("kind", ["netcdf4", "zarr3"])
def test_windows_and_fields_are_options(tmp_path: Path, kind: str) -> None:
    path = write(weather(), tmp_path / "a", kind)
    reader = (ZarrReader if "zarr" in kind else NetcdfReader)(
        window_steps=3, stride=2, fields=("tas",)
    )

    records = read(path, reader)
    told = describe(reader, path)

    np.testing.assert_array_equal([r.arrays["tas"] for r in records], [TAS[:3], TAS[2:5]])
    assert records[1].params["time"] == [2, 3, 4]
    assert records[1].observed_at == "2001-02-03T06:30:00Z"
    assert told is not None
    assert (told.num_records, told.fields[0].shape, told.fields[0].unit) == (2, (3, Y, X), "K")


def test_time_need_not_lead_and_members_are_families(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * T, dtype=np.float64).reshape(3, 2, T)
    dataset = xarray.Dataset(
        {"u": (("x", "member", "time"), values), "nu": (("member",), [0.1, 0.2])},
        coords={"time": np.arange(T) / 2},
    )
    path = write(dataset, tmp_path / "a.nc", "netcdf4")

    records = read(path)

    assert len(records) == 2 * T
    np.testing.assert_array_equal(records[T + 1].arrays["u"], values[:, 1, 1])
    assert records[T + 1].family == "a.nc/member-1"
    assert records[T + 1].params["nu"] == 0.2
    assert records[T + 1].params["time"] == 0.5
    assert records[T + 1].observed_at is None


def test_without_time_the_leading_axis_counts_records(tmp_path: Path) -> None:
    dataset = xarray.Dataset({"u": (("case", "x"), np.arange(6.0).reshape(3, 2))})
    path = write(dataset, tmp_path / "a.nc", "netcdf4")

    assert [r.arrays["u"].tolist() for r in read(path)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(NoRecordAxis):
        read(path, NetcdfReader(window_steps=2))


@pytest.mark.parametrize("calendar", ["360_day", "noleap"])
def test_times_of_a_models_own_calendar_are_numbers_only(tmp_path: Path, calendar: str) -> None:
    dataset = weather()
    dataset["time"].attrs["calendar"] = calendar
    path = write(dataset, tmp_path / "a.nc", "netcdf4")

    records = read(path)

    assert {r.observed_at for r in records} == {None}
    assert records[1].params["time"] == 1


def test_text_and_bounds_are_left_out(tmp_path: Path) -> None:
    dataset = weather()
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset["time_bnds"] = (("time", "nv"), np.zeros((T, 2)))
    dataset["name"] = (("time",), np.array(list("abcdef"), dtype=object))
    path = write(dataset, tmp_path / "a.nc", "netcdf4")

    records = read(path)
    told = describe(NetcdfReader(), path)

    assert set(records[0].arrays) == {"tas", "land"}
    assert told is not None
    assert [note for note in told.notes if note.startswith("name:")]


def test_a_store_in_one_zip_file_is_one_origin(tmp_path: Path) -> None:
    write(weather(), tmp_path / "a", "zarr3")
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        for file in sorted((tmp_path / "a").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "a"))

    records = read(tmp_path / "a.zarr.zip")

    assert reader_for(tmp_path / "a.zarr.zip") is READERS["zarr"]
    np.testing.assert_array_equal([r.arrays["tas"] for r in records], TAS)


def test_an_array_of_a_store_is_no_origin_of_its_own(tmp_path: Path) -> None:
    write(weather(), tmp_path / "a", "zarr3")

    for name in ("a/zarr.json", "a/tas/zarr.json"):
        assert reader_for(tmp_path / name) is None


def test_a_codec_that_could_run_code_is_refused(tmp_path: Path) -> None:
    """Zarr's pickle codec is pickle."""
    write(weather(), tmp_path / "a", "zarr2")
    metadata = tmp_path / "a" / "tas" / ".zarray"
    array = json.loads(metadata.read_text())
    for change in ({"filters": [{"id": "pickle"}]}, {"dtype": "|O", "filters": None}):
        metadata.write_text(json.dumps(array | change))

        with pytest.raises(UnsafeCodec):
            read(tmp_path / "a")


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4"])
def test_a_truncated_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = write(weather(), tmp_path / "a.nc", kind)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(InputError):
        read(path)


def test_a_lost_or_damaged_chunk_of_a_store_costs_its_own_records_only(tmp_path: Path) -> None:
    dataset = weather()
    dataset["tas"].encoding = {"chunks": (2, Y, X)}
    path = write(dataset, tmp_path / "a", "zarr3")
    (tmp_path / "a" / "tas" / "c" / "1" / "0" / "0").write_bytes(b"damaged")

    records = read(path)

    assert [r.index for r in records if isinstance(r, Rejection)] == [2, 3]
    np.testing.assert_array_equal(records[4].arrays["tas"], TAS[4])


def test_cdf5_is_named_and_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"CDF\x05" + bytes(100))

    with pytest.raises(InputError, match="CDF-5"):
        read(tmp_path / "a.nc")


def test_a_damaged_zip_is_not_a_store(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "no store")

    assert reader_for(tmp_path / "a.zip") is None


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4"])
def test_any_flipped_byte_is_an_answer_never_a_crash(tmp_path: Path, kind: str) -> None:
    path = write(weather(), tmp_path / "a.nc", kind)
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(8, len(data), 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            read(path, NetcdfReader())
        except InputError:
            continue


def test_a_netcdf_file_that_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="extra [netcdf]")
    path = write(weather(), tmp_path / "a.nc", "netcdf4")
    with h5py.File(path, "a") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")

    with pytest.raises(InputError, match="another file"):
        read(path, NetcdfReader())
