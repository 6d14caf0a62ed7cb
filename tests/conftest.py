"""Fixtures that every room may use. No test touches the real home or the user's config folder."""

import subprocess
from pathlib import Path

import platformdirs
import pytest

from scf.daemon.setup import FoundryPlaces, initialise


@pytest.fixture(scope="session", autouse=True)
def _the_users_own_record(tmp_path_factory):
    """Which home the user's `scf` finds is the same after the tests as before.

    For the session, so that fixtures of a module, which are made before those of a test, keep to it.
    """
    record = Path(platformdirs.user_config_dir("scf")) / "home"
    before = record.read_bytes() if record.is_file() else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield
    assert (record.read_bytes() if record.is_file() else None) == before, (
        f"a test wrote {record}: the user's scf would now look for its home elsewhere"
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
