"""An archive has the same bytes each time, in parts of the asked size, and nothing passes with one missing."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from scf.dispatch.outlets.archive import ArchiveDamaged, pack, parts_of, unpacking
from support.foundries import tree_bytes
from support.shipments import NAME, small_release


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return small_release(tmp_path / "from", big_bytes=300_000)


def test_packing_twice_gives_the_same_bytes_in_the_same_parts(
    release: Path, tmp_path: Path
) -> None:
    """Also on another day, from another copy with other times and permissions."""
    copy = tmp_path / "copy" / NAME
    shutil.copytree(release, copy)
    (copy / "NOTES.md").chmod(0o600)
    for number, source in enumerate((release, copy)):
        (tmp_path / f"out-{number}").mkdir()
        pack(source, tmp_path / f"out-{number}", part_bytes=1000)
    first, second = (tree_bytes(tmp_path / f"out-{number}") for number in (0, 1))
    assert first == second
    assert list(first)[:2] == [f"{NAME}.tar.gz.001", f"{NAME}.tar.gz.002"]
    assert {len(data) for data in list(first.values())[:-1]} == {1000}


def test_parts_joined_by_cat_are_the_archive(release: Path, tmp_path: Path) -> None:
    for name, size in (("whole", 10**9), ("parts", 1000)):
        (tmp_path / name).mkdir()
        pack(release, tmp_path / name, part_bytes=size)
    (whole,) = tree_bytes(tmp_path / "whole").values()
    parts = tree_bytes(tmp_path / "parts")
    assert b"".join(parts.values()) == whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert len(tar.getnames()) == len(tree_bytes(release))


def test_parts_unpack_to_the_release(release: Path, tmp_path: Path) -> None:
    pack(release, tmp_path, part_bytes=777)
    with unpacking(tmp_path / f"{NAME}.tar.gz") as tar:
        tar.extractall(tmp_path / "to", filter="data")
    assert tree_bytes(tmp_path / "to" / NAME) == tree_bytes(release)


def test_packing_over_an_older_try_leaves_none_of_its_parts(release: Path, tmp_path: Path) -> None:
    pack(release, tmp_path, part_bytes=500)
    assert [path.name for path in pack(release, tmp_path)] == [f"{NAME}.tar.gz"]
    assert parts_of(tmp_path / f"{NAME}.tar.gz") == [tmp_path / f"{NAME}.tar.gz"]
    assert not list(tmp_path.glob("*.0*"))


@pytest.mark.parametrize("harm", ["first", "middle", "cut", "all"])
def test_a_part_that_is_missing_or_cut_is_said(release: Path, tmp_path: Path, harm: str) -> None:
    paths = pack(release, tmp_path, part_bytes=500)
    if harm == "cut":
        paths[-1].write_bytes(paths[-1].read_bytes()[:-20])
    else:
        for path in {"first": paths[:1], "middle": paths[1:2], "all": paths}[harm]:
            path.unlink()
    with pytest.raises(ArchiveDamaged, match=NAME), unpacking(tmp_path / f"{NAME}.tar.gz") as tar:
        tar.extractall(tmp_path / "to", filter="data")
