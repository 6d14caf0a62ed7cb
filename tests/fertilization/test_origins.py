"""What there is to ingest under a path, and what its digest covers."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from scf.core.errors import UsageError
from scf.fertilization.origins import digest_of, find_origins, tree_sha256
from scf.fertilization.readers.registry import READERS


def store(folder: Path, *, version: int = 3) -> Path:
    """The files of a Zarr store, as far as recognising it goes."""
    array = folder / "tas"
    (array / "c").mkdir(parents=True)
    if version == 3:
        (folder / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
        (array / "zarr.json").write_text('{"zarr_format":3,"node_type":"array"}')
    else:
        (folder / ".zgroup").write_text('{"zarr_format":2}')
        (array / ".zarray").write_text('{"zarr_format":2}')
    (array / "c" / "0").write_bytes(b"numbers")
    return folder


def names(path: Path) -> list[tuple[str, str | None]]:
    found = find_origins(path, READERS, None, {})
    return [(item.name, item.reader and item.reader.name) for item in found]


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_in_a_folder_is_one_origin(tmp_path: Path, version: int) -> None:
    """No other reader sees its metadata, compact JSON though they are."""
    store(tmp_path / "in" / "b.zarr", version=version)
    (tmp_path / "in" / "a.csv").write_text("x [m]\n1\n")

    assert names(tmp_path / "in") == [("a.csv", "csv"), ("b.zarr", "zarr")]
    assert names(tmp_path / "in" / "b.zarr") == [("b.zarr", "zarr")]


def test_the_metadata_file_of_a_store_stands_for_the_store(tmp_path: Path) -> None:
    store(tmp_path / "b.zarr")

    assert names(tmp_path / "b.zarr" / "zarr.json") == [("b.zarr", "zarr")]


def test_a_folder_with_somebody_elses_zarr_json_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"colour": "blue"}')
    (tmp_path / "a.csv").write_text("x [m]\n1\n")

    assert names(tmp_path) == [("a.csv", "csv"), ("zarr.json", None)]


def test_the_digest_of_a_store_covers_every_file_and_its_name(tmp_path: Path) -> None:
    folder = store(tmp_path / "b.zarr", version=2)
    first = tree_sha256(folder)
    (folder / ".DS_Store").write_bytes(b"litter")
    assert tree_sha256(folder) == first == digest_of(folder)

    (folder / "tas" / "c" / "0").write_bytes(b"numberS")
    assert tree_sha256(folder) != first
    (folder / "tas" / "c" / "0").write_bytes(b"numbers")
    (folder / "tas" / "c" / "0").rename(folder / "tas" / "c" / "1")
    assert tree_sha256(folder) != first


def test_a_stranger_finds_the_same_digest_with_coreutils(tmp_path: Path) -> None:
    folder = store(tmp_path / "b.zarr", version=2)
    script = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no GNU find here")

    assert done.stdout.split()[0] == tree_sha256(folder)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    told: list[int] = []
    (tmp_path / "a").write_bytes(bytes(150 * 2**20))

    assert digest_of(tmp_path / "a", told.append) == hashlib.sha256(bytes(150 * 2**20)).hexdigest()
    assert told == [64 * 2**20, 128 * 2**20]


def test_an_option_that_a_reader_does_not_know_is_an_error_before_anything_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text("x [m]\n1\n")

    with pytest.raises(UsageError, match="'csv' does not know --window"):
        find_origins(tmp_path, READERS, None, {"window_steps": 2})
