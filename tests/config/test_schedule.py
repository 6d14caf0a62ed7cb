"""Times at which a run is due, as an operator writes them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.config.schedule import Schedule


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "now", "last"),
    [
        ("0 3 * * *", "2026-11-23 02:59", "2026-11-22 03:00"),
        ("0 3 * * *", "2026-11-23 03:00", "2026-11-23 03:00"),
        ("30 */6 * * *", "2026-11-23 17:00", "2026-11-23 12:30"),
        ("0 4 * * 1", "2026-11-25 00:00", "2026-11-23 04:00"),  # a Monday
        ("0 4 * * 7", "2026-11-25 00:00", "2026-11-22 04:00"),  # a Sunday
        ("15,45 9-17 * * 1-5", "2026-11-22 12:00", "2026-11-20 17:45"),
        ("0 0 1,15 * 3", "2026-11-24 00:00", "2026-11-18 00:00"),  # either day, as in cron
        ("0 0 29 2 *", "2026-11-23 00:00", "2024-02-29 00:00"),
    ],
)
def test_the_last_time_of_a_crontab(text: str, now: str, last: str) -> None:
    schedule = Schedule.parse(text)
    assert schedule is not None
    assert schedule.last_before(at(now)) == at(last)


@pytest.mark.parametrize(
    "text", ["now", "every 0 days", "every day", "* * * *", "60 * * * *", "0 24 * * *", "5-1 * * * *",
             "0 0 31 2 *", "0 0 0 * *", "a * * * *", "*/0 * * * *", "* * * * 8"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(text: str) -> None:
    assert not Schedule.is_one(text)


def test_due_once_for_each_time_that_came() -> None:
    daily = Schedule.parse("0 3 * * *")
    assert daily is not None
    assert daily.is_due(at("2026-11-23 03:00"), at("2026-11-23 02:59"))
    assert not daily.is_due(at("2026-11-24 02:59"), at("2026-11-23 03:00"))
    assert daily.is_due(at("2026-11-30 00:00"), at("2026-11-23 03:00"))
    weekly = Schedule.parse("every 7 days")
    assert weekly is not None
    assert not weekly.is_due(at("2026-11-29 23:59"), at("2026-11-23 00:00"))
    assert weekly.is_due(at("2026-11-30 00:00"), at("2026-11-23 00:00"))
    assert weekly.is_due(at("2026-11-30 00:00"), None)
    assert Schedule.parse("  ") is None


@given(st.integers(0, 59), st.integers(0, 23), st.integers(0, 10_000_000))
def test_a_daily_time_is_never_more_than_a_day_ago(minute: int, hour: int, after: int) -> None:
    now = at("2026-01-01 00:00") + timedelta(minutes=after)
    schedule = Schedule.parse(f"{minute} {hour} * * *")
    assert schedule is not None
    last = schedule.last_before(now)
    assert last is not None
    assert timedelta(0) <= now - last < timedelta(days=1)
    assert (last.hour, last.minute) == (hour, minute)
