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

    The first generation is always among them: what a model that is never trained again would be
    worth. The present champion is left out: a candidate is held against it anyway.
    """
    found: dict[str, int] = {}
    if history and history[0].generation != history[-1].generation:
        age = now - parse_utc(history[0].at)
        found[history[0].generation] = max(0, age.days // 7)
    for num in weeks:
        then = now - timedelta(weeks=num)
        stood = [move.generation for move in history if parse_utc(move.at) <= then]
        if stood and stood[-1] != history[-1].generation:
            found[stood[-1]] = max(num, found.get(stood[-1], 0))
    return found
