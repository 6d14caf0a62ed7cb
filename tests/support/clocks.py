"""Clocks whose calendar is the test's."""

from datetime import UTC, datetime, timedelta

from scf.core.clock import SystemClock


class ManualClock:
    """Wall time and monotonic time under the test's hand; sleeping takes no time at all."""

    def __init__(self, start: datetime = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as a correction of the system's time does."""
        self._now += timedelta(seconds=seconds)


class HurriedClock(SystemClock):
    """Seconds pass as they do; the calendar leaps when the test says so."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self._ahead

    def leap(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)


class CalendarClock(SystemClock):
    """The calendar is the test's; seconds pass as they do, and waiting takes its time."""

    def __init__(self, today: datetime) -> None:
        self.today = today
        self._start = self.monotonic()

    def now(self) -> datetime:
        return self.today + timedelta(seconds=self.monotonic() - self._start)
