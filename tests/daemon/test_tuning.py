"""Settings are proposed from past attempts: within bounds, the same for the same past, and better."""

import math
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from scf.config import TuneSettings
from scf.core.errors import MissingTool
from scf.daemon.tuning import PastAttempt, propose

BASE = {"preset": "tiny", "max_seconds": 5.0, "batch_size": 128}
TUNE = TuneSettings(enabled=True, learning_rate_min=1e-5, learning_rate_max=1.0)


def loss(config: Mapping[str, Any]) -> float:
    """A toy foundry: best at a learning rate of 1e-3, whatever else."""
    return 0.4 + 0.05 * math.log10(config["learning_rate"] / 1e-3) ** 2


def history(length: int, situation: str) -> list[PastAttempt]:
    past: list[PastAttempt] = []
    for number in range(length):
        config = propose(past, BASE, TUNE, [situation, number])
        past.append(PastAttempt(config, loss(config)))
    return past


def test_off_by_default_nothing_is_proposed() -> None:
    assert propose([], BASE, TuneSettings(), "s") == BASE


def test_the_same_past_and_situation_give_the_same_settings() -> None:
    past = history(6, "a")

    assert propose(past, BASE, TUNE, "s") == propose(past, BASE, TUNE, "s")
    assert propose(past, BASE, TUNE, "s") != propose(past, BASE, TUNE, "t")
    assert history(6, "a") == past


def test_proposals_stay_within_the_bounds_and_leave_the_rest_alone() -> None:
    for attempt in history(8, "b"):
        config = attempt.config
        assert TUNE.learning_rate_min <= config["learning_rate"] <= TUNE.learning_rate_max
        assert TUNE.weight_decay_min <= config["weight_decay"] <= TUNE.weight_decay_max
        assert config["batch_size"] in {64, 128, 256}
        assert (config["preset"], config["max_seconds"]) == ("tiny", 5.0)


def test_it_learns_on_a_toy_history() -> None:
    """Proposals after 24 attempts lose far less, at the median of five histories, than the first."""
    early, late = [], []
    for seed in range(5):
        past = history(24, f"h{seed}")
        early.append(statistics.median(a.value for a in past[:4]))
        late.append(statistics.median(a.value for a in past[-6:]))

    assert statistics.median(late) < 0.4 + (statistics.median(early) - 0.4) / 2


def test_attempts_outside_the_bounds_or_with_another_network_say_nothing() -> None:
    past = history(5, "c")
    other = [PastAttempt({**past[0].config, "learning_rate": 7.0}, 0.0),
             PastAttempt({**past[0].config, "preset": "base"}, 0.0),
             PastAttempt({"preset": "tiny"}, 0.0),
             PastAttempt(past[0].config, math.nan)]  # fmt: skip

    assert propose([*past, *other], BASE, TUNE, "s") == propose(past, BASE, TUNE, "s")


def test_equal_bounds_leave_a_setting_alone() -> None:
    fixed = TuneSettings(enabled=True, weight_decay_min=0.5, weight_decay_max=0.5,
                         batch_size_min=128, batch_size_max=128)  # fmt: skip
    assert set(propose([], BASE, fixed, "s")) == {*BASE, "learning_rate"}


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingTool, match="needs Optuna") as missing:
        propose([], BASE, TUNE, "s")
    assert missing.value.remedy == "pip install 'scf[tune]'"
