"""Does `scf ingest` take gigabytes, and a Well file, in less than 1 GB of memory?

The whole command, start of Python included, in a process of its own: a directory of HDF5, npz and
NDJSON files of 64x64 float32 records, then one file in the layout of The Well. The size is
`BENCH_INGEST_GB` (default 0.5, of which the directory has nine tenths); the issue's figure is of 5.
Twice the size is needed under the folder for temporary files, and is given back.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench_ingest import _write

FILE_RECORDS = 6000  # of 16 KiB: 98 MB a file
WELL_SHAPE = (8, 64, 128, 128)  # trajectories, steps, x, y; times 3 components below

TIMED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "report": json.loads(done.stdout), "wall_s": time.perf_counter() - began,
    "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / 1e6,
}))
"""


def run() -> dict[str, object]:
    """All figures; MB are 10^6 bytes of files."""
    size_gb = float(os.environ.get("BENCH_INGEST_GB", "0.5"))
    with tempfile.TemporaryDirectory(prefix="scf-bench-ingest-") as folder:
        return _run(Path(folder), size_gb)


def _run(work: Path, size_gb: float) -> dict[str, object]:
    places = ["--home", str(work / "home"), "--root", str(work / "root")]
    subprocess.run([sys.executable, "-m", "scf", "init", *places], check=True, capture_output=True)
    source = work / "in"
    for at in range(max(1, round(0.9 * size_gb * 1e9 / (FILE_RECORDS * 16384 * 1.12)))):
        _write(source, at, FILE_RECORDS)
    figures: dict[str, object] = _told("directory", source, places)
    well = work / "well.h5"
    _write_well(well, steps=max(8, round(0.1 * size_gb * 1e9 / 12 / 8 / 128**2)))
    return figures | _told("one Well file", well, places)


def _told(what: str, path: Path, places: list[str]) -> dict[str, object]:
    command = [sys.executable, "-m", "scf", "ingest", str(path), "--json", *places]
    done = subprocess.run(
        [sys.executable, "-c", TIMED, *command], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    files = [path] if path.is_file() else list(path.iterdir())
    size_mb = sum(file.stat().st_size for file in files) / 1e6
    report = found["report"]
    assert report["read"] == report["accepted"], report
    return {
        f"{what}, files": len(files),
        f"{what}, MB": round(size_mb),
        f"{what}, fossils": report["accepted"],
        f"{what}, peak memory of the command, MB": round(found["peak_mb"], 1),
        f"{what}, wall s": round(found["wall_s"], 1),
        f"{what}, CPU s": round(found["cpu_s"], 1),
        f"{what}, MB per CPU s": round(size_mb / found["cpu_s"], 1),
        f"{what}, MB per s": round(size_mb / found["wall_s"], 1),
    }


def _write_well(path: Path, *, steps: int) -> None:
    """A scalar and a vector field, as docs/data_format.md of The Well says."""
    import h5py

    num, _, nx, ny = WELL_SHAPE
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        file.attrs.update(
            dataset_name="a benchmark", grid_type="cartesian", n_spatial_dims=2, n_trajectories=num
        )
        file.attrs["simulation_parameters"] = ["nu"]
        file.attrs["nu"] = 1e-3
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        for name, count in (("time", steps), ("x", nx), ("y", ny)):
            dimensions[name] = np.linspace(0, 1, count, dtype=np.float32)
            dimensions[name].attrs.update(sample_varying=False, time_varying=name == "time")
        file.create_group("boundary_conditions")
        file.create_group("scalars").attrs["field_names"] = np.array([], "S1")
        for order, name, tail in ((0, "density", ()), (1, "velocity", (2,)), (2, None, ())):
            group = file.create_group(f"t{order}_fields")
            group.attrs["field_names"] = [name] if name else np.array([], "S1")
            if name:
                data = group.create_dataset(name, (num, steps, nx, ny, *tail), np.float32)
                data.attrs.update(sample_varying=True, time_varying=True, dim_varying=[True, True])
                for trajectory in range(num):
                    data[trajectory] = rng.standard_normal((steps, nx, ny, *tail), np.float32)
