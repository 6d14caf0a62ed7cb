"""How often the sealed pool was looked at: counted from the audit log, handed to the gate.

Every candidate that is judged against a champion is one look at the held-out families; with enough
looks one of them passes by luck. So a month has a budget of them, and fresh fossils, a part of
which is held out, feed the pool meanwhile.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from scf.audit.entry import Entry
from scf.audit.log import LoggedEntry
from scf.core.clock import parse_utc
from scf.verification.gate import Looks

# With alpha = 0.05, this many candidates that are no better bring one false promotion a month.
BUDGET = 20
DAYS = 28

_JUDGED = frozenset({"run.VERIFIED", "run.REJECTED"})


@dataclass(frozen=True)
class Look:
    """One judgement on the sealed pool: when, and of which run."""

    at: datetime
    run_id: str


class EntryLog(Protocol):
    """What is read here of the audit log."""

    def entries(self, start: int = 0) -> Iterator[LoggedEntry]:
        """Published entries from `start` on, in order."""


class SeenLooks:
    """The looks that a log records. It only grows, so what was read is not read again."""

    def __init__(self, log: EntryLog) -> None:
        self._log = log
        self._read = 0
        self._looks: list[Look] = []

    def all(self) -> Sequence[Look]:
        """Every look, in the order of the log."""
        for logged in self._log.entries(self._read):
            if is_look(logged.entry):
                self._looks.append(Look(parse_utc(logged.entry.at), logged.entry.subject))
            self._read = logged.index + 1
        return self._looks


def looks_used(
    looks: Iterable[Look],
    now: datetime,
    *,
    budget: int = BUDGET,
    days: int = DAYS,
    besides: str = "",
) -> Looks:
    """How many of `looks` fall within the last `days` days.

    `besides` is the run that is being judged: what it has used already, measured again after the
    champion changed, say, does not stand against itself.
    """
    others = (look for look in looks if look.run_id != besides)
    return Looks(len(_within(others, now, days)), budget, days)


def next_free(
    looks: Iterable[Look], now: datetime, *, budget: int, days: int, coming: int = 0
) -> datetime | None:
    """When a look is free: `now`, or when enough of those of the last `days` days are older.

    Args:
        looks: All that were made.
        now: The wall clock.
        budget: So many may be made within `days` days.
        days: Likewise.
        coming: Runs under way, each of which will need a look.

    Returns:
        None where the runs under way need every look that there is.
    """
    recent = _within(looks, now, days)
    too_many = len(recent) + coming - budget
    if too_many < 0:
        return now
    # A look counts until it is older than `days` days, not to the instant.
    after = timedelta(days=days, seconds=1)
    return recent[too_many] + after if too_many < len(recent) else None


def is_look(entry: Entry) -> bool:
    """Whether this entry of the conductor records a judgement on the sealed pool.

    One that found no look left could promote nothing, whatever it measured, and spends none: else
    runs that are refused for want of looks would keep the next ones from theirs for ever.
    """
    if entry.event not in _JUDGED:
        return False
    trace: object = entry.details
    for key in ("details", "gate", "trace"):
        trace = trace.get(key) if isinstance(trace, Mapping) else None
    if not isinstance(trace, Mapping) or trace.get("superiority") is None:
        return False
    had = Looks.of_trace(trace)
    return had is None or not had.is_spent


def _within(looks: Iterable[Look], now: datetime, days: int) -> list[datetime]:
    """The times of the looks of the last `days` days, oldest first."""
    since = now - timedelta(days=days)
    return sorted(look.at for look in looks if since <= look.at <= now)
