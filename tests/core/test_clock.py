"""Times are aware, in UTC, and read back."""

from datetime import UTC, date, datetime

import pytest

from scf.core.clock import monday_of, parse_utc, utc_text


def test_utc_text_reads_back() -> None:
    moment = datetime(2026, 11, 23, 6, 15, tzinfo=UTC)

    assert utc_text(moment) == "2026-11-23T06:15:00Z"
    assert parse_utc(utc_text(moment)) == moment


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_utc("2026-11-23T06:15:00")
    with pytest.raises(ValueError, match="naive"):
        utc_text(datetime(2026, 11, 23))  # noqa: DTZ001


def test_monday_of_any_day() -> None:
    assert {monday_of(date(2026, 11, day)) for day in range(23, 30)} == {date(2026, 11, 23)}
