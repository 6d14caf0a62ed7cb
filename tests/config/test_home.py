"""The home is found the same way from every folder."""

from pathlib import Path

import pytest

from scf.config import home as home_module
from scf.config.home import find_home, record_home
from scf.core.errors import OperatorError


def test_given_beats_environment_beats_record(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    record_home(recorded)

    assert find_home(None, {}) == recorded
    assert find_home(None, {"SCF_HOME": str(tmp_path / "env")}) == tmp_path / "env"
    assert find_home(tmp_path / "given", {"SCF_HOME": "/env"}) == tmp_path / "given"


def test_a_source_checkout_has_its_own_home_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkout = home_module.source_checkout()

    assert checkout is not None
    assert find_home(None, {}) == checkout / "data" / "scf"


def test_a_record_of_a_vanished_home_is_passed_over(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    record_home(gone)
    gone.rmdir()

    assert find_home(None, {}) != gone


def test_outside_a_checkout_and_without_a_record_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(home_module, "source_checkout", lambda: None)

    with pytest.raises(OperatorError) as caught:
        find_home(None, {})
    assert "scf init" in (caught.value.remedy or "")
