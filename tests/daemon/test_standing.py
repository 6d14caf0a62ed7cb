"""What `scf status` says."""

from pathlib import Path

from scf.config import FoundryConfig, load_config
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import SystemClock
from scf.daemon.setup import FoundryPlaces
from scf.daemon.standing import standing, standing_text


def _config(home: Path) -> FoundryConfig:
    return load_config(home, environment={})


def test_a_missing_home_is_said_in_plain_words_and_counts_as_locked(tmp_path: Path) -> None:
    found = standing(_config(tmp_path / "nowhere"))
    assert found["emergency_lock"] is True
    text = standing_text(found)
    assert "no foundry" in text
    assert "scf init" in text
    assert not (tmp_path / "nowhere").exists()


def test_a_set_lock_names_its_file(foundry: FoundryPlaces) -> None:
    assert "lock        clear" in standing_text(standing(_config(foundry.home)))
    EmergencyLock(foundry.home).set("smoke", now=SystemClock().now())
    text = standing_text(standing(_config(foundry.home)))
    assert "EMERGENCY_LOCK is set" in text
    assert "EMERGENCY_LOCKED" in text
