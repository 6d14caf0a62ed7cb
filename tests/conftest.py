"""Fixtures that every room may use. No test touches the real home or the user's config folder."""

import subprocess
from pathlib import Path

import platformdirs
import pytest

from scf.daemon.setup import FoundryPlaces, initialise


@pytest.fixture(scope="session", autouse=True)
def _the_users_own_record(tmp_path_factory):
    """The user's `scf` is not led to a home of the tests.

    For the session, so that fixtures of a module, which are made before those of a test, keep to it.
    """
    record = Path(platformdirs.user_config_dir("scf")) / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield
    home = record.read_text().strip() if record.is_file() else "/"
    assert not Path(home).is_relative_to(tmp_path_factory.getbasetemp().parent), (
        f"a test wrote {record}: the user's scf would now look for its home in {home}"
    )


@pytest.fixture(autouse=True)
def _apart_from_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """SCF_* and the user's config folder never leak into a test."""
    for name in ("SCF_HOME", "SCF_ROOT", "SCF_FAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def foundry(tmp_path: Path) -> FoundryPlaces:
    """A fresh home and root."""
    return initialise(tmp_path / "home", tmp_path / "root")


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 2 MB (tmpfs); skipped where mounting is not allowed."""
    path = tmp_path / "small-disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root on Linux")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=20)
