"""Who stood some weeks ago."""

from datetime import UTC, datetime

from scf.zoo.earlier import stood_weeks_ago
from scf.zoo.registry import Move

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def moves(*steps: tuple[str, str]) -> list[Move]:
    return [Move(f"{day}T00:00:00Z", "promoted", name, None, "run", "") for day, name in steps]


def test_each_is_named_once_under_the_longest_time() -> None:
    """gen1 stood 16, 12 and 4 weeks ago, gen2 last week, gen3 stands."""
    history = moves(("2026-08-01", "gen1"), ("2026-11-01", "gen2"), ("2026-11-20", "gen3"))
    assert stood_weeks_ago(history, NOW) == {"gen2": 1, "gen1": 16}


def test_the_champion_itself_is_no_earlier_one() -> None:
    """After a rollback, the champion is one that stood before."""
    history = moves(("2026-11-01", "gen1"), ("2026-11-10", "gen2"), ("2026-11-21", "gen1"))
    assert stood_weeks_ago(history, NOW) == {"gen2": 1}


def test_the_first_generation_is_always_there() -> None:
    """What a model would be worth that was never trained again."""
    history = moves(("2026-11-19", "gen1"), ("2026-11-20", "gen2"), ("2026-11-21", "gen3"))
    assert stood_weeks_ago(history, NOW) == {"gen1": 0}


def test_nobody_stood_before_the_first_promotion() -> None:
    assert stood_weeks_ago(moves(("2026-11-22", "gen1")), NOW) == {}
    assert stood_weeks_ago([], NOW) == {}
