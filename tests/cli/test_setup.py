"""`scf init`: what it makes is in daemon.setup; here is which home it leaves as the usual one."""

from pathlib import Path

import pytest

from scf.cli.main import run
from scf.config import find_home


class TestRemembering:
    """Which home a command without `--home` means."""

    def test_init_is_remembered_and_says_what_it_replaces(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("first", "second"):
            where = ["--home", str(tmp_path / name), "--root", str(tmp_path / f"{name} drive")]
            assert run(["init", *where]) == 0
        assert f"it meant {tmp_path / 'first'}" in capsys.readouterr().err
        assert find_home(None, {}) == tmp_path / "second"

    def test_under_scf_home_nothing_is_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = find_home(None, {})
        monkeypatch.setenv("SCF_HOME", str(tmp_path / "home"))
        assert run(["init", "--root", str(tmp_path / "drive")]) == 0
        assert find_home(None, {}) == before
