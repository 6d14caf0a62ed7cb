"""`scf init`: once or twice, the same foundry."""

from pathlib import Path

import pytest

from scf.core.errors import OperatorError, UsageError
from scf.daemon.setup import initialise
from scf.storage.partitions import Drive


def test_twice_is_once(tmp_path: Path) -> None:
    first = initialise(tmp_path / "home", tmp_path / "root")
    again = initialise(tmp_path / "home", tmp_path / "root")

    assert (first.is_new, again.is_new) == (True, False)
    assert (first.drive_uuid, first.key_ids) == (again.drive_uuid, again.key_ids)


def test_a_home_on_the_drive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies on the drive"):
        initialise(tmp_path / "root" / "home", tmp_path / "root")


def test_a_home_serves_one_drive(tmp_path: Path) -> None:
    initialise(tmp_path / "home", tmp_path / "root")
    Drive.scaffold(tmp_path / "other")

    with pytest.raises(OperatorError, match="belongs to drive"):
        initialise(tmp_path / "home", tmp_path / "other")


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    initialise(tmp_path / "home", tmp_path / "root")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
