"""What a week took: sums of receipts, and unknown where nobody measured."""

from datetime import UTC, datetime
from pathlib import Path

from scf.release.costs import closed_attempts, costs_of, costs_text
from scf.runs.record import Attempt

MONDAY = datetime(2026, 11, 16, tzinfo=UTC)
NEXT = datetime(2026, 11, 23, tzinfo=UTC)


def attempt(kind: str, closed_at: str | None, **receipt: object) -> Attempt:
    times = {"started_at": "2026-11-18T12:00:00Z", "ended_at": "2026-11-18T12:02:00Z"}
    return Attempt(
        "a", "run-1", kind, 1, "local", {}, "2026-11-18T12:00:00Z", closed_at, "completed",
        {**times, "usage": {}, "cost_usd": 0.0, **receipt} if closed_at else None,
    )  # fmt: skip


def test_jobs_of_the_week_are_summed_by_kind() -> None:
    costs = costs_of(
        [
            attempt("train_ebdm", "2026-11-10T00:00:00Z", cost_usd=9.0),  # the week before
            attempt("train_ebdm", "2026-11-18T12:02:00Z", usage={"cpu_s": 100.0}, cost_usd=1.25),
            attempt("train_ebdm", "2026-11-19T12:02:00Z", usage={"cpu_s": 20.0}, energy_j=5000.0),
            attempt("measure", "2026-11-19T12:03:00Z"),
            attempt("measure", None),  # still running
        ],
        since=MONDAY,
        until=NEXT,
    )  # fmt: skip

    measure, train = costs
    assert (train.jobs, train.seconds, train.cpu_s, train.usd) == (2, 240.0, 120.0, 1.25)
    assert (train.energy_j, train.metered) == (5000.0, 1)
    assert (measure.cpu_s, measure.energy_j) == (None, None)
    text = costs_text(costs)
    assert "| training | 2 | 4 min 00 s | 2 min 00 s | 5,000 J (1 of 2 metered) | 1.25 |" in text
    assert "| measure | 1 | 2 min 00 s | unknown | not metered | 0.00 |" in text


def test_a_week_without_jobs_has_no_section() -> None:
    assert costs_text(costs_of([], since=None, until=NEXT)) == ""


def test_a_home_without_a_database_has_no_attempts(tmp_path: Path) -> None:
    assert closed_attempts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
