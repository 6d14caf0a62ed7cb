"""MATLAB files: to 7.2 as scipy writes them, 7.3 by the layout that MATLAB gives HDF5."""

from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.mat import MatReader, VariableUnknown
from scf.fertilization.readers.registry import READERS, reader_for
from support.readings import read

io = pytest.importorskip("scipy.io", reason="extra [hdf5]")
h5py = pytest.importorskip("h5py", reason="extra [hdf5]")

U = np.arange(24.0).reshape(4, 3, 2)


def write_73(path: Path, arrays: dict[str, np.ndarray], **options) -> Path:
    """MATLAB's 7.3: a user block of 512 bytes, arrays transposed, classes as attributes."""
    kinds = {"f8": "double", "f4": "single", "b1": "logical", "i4": "int32"}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                codes = np.array([[ord(c)] for c in array.item()], np.uint16)
                item, kind = file.create_dataset(name, data=codes), "char"
            else:
                kind = kinds[array.dtype.str[1:]]
                stored = np.atleast_2d(array).T.astype(
                    np.uint8 if kind == "logical" else array.dtype
                )
                item = file.create_dataset(
                    name, data=stored, **(options if stored.size > 8 else {})
                )
            item.attrs["MATLAB_class"] = np.bytes_(kind)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def write(path: Path, arrays: dict[str, np.ndarray], version: str) -> Path:
    if version == "7.3":
        return write_73(path, arrays)
    io.savemat(path, arrays, format=version[0], do_compression=version == "5z")
    return path


ARRAYS = {
    "u": U,
    "n": np.array([[5], [6], [7], [8]], np.int32),
    "ok": np.array([[True, False, True, False]]),
    "x": np.array([[0.0, 0.5, 1.0]]),
    "nu": np.array([[0.25]]),
    "title": np.array("toy"),
}


@pytest.mark.parametrize("version", ["5", "5z", "7.3"])
def test_the_first_index_counts_records(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.mat", ARRAYS, version)

    records = read(path)

    assert reader_for(path) is READERS["mat"]
    assert [r.index for r in records] == [0, 1, 2, 3]
    np.testing.assert_array_equal([r.arrays["u"] for r in records], U)
    assert [r.arrays["n"].item() for r in records] == [5, 6, 7, 8]
    assert records[0].arrays["n"].dtype == np.int32
    assert [r.arrays["ok"].item() for r in records] == [True, False, True, False]
    assert records[0].arrays["ok"].dtype == bool
    assert records[0].params == {"nu": 0.25, "title": "toy", "grid_x": [0.0, 1.0, 3]}


def test_version_4_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", {"u": np.arange(6.0).reshape(3, 2)}, "4")

    assert [r.arrays["u"].tolist() for r in read(path)] == [[0, 1], [2, 3], [4, 5]]


def test_chunks_of_a_73_file_are_read_along_the_records(tmp_path: Path) -> None:
    path = write_73(tmp_path / "a.mat", {"u": U}, chunks=(2, 3, 2), compression="gzip")

    np.testing.assert_array_equal([r.arrays["u"] for r in read(path)], U)


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_the_file_is_described_before_it_is_read(tmp_path: Path, version: str) -> None:
    told = describe(MatReader(), write(tmp_path / "a.mat", ARRAYS, version))

    assert told is not None
    assert told.num_records == 4
    assert {f.name: (f.dtype, f.shape) for f in told.fields} == {
        "u": ("float64", (3, 2)),
        "n": ("int32", ()),
        "ok": ("bool", ()),
    }


@pytest.mark.parametrize(
    "value", [np.array([[{}, []]], dtype=object), {"a": 1.0}, np.array([1 + 2j, 3]), "sparse"]
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path, value) -> None:
    if isinstance(value, str):
        value = pytest.importorskip("scipy.sparse").csc_matrix(np.eye(4))
    io.savemat(tmp_path / "a.mat", {"u": U, "o": value})

    with pytest.raises(InputError):
        read(tmp_path / "a.mat")
    assert len(read(tmp_path / "a.mat", MatReader(fields=("u",)))) == 4


def test_what_would_have_to_be_held_whole_has_a_limit(tmp_path: Path) -> None:
    io.savemat(tmp_path / "a.mat", {"u": U})

    with pytest.raises(VariableUnknown, match="192 bytes") as caught:
        read(tmp_path / "a.mat", MatReader(whole_max_bytes=100))
    assert "-v7.3" in str(caught.value.remedy)


@pytest.mark.parametrize("version", ["5", "5z", "7.3"])
def test_a_truncated_file_is_an_error(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.mat", {"u": np.random.default_rng(0).random((40, 30))}, version)
    data = path.read_bytes()
    for kept in (130, 700, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:kept])

        with pytest.raises(InputError):
            read(path, MatReader())


def test_any_flipped_byte_is_an_answer_never_a_crash(tmp_path: Path) -> None:
    io.savemat(tmp_path / "a.mat", ARRAYS, do_compression=True)
    data = (tmp_path / "a.mat").read_bytes()
    for at in np.random.default_rng(0).integers(128, len(data), 100):
        (tmp_path / "a.mat").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            read(tmp_path / "a.mat", MatReader())
        except InputError:
            continue
