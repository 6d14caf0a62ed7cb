"""Time, passed in: so that a test can run a week in a second."""

import time
from datetime import UTC, date, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the conductor needs of time."""

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC. May jump."""

    def monotonic(self) -> float:
        """Seconds since some moment. Never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC with a `Z`, to the microsecond when there is a fraction."""
    if moment.tzinfo is None:
        raise ValueError(f"naive datetime {moment!r}: attach a time zone")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_utc(text: str) -> datetime:
    """Read RFC 3339. Raises ValueError for anything else, naive times included."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; RFC 3339 asks for one, such as Z")
    return moment.astimezone(UTC)


def monday_of(day: date) -> date:
    """The Monday that begins the ISO week of `day`."""
    return day - timedelta(days=day.weekday())
