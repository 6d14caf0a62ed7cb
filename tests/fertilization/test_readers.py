"""CSV, npz and pickle readers: records as the file's own library wrote them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError, UsageError
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.readers.base import Draft, Origin
from scf.fertilization.readers.registry import READERS, reader_for, reader_named
from scf.vault.quarantine import Rejection
from support.vaults import ingest, open_vault


def read(path: Path) -> list:
    reader = reader_for(path)
    assert reader is not None
    return list(reader.read(Origin(path, path.name, "0" * 64, 2**20)))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_row_is_a_record_and_brackets_hold_units(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "# from a lab\ntime,family,p [hPa],T (K)\n"
        "2020-01-01T00:00:00Z,run 1,1000.5,280\n2020-01-01T01:00:00Z,run 2,1e3,281\n",
    )

    first, second = read(path)

    assert (first.index, first.line, first.family) == (0, 3, "run 1")
    assert first.observed_at == "2020-01-01T00:00:00Z"
    assert first.units == {"p": "hPa", "T": "K"}
    assert first.arrays["p"] == 1000.5
    assert second.arrays["p"] == 1000.0
    assert second.arrays["p"].shape == ()


@pytest.mark.parametrize("heading", ["time [s]", "time", "Timestamp (ms)"])
def test_a_time_that_is_a_number_is_a_column_of_numbers(tmp_path: Path, heading: str) -> None:
    """As simulations write it; only RFC 3339 is the time of an observation."""
    path = write(tmp_path / "a.csv", f"{heading},x [m]\n0.0,1\n0.5,2\nsoon,3\n")

    assert reader_for(path) is not None
    first, second, third = read(path)

    name = heading.split(maxsplit=1)[0]
    assert (dict(first.arrays), first.observed_at) == ({name: 0.0, "x": 1.0}, None)
    assert second.arrays[name] == 0.5
    assert isinstance(third, Rejection)


@pytest.mark.parametrize(("separator", "suffix"), [(";", ".csv"), ("\t", ".tsv")])
def test_other_separators_are_found(tmp_path: Path, separator: str, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", separator.join("ab") + "\n" + separator.join("12") + "\n")

    assert [dict(d.arrays) for d in read(path)] == [{"a": 1.0, "b": 2.0}]


def test_a_row_that_does_not_fit_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2\n1,\n1,2,3\n1,x\n1_0,2\n3,4\n")

    records = read(path)

    assert [type(r) for r in records] == [Draft, Rejection, Rejection, Rejection, Rejection, Draft]
    assert (records[1].line, records[1].offset, records[1].index) == (3, 8, 1)
    assert "cells" in records[2].reason
    assert records[5].index == 5


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n", "1,2\n3,4\n", "a,a\n1,2\n", "name,b\nx,1\n", "a,,c\n1,2,3\n", "time\n2020\n"],
)
def test_what_is_no_table_of_numbers_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    assert reader_for(write(tmp_path / "a.csv", text)) is None


def test_an_archive_has_one_record_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        x=np.arange(6.0).reshape(3, 2),
        n=np.arange(3, dtype=np.int16),
        f=np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        family=np.array(["u", "u", "v"]),
        dt=np.array(0.5),
        **{"x.unit": np.array("m/s")},
    )

    records = read(path)

    assert [r.index for r in records] == [0, 1, 2]
    np.testing.assert_array_equal(records[1].arrays["x"], [2.0, 3.0])
    np.testing.assert_array_equal(records[1].arrays["f"], [4, 5, 6, 7])
    assert records[2].arrays["n"] == 2
    assert records[2].arrays["n"].dtype == np.int16
    assert [r.family for r in records] == ["u", "u", "v"]
    assert records[0].units == {"x": "m/s"}
    assert records[0].params == {"dt": 0.5}


def test_a_compressed_archive_reads_the_same(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(4.0))

    assert [float(r.arrays["x"]) for r in read(tmp_path / "a.npz")] == [0.0, 1.0, 2.0, 3.0]


def test_arrays_of_other_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(4))

    with pytest.raises(InputError, match="x has 3, y has 4"):
        read(tmp_path / "a.npz")


def test_pickled_objects_in_an_archive_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}, []], dtype=object))

    with pytest.raises(InputError, match="never loaded"):
        read(tmp_path / "a.npz")


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])

    with pytest.raises(InputError):
        read(tmp_path / "a.npz")


def test_a_pickle_holds_columns_or_records_or_one_array(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for value in (
        {"values": np.array([[1.0], [2.0]])},
        [{"values": np.array([1.0])}, {"values": [2.0]}],
        np.array([[1.0], [2.0]]),
    ):
        path.write_bytes(pickle.dumps(value))
        assert [r.arrays["values"].tolist() for r in read(path)] == [[1.0], [2.0]]


def test_readers_are_found_by_content_and_by_name(tmp_path: Path) -> None:
    assert reader_for(write(tmp_path / "fossils", '{"cid": 1}\n')) is READERS["ndjson"]
    assert reader_for(write(tmp_path / "x.txt", "hello")) is None
    with pytest.raises(UsageError, match="hdf5"):
        reader_named("hdf5")


def test_every_reader_makes_fossils(foundry: FoundryPlaces, tmp_path: Path) -> None:
    """From the file to the vault and back: values, type, unit and provenance are those of the file."""
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.csv", "p [Pa]\n1\n2\n")
    np.savez(folder / "b.npz", x=np.arange(6, dtype=np.float32).reshape(3, 2))
    (folder / "c.pkl").write_bytes(pickle.dumps({"q": np.arange(4)}))
    with open_vault(foundry) as vault:
        report = ingest(vault, folder)
        fossils = [vault.read(cid) for cid in vault.cids()]

    assert (report.read, report.accepted, report.reader) == (9, 9, "csv,npz,pkl")
    of_npz = [f for f in fossils if f is not None and f.provenance.origin == "b.npz"]
    assert sorted(f.arrays()["x"].tolist() for f in of_npz) == [[0, 1], [2, 3], [4, 5]]
    assert {f.specs[0].dtype for f in of_npz} == {"float32"}
    assert {f.verifier["name"] for f in of_npz} == {"scf.fossil_validator"}
