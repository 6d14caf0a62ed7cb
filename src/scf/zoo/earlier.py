"""Which generations stood some weeks ago: those that a candidate is also held against."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from scf.core.clock import parse_utc
from scf.zoo.registry import Move

WEEKS_AGO = (1, 4, 12)


def stood_weeks_ago(
    history: Sequence[Move], now: datetime, weeks: Iterable[int] = WEEKS_AGO
) -> dict[str, int]:
    """Generation by name, with the weeks after which it is named; each once, under the longest.

    The present champion is left out: a candidate is held against it anyway. Before the first
    promotion nothing stood.
    """
    found: dict[str, int] = {}
    for num in weeks:
        then = now - timedelta(weeks=num)
        stood = [move.generation for move in history if parse_utc(move.at) <= then]
        if stood and stood[-1] != history[-1].generation:
            found[stood[-1]] = num
    return found
