"""From files of many communities to the vault and back."""

from pathlib import Path

import numpy as np
import pytest

from scf.daemon.setup import FoundryPlaces
from support.vaults import ingest, open_vault

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")
io = pytest.importorskip("scipy.io", reason="extra [hdf5]")
xarray = pytest.importorskip("xarray", reason="extra [netcdf]")
pytest.importorskip("h5netcdf", reason="extra [netcdf]")
pa = pytest.importorskip("pyarrow", reason="extra [parquet]")
pq = pytest.importorskip("pyarrow.parquet", reason="extra [parquet]")

U = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)


def write_all(folder: Path) -> None:
    """The same six records in each form; names say nothing about the form."""
    folder.mkdir()
    with h5py.File(folder / "plain", "w") as file:
        file["u"] = U
        file["u"].attrs["units"] = "m/s"
    with h5py.File(folder / "bench", "w") as file:
        file["tensor"], file["x-coordinate"] = U.reshape(2, 3, 12), np.arange(12.0)
    io.savemat(folder / "matlab", {"u": U})
    dataset = xarray.Dataset({"u": (("time", "y", "x"), U, {"units": "m/s"})})
    dataset.to_netcdf(folder / "nc4", engine="h5netcdf")
    dataset.to_netcdf(folder / "nc3", engine="scipy", format="NETCDF3_64BIT")
    pq.write_table(pa.table({"u [m/s]": U.reshape(6, 12).tolist()}), folder / "table")


def test_every_form_becomes_fossils_and_a_second_time_only_duplicates(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    write_all(tmp_path / "in")

    with open_vault(foundry) as vault:
        report = ingest(vault, tmp_path / "in")
        again = ingest(vault, tmp_path / "in")
        fossils = [vault.read(cid) for cid in vault.cids()]

    assert report.reader == "pdebench,mat,netcdf,hdf5-arrays,parquet"
    assert (report.read, report.accepted, report.quarantined) == (36, 36, 0)
    assert (again.read, again.duplicates) == (36, 36)
    assert again.fossils_root == report.fossils_root
    assert not report.skipped
    for name in ("plain", "matlab", "nc4", "nc3"):
        own = [f for f in fossils if f is not None and f.provenance.origin == name]
        own.sort(key=lambda f: f.provenance.index)
        np.testing.assert_array_equal([f.arrays()["u"] for f in own], U)
        assert {f.specs[0].unit for f in own} == ({""} if name == "matlab" else {"m/s"})
    families = {f.family for f in fossils if f is not None and f.provenance.origin == "bench"}
    assert families == {"bench/simulation-0", "bench/simulation-1"}


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_store_in_a_folder_is_one_origin_whose_chunks_count(
    foundry: FoundryPlaces, tmp_path: Path, version: int
) -> None:
    """A changed chunk is another origin, although no metadata changed."""
    pytest.importorskip("zarr", reason="extra [netcdf]")
    dataset = xarray.Dataset({"u": (("time", "y", "x"), U, {"units": "m/s"})})
    dataset["u"].encoding = {"chunks": (1, 4, 3)}
    store = tmp_path / "in" / "run" / "a.zarr"
    dataset.to_zarr(store, zarr_format=version, consolidated=False)
    chunks = store / "u" / ("c" if version == 3 else "")

    with open_vault(foundry) as vault:
        first = ingest(vault, tmp_path / "in")
        origins = {vault.read(cid).provenance.origin for cid in vault.cids()}  # type: ignore[union-attr]
        last = chunks / ("5/0/0" if version == 3 else "5.0.0")
        last.write_bytes((chunks / ("4/0/0" if version == 3 else "4.0.0")).read_bytes())
        changed = ingest(vault, tmp_path / "in")

    assert (first.reader, first.read, first.accepted, first.skipped) == ("zarr", 6, 6, [])
    assert origins == {"run/a.zarr"}
    assert changed.accepted == 6  # their provenance names other bytes
