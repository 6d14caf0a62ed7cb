"""How often the sealed pool was looked at: counted from the audit log, handed to the gate.

Every candidate that is judged against a champion is one look at the held-out families; with enough
looks one of them passes by luck. So a month has a budget of them, and fresh fossils, a part of
which is held out, feed the pool meanwhile.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from scf.audit.entry import Entry
from scf.core.clock import parse_utc
from scf.verification.gate import Looks

# With alpha = 0.05, this many candidates that are no better bring one false promotion a month.
BUDGET = 20
DAYS = 28

_JUDGED = frozenset({"run.VERIFIED", "run.REJECTED"})


def looks_used(
    entries: Iterable[Entry],
    now: datetime,
    *,
    budget: int = BUDGET,
    days: int = DAYS,
    besides: str = "",
) -> Looks:
    """The looks of the last `days` days: judgements in which the sequential test was made.

    `besides` is the run that is being judged: what it has used already, measured again after the
    champion changed, say, does not stand against itself.
    """
    since = now - timedelta(days=days)
    used = sum(
        1
        for entry in entries
        if is_look(entry) and entry.subject != besides and since <= parse_utc(entry.at) <= now
    )
    return Looks(used, budget, days)


def is_look(entry: Entry) -> bool:
    """Whether this entry of the conductor records a judgement on the sealed pool."""
    if entry.event not in _JUDGED:
        return False
    value: object = entry.details
    for key in ("details", "gate", "trace", "superiority"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is not None
