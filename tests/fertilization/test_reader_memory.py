"""Memory does not grow with the file: 200 MB of records are read in a fraction of that."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scf.fertilization.readers.registry import reader_for
from support.readings import origin_of

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")
psutil = pytest.importorskip("psutil", reason="extra [dev]")

N, SIDE = 800, 256  # 800 records of 256 KiB
LIMIT_BYTES = 50 * 2**20


def block(count: int) -> np.ndarray:
    """Numbers that compress fast and are not all the same."""
    return np.resize(np.arange(SIDE * 16, dtype=np.float32), (count, SIDE, SIDE))


def hdf5(path: Path, **options) -> Path:
    with h5py.File(path, "w") as file:
        item = file.create_dataset("u", (N, SIDE, SIDE), np.float32, **options)
        for start in range(0, N, 50):
            item[start : start + 50] = block(50)
    return path


def well(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update(n_trajectories=4, dataset_name="toy", n_spatial_dims=2)
        file["dimensions/time"] = np.arange(N / 4)
        file["dimensions/x"] = file["dimensions/y"] = np.arange(float(SIDE))
        file["dimensions"].attrs["spatial_dims"] = ["x", "y"]
        group = file.create_group("t0_fields")
        group.attrs["field_names"] = ["u"]
        item = group.create_dataset("u", (4, N // 4, SIDE, SIDE), np.float32)
        item.attrs.update(sample_varying=True, time_varying=True, dim_varying=[True, True])
        for sample in range(4):
            for start in range(0, N // 4, 50):
                item[sample, start : start + 50] = block(50)
    return path


def chunked(path: Path) -> Path:
    """Chunks of 40 steps and a part of space, as HDF5 chooses them itself."""
    return hdf5(path, chunks=(40, 64, 64), compression="lzf")


def netcdf3(path: Path) -> Path:
    xarray = pytest.importorskip("xarray", reason="extra [netcdf]")
    dataset = xarray.Dataset({"u": (("time", "y", "x"), block(N))})
    dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
    return path


def netcdf4(path: Path) -> Path:
    xarray = pytest.importorskip("xarray", reason="extra [netcdf]")
    pytest.importorskip("h5netcdf", reason="extra [netcdf]")
    xarray.Dataset({"u": (("time", "y", "x"), block(N))}).to_netcdf(path, engine="h5netcdf")
    return path


def zarr(path: Path) -> Path:
    xarray = pytest.importorskip("xarray", reason="extra [netcdf]")
    pytest.importorskip("zarr", reason="extra [netcdf]")
    dataset = xarray.Dataset({"u": (("time", "y", "x"), block(N))})
    options = {"u": {"chunks": (8, SIDE, SIDE), "compressors": None}}
    dataset.to_zarr(path, zarr_format=3, consolidated=False, encoding=options)
    return path


def parquet(path: Path) -> Path:
    pa = pytest.importorskip("pyarrow", reason="extra [parquet]")
    pq = pytest.importorskip("pyarrow.parquet", reason="extra [parquet]")
    schema = pa.schema({"u": pa.list_(pa.float32(), SIDE * SIDE)})
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for _ in range(0, N, 50):
            rows = pa.FixedSizeListArray.from_arrays(pa.array(block(50).ravel()), SIDE * SIDE)
            writer.write_table(pa.table({"u": rows}, schema))
    return path


@pytest.mark.parametrize("write", [hdf5, chunked, well, netcdf3, netcdf4, zarr, parquet])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "a")
    reader = reader_for(path)
    assert reader is not None
    reader.describe(path)  # imports the libraries
    process = psutil.Process()
    tracemalloc.start()
    try:
        before_bytes = process.memory_info().rss
        resident, count = [], 0
        for record in reader.read(origin_of(path)):
            assert record.arrays["u"].shape[-1] in {SIDE, SIDE * SIDE}
            count += 1
            if count % 20 == 0:
                resident.append(process.memory_info().rss - before_bytes)
        traced_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert count == N
    assert traced_bytes < LIMIT_BYTES
    # What a library sets up once is there by the first reading; from then on little is added.
    assert max(resident) - resident[0] < LIMIT_BYTES
