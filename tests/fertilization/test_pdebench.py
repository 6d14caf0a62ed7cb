"""PDEBench: files by the layouts that its own programs write."""

from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.pdebench import PdeBenchReader
from scf.fertilization.readers.registry import READERS, reader_for
from scf.vault.quarantine import Rejection
from support.readings import read

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")

RNG = np.random.default_rng(0)
N, T, X, Y = 3, 4, 8, 5


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def write(path: Path, arrays: dict[str, np.ndarray], **attrs: float) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attrs)
    return path


def test_a_tensor_has_a_fossil_a_step_and_a_family_a_simulation(tmp_path: Path) -> None:
    """Advection, Burgers: `t-coordinate` has one value more than there are steps."""
    tensor = numbers(N, T, X)
    path = write(
        tmp_path / "1D_Advection.hdf5",
        {
            "tensor": tensor,
            "x-coordinate": np.linspace(0, 1, X),
            "t-coordinate": np.arange(T + 1.0) / 10,
        },
        beta=0.4,
    )

    records = read(path)

    assert reader_for(path) is READERS["pdebench"]
    assert [r.index for r in records] == list(range(N * T))
    np.testing.assert_array_equal([r.arrays["tensor"] for r in records], tensor.reshape(-1, X))
    last = records[-1]
    assert last.family == "1D_Advection.hdf5/simulation-2"
    assert last.source == "PDEBench tensor"
    assert last.params == {
        "beta": 0.4,
        "grid_x": [0.0, 1.0, X],
        "simulation": 2,
        "step": 3,
        "time": 0.3,
    }


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_compressible_flow_has_a_field_a_variable(tmp_path: Path, dims: int) -> None:
    shape = (6, 5, 4)[:dims]
    names = ["density", "pressure", "Vx", "Vy", "Vz"][: 2 + dims]
    arrays = {name: numbers(N, T, *shape) for name in names}
    grids = {
        f"{axis}-coordinate": np.arange(float(n)) for axis, n in zip("xyz", shape, strict=False)
    }
    path = write(tmp_path / "cfd.hdf5", arrays | grids, eta=0.01, zeta=0.01)

    records = read(path, PdeBenchReader(window_steps=2))

    assert len(records) == N * T // 2
    for name in names:
        np.testing.assert_array_equal(records[3].arrays[name], arrays[name][1, 2:4])
    assert records[3].params["eta"] == 0.01
    assert records[3].params["grid_x"] == [0.0, 5.0, 6]


def test_the_coefficient_of_darcy_flow_is_given(tmp_path: Path) -> None:
    arrays = {"tensor": numbers(N, 1, X, Y), "nu": numbers(N, X, Y)}
    grids = {"x-coordinate": np.arange(float(X)), "y-coordinate": np.arange(float(Y))}
    path = write(tmp_path / "2D_DarcyFlow.hdf5", arrays | grids, beta=1.0)

    records = read(path)

    assert len(records) == N
    assert records[1].params["condition_fields"] == ["nu"]
    np.testing.assert_array_equal(records[1].arrays["tensor"], arrays["tensor"][1, 0])
    np.testing.assert_array_equal(records[1].arrays["nu"], arrays["nu"][1])


def test_a_group_a_simulation(tmp_path: Path) -> None:
    """Diffusion-reaction and shallow water: data [T, X, Y, C] with its grid beside it."""
    data = {f"{i:04d}": numbers(T + i, X, Y, 2) for i in range(N)}
    with h5py.File(tmp_path / "2D_diff-react.h5", "w") as file:
        for name, array in data.items():
            file.create_dataset(f"{name}/data", data=array, compression="lzf")
            for axis, length in (("x", X), ("y", Y), ("t", len(array))):
                file[f"{name}/grid/{axis}"] = np.arange(length, dtype=np.float32)
            file[name].attrs["config"] = "sim:\n  seed: 0\n"

    records = read(tmp_path / "2D_diff-react.h5")
    told = describe(PdeBenchReader(), tmp_path / "2D_diff-react.h5")

    assert len(records) == sum(len(array) for array in data.values())
    assert records[-1].family == "2D_diff-react.h5/simulation-0002"
    np.testing.assert_array_equal(records[-1].arrays["data"], data["0002"][-1])
    assert records[-1].params["time"] == T + 1
    assert told is not None
    assert (told.num_families, told.fields[0].shape) == (N, (X, Y, 2))


def test_the_force_of_incompressible_flow_is_given(tmp_path: Path) -> None:
    arrays = {
        "velocity": numbers(2, T, X, Y, 2),
        "particles": numbers(2, T, X, Y, 1),
        "force": numbers(2, X, Y, 2),
        "t": np.array([[0, 1, 2, 3], [0, 2, 4, 6]], np.float32),
    }
    path = write(tmp_path / "ns_incom.h5", arrays)

    records = read(path)

    np.testing.assert_array_equal(records[T + 2].arrays["velocity"], arrays["velocity"][1, 2])
    assert records[T + 2].params["time"] == 4.0
    assert records[T + 2].params["condition_fields"] == ["force"]


def test_only_the_wanted_fields_are_read(tmp_path: Path) -> None:
    arrays = {name: numbers(N, T, X) for name in ("density", "pressure", "Vx")}
    path = write(tmp_path / "a.hdf5", arrays | {"x-coordinate": np.arange(float(X))})

    assert set(read(path, PdeBenchReader(fields=("Vx",)))[0].arrays) == {"Vx"}


@pytest.mark.parametrize(
    "arrays",
    [
        {"density": (3, 4, 8), "pressure": (3, 4, 8), "Vx": (3, 5, 8)},
        {"tensor": (3, 4, 8), "t-coordinate": (3,)},
        {"tensor": (0, 4, 8)},
        {"tensor": (3, 8)},
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict) -> None:
    path = tmp_path / "a.hdf5"
    write(path, {n: numbers(*shape) for n, shape in arrays.items()} | {"x-coordinate": np.ones(8)})

    with pytest.raises(InputError):
        read(path)


def test_a_damaged_chunk_costs_its_own_records_only(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    tensor = numbers(2, 6, X)
    with h5py.File(path, "w") as file:
        item = file.create_dataset("tensor", data=tensor, chunks=(1, 2, X), fletcher32=True)
        file["x-coordinate"] = np.ones(X)
        info = item.id.get_chunk_info_by_coord((0, 2, 0))
    data = bytearray(path.read_bytes())
    data[info.byte_offset] ^= 1
    path.write_bytes(data)

    records = read(path)

    assert {r.index: r.kind for r in records if isinstance(r, Rejection)} == {
        2: "damaged",
        3: "damaged",
    }
    assert len(records) == 12
