"""When is a run due by the clock? `every 7 days`, or five fields as in a crontab. Pure; UTC.

The fields are minute, hour, day of the month, month and day of the week (0 and 7 are Sunday), each
`*`, numbers, ranges `1-5`, lists `1,15` and steps `*/6`. Where both days are given either will do,
as cron has it.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

_EVERY = re.compile(r"every ([1-9][0-9]{0,4}) (day|hour)s?")
_PART = re.compile(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([1-9][0-9]?))?")
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
# A leap day comes back after eight years at the latest (1896 to 1904).
_DAYS_BACK_MAX = 8 * 366 + 1


@dataclass(frozen=True)
class Schedule:
    """Times at which a run is due.

    Attributes:
        every: The pause between two runs; None for a crontab's.
        fields: The crontab's sets of numbers; empty for `every`.
        is_day_either: Whether the day of the month or that of the week will do.
    """

    every: timedelta | None
    fields: tuple[frozenset[int], ...] = ()
    is_day_either: bool = False

    FORMS: ClassVar[str] = '"", "every N days", "every N hours" or five fields as in a crontab'

    @classmethod
    def parse(cls, text: str) -> "Schedule | None":
        """The schedule that `text` names; None for an empty text.

        Raises:
            ValueError: It names none.
        """
        words = text.split()
        if not words:
            return None
        if match := _EVERY.fullmatch(" ".join(words)):
            return cls(every=int(match[1]) * timedelta(**{f"{match[2]}s": 1}))
        if len(words) != len(_RANGES):
            raise ValueError(f"{text!r} is not a schedule")
        sets = [_numbers(word, *span) for word, span in zip(words, _RANGES, strict=True)]
        sets[4] = frozenset(day % 7 for day in sets[4])
        schedule = cls(None, tuple(sets), is_day_either=words[2] != "*" and words[4] != "*")
        if schedule.last_before(datetime(2032, 1, 1, tzinfo=UTC)) is None:
            raise ValueError(f"{text!r} never comes")
        return schedule

    @classmethod
    def is_one(cls, text: str) -> bool:
        """Whether `text` names a schedule, or none at all."""
        try:
            cls.parse(text)
        except ValueError:
            return False
        return True

    def is_due(self, now: datetime, last: datetime | None) -> bool:
        """Whether a time of the schedule has come since `last`, when a run was last noted.

        Where none ever was, one is due: by `every` at once, by a crontab at its first time, which
        cannot be told from one that has passed; so there, too.
        """
        if last is None:
            return True
        if self.every is not None:
            return now - last >= self.every
        come = self.last_before(now)
        return come is not None and come > last

    def last_before(self, now: datetime) -> datetime | None:
        """The newest time of a crontab that is not after `now`; None where there is none."""
        minutes, hours, *_ = self.fields
        for back in range(_DAYS_BACK_MAX):
            day = (now - timedelta(days=back)).date()
            if not self._is_day(day.day, day.month, day.isoweekday() % 7):
                continue
            times = [(h, m) for h in hours for m in minutes
                     if back or (h, m) <= (now.hour, now.minute)]  # fmt: skip
            if times:
                hour, minute = max(times)
                return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
        return None

    def _is_day(self, day: int, month: int, weekday: int) -> bool:
        is_day, is_weekday = day in self.fields[2], weekday in self.fields[4]
        either = is_day or is_weekday if self.is_day_either else is_day and is_weekday
        return month in self.fields[3] and either


def _numbers(text: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a field of a crontab")
        first = int(match[1]) if match[1] else low
        last = int(match[2]) if match[2] else (high if match[1] is None or match[3] else first)
        if not low <= first <= last <= high:
            raise ValueError(f"{part!r} is not within {low} to {high}")
        found |= set(range(first, last + 1, int(match[3] or 1)))
    return frozenset(found)
