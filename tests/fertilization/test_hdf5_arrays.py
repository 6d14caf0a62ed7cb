"""HDF5 without a known layout, and the readers' choice among HDF5 files."""

from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError, MissingTool
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.readers import tools
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.hdf5 import Hdf5ArraysReader
from scf.fertilization.readers.registry import READERS, reader_for
from support.readings import read
from support.vaults import ingest, open_vault

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")


def test_datasets_that_share_their_leading_axis_are_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    u = np.arange(24, dtype=">f4").reshape(4, 3, 2)
    with h5py.File(path, "w") as file:
        file["u"] = u
        file["u"].attrs["units"] = "m/s"
        file["run/p"] = np.arange(4)
        file["x"] = np.array([0.0, 0.5, 1.0])
        file["dt"] = 0.25
        file["remark"] = ["not", "read"]
        file.attrs["title"] = "toy"

    records = read(path)
    told = describe(Hdf5ArraysReader(), path)

    assert reader_for(path) is READERS["hdf5-arrays"]
    assert [r.index for r in records] == [0, 1, 2, 3]
    np.testing.assert_array_equal(records[3].arrays["u"], u[3])
    assert records[2].arrays["run/p"] == 2
    assert records[0].units == {"u": "m/s"}
    assert records[0].params == {"title": "toy", "dt": 0.25, "grid_x": [0.0, 1.0, 3]}
    assert records[0].family is None
    assert told is not None
    assert told.num_records == 4
    assert told.notes == ("remark: text, left out",)


@pytest.mark.parametrize("labels", [["a", "a", "b"], np.array([b"a", b"a", b"b"])])
def test_a_dataset_named_family_states_families(tmp_path: Path, labels) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = np.zeros((3, 2))
        file["family"] = labels

    assert [r.family for r in read(tmp_path / "a.h5")] == ["a", "a", "b"]


def test_a_table_has_a_field_a_column(tmp_path: Path) -> None:
    table = np.zeros(3, dtype=[("p", "f8"), ("v", "f4", (2,)), ("name", "S8")])
    table["p"], table["v"] = [1, 2, 3], [[1, 2], [3, 4], [5, 6]]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = table

    records = read(tmp_path / "a.h5")

    assert records[1].arrays["events/p"] == 2.0
    np.testing.assert_array_equal(records[2].arrays["events/v"], [5, 6])


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = np.zeros((4, 3))
        file["v"] = np.zeros((5, 3))

    with pytest.raises(InputError, match=r"v has \[5, 3\], u has \[4, 3\]"):
        read(tmp_path / "a.h5")
    assert len(read(tmp_path / "a.h5", Hdf5ArraysReader(fields=("u",)))) == 4


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    """Variable-length bytes, which is how pandas puts pickles into HDF5, and complex numbers."""
    for value in (np.array([1j, 2j]), None):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["u"] = np.zeros((2, 3))
            if value is None:
                ragged = file.create_dataset("o", (2,), dtype=h5py.vlen_dtype(np.uint8))
                ragged[0] = np.frombuffer(b"\x80\x04N.", np.uint8)
            else:
                file["o"] = value

        with pytest.raises(InputError, match="never loaded"):
            read(tmp_path / "a.h5")
        assert len(read(tmp_path / "a.h5", Hdf5ArraysReader(fields=("u",)))) == 2


def test_bytes_without_a_unit_are_not_taken_for_records(tmp_path: Path) -> None:
    """Such as pvlib's maps of the world, which lie beside its weather files."""
    path = tmp_path / "map.h5"
    with h5py.File(path, "w") as file:
        file["altitude"] = np.zeros((4, 8), np.uint8)
    assert reader_for(path) is None
    assert len(read(path, Hdf5ArraysReader())) == 4

    with h5py.File(path, "a") as file:
        file["altitude"].attrs["units"] = "28 m"
    assert reader_for(path) is READERS["hdf5-arrays"]


def test_numbers_that_lie_in_other_files_are_refused(tmp_path: Path) -> None:
    """External storage would make any file on this machine a fossil."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", (64,), "u1", external=[(str(secret), 0, 64)])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        layout = h5py.VirtualLayout((64,), "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "a.h5"), "u", (64,))
        file.create_virtual_dataset("u", layout)

    for name in ("a.h5", "b.h5"):
        with pytest.raises(InputError, match="other files"):
            read(tmp_path / name, Hdf5ArraysReader())


@pytest.mark.parametrize("kept", [9, 600, -1])
def test_a_truncated_file_is_one_unreadable_record(
    foundry: FoundryPlaces, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["u"] = np.zeros((4, 100))
    path.write_bytes(path.read_bytes()[:kept])

    with open_vault(foundry) as vault:
        report = ingest(vault, path)

    assert (report.read, report.quarantined, report.reader) == (1, 1, "hdf5-arrays")


def test_a_record_with_nan_is_quarantined_and_the_rest_accepted(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    u = np.arange(12.0).reshape(4, 3)
    u[2, 1] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = u

    with open_vault(foundry) as vault:
        report = ingest(vault, tmp_path / "a.h5")

    assert (report.read, report.accepted, report.quarantined) == (4, 3, 1)
    assert report.reasons == {"not-finite": 1}


def test_without_the_library_we_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = np.zeros(4)

    def absent(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(tools.importlib, "import_module", absent)

    with pytest.raises(MissingTool) as caught:
        read(tmp_path / "a.h5")
    assert caught.value.remedy == "Install the extra: `pip install 'scf[hdf5]'`."


def test_any_flipped_byte_is_an_answer_never_a_crash(tmp_path: Path) -> None:
    """Damage in the metadata gives InputError or other records, and nothing else."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("u", data=np.zeros((4, 3)), chunks=(2, 3), compression="gzip")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(8, len(data), 150):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            read(path, Hdf5ArraysReader())
        except InputError:
            continue
