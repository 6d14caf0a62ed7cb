"""No more money is promised than the hour, the run, the day and the month have."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.control.control_file import ControlFile
from scf.core.errors import BudgetExceeded
from scf.daemon.allowance import Allowance
from scf.daemon.commands import LIMITS_SET
from scf.runs.store import RunStore
from support.clocks import ManualClock

ONE, TWO = "run-aaaaaaaaaaaa-train-ebdm-1", "run-bbbbbbbbbbbb-train-ebdm-1"
AGAIN = "run-aaaaaaaaaaaa-train-ebdm-2"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 23, 6, 0, tzinfo=UTC))


def purse(tmp_path: Path, clock: ManualClock, **limits: float) -> Allowance:
    """With these caps; the others are out of the way."""
    wide = dict.fromkeys(("usd_hour", "usd_run", "usd_day", "usd_month"), 1e6)
    store = RunStore.open(tmp_path, clock)
    store.set(LIMITS_SET, wide | limits)
    store.close()
    return Allowance(tmp_path, clock)


def test_promises_count_until_the_estimate_is_in(tmp_path: Path, clock: ManualClock) -> None:
    allowance = purse(tmp_path, clock, usd_month=10.0)
    allowance.approve(ONE, 6.0, usd_per_h=2.0)
    allowance.approve(ONE, 6.0, usd_per_h=2.0)
    assert allowance.spent_usd() == 6.0
    with pytest.raises(BudgetExceeded, match=r"5\.00 USD of this month; 6\.00 of 10\.00"):
        allowance.approve(TWO, 5.0, usd_per_h=2.0)
    assert allowance.of(TWO) is None

    allowance.settle(ONE, 2.5)
    allowance.approve(TWO, 5.0, usd_per_h=2.0)
    assert allowance.spent_usd() == 7.5

    allowance.bill(ONE, 2.75)
    assert allowance.spent_usd() == 7.75


def test_the_cap_by_the_hour_is_about_what_is_open(tmp_path: Path, clock: ManualClock) -> None:
    allowance = purse(tmp_path, clock, usd_hour=5.0)
    allowance.approve(ONE, 1.0, usd_per_h=2.7)
    with pytest.raises(BudgetExceeded, match=r"usd_hour|USD/h"):
        allowance.approve(TWO, 1.0, usd_per_h=2.7)

    allowance.settle(ONE, 1.0)

    allowance.approve(TWO, 1.0, usd_per_h=2.7)


@pytest.mark.parametrize("has_run_before", [True, False])
def test_a_cap_that_was_just_set_holds_though_no_daemon_has_read_it(
    tmp_path: Path, clock: ManualClock, has_run_before: bool
) -> None:
    """The next daemon obeys the command; the smoke test may come first."""
    if has_run_before:
        purse(tmp_path, clock)
    command_id = ControlFile(tmp_path).put(
        "SET_BUDGET", {"budget": "usd_day", "limit": "2"}, now=clock.now()
    )
    allowance = Allowance(tmp_path, clock)
    assert allowance.limits()["usd_day"] == 2.0
    with pytest.raises(BudgetExceeded, match=r"0\.00 of 2\.00 USD of this day"):
        allowance.approve(ONE, 3.0, usd_per_h=1.0)

    # Once it is answered, what the daemon has kept is what counts.
    with contextlib.closing(RunStore.open(tmp_path, clock)) as store:
        store.acknowledge(command_id, "done", "", sets={LIMITS_SET: {"usd_day": 7.0}})
    assert allowance.limits()["usd_day"] == 7.0


def test_the_cap_of_a_run_counts_all_its_attempts(tmp_path: Path, clock: ManualClock) -> None:
    allowance = purse(tmp_path, clock, usd_run=10.0)
    allowance.approve(ONE, 6.0, usd_per_h=1.0)
    allowance.settle(ONE, 6.0)

    with pytest.raises(BudgetExceeded, match="USD of its run"):
        allowance.approve(AGAIN, 5.0, usd_per_h=1.0)
    allowance.approve(TWO, 5.0, usd_per_h=1.0)


@pytest.mark.parametrize(("cap", "days"), [("usd_day", 1), ("usd_month", 8)])
def test_a_new_day_and_a_new_month_have_a_new_allowance(
    tmp_path: Path, clock: ManualClock, cap: str, days: int
) -> None:
    """What is still open then counts to the new one, too."""
    allowance = purse(tmp_path, clock, **{cap: 10.0})
    allowance.approve(ONE, 9.0, usd_per_h=1.0)
    clock.advance(days * 86_400)
    assert allowance.spent_usd(cap) == 9.0

    allowance.settle(ONE, 9.0)

    assert allowance.spent_usd(cap) == 0.0


def test_nothing_may_be_spent_where_the_limit_is_nothing(
    tmp_path: Path, clock: ManualClock
) -> None:
    allowance = purse(tmp_path, clock, usd_month=0.0)
    allowance.approve(ONE, 0.0, usd_per_h=0.0)
    with pytest.raises(BudgetExceeded, match="of this month") as caught:
        allowance.approve(TWO, 0.01, usd_per_h=0.0)
    assert caught.value.remedy == "Raise the limit: `scf budget set usd_month AMOUNT`."


def test_without_a_database_the_defaults_hold(tmp_path: Path, clock: ManualClock) -> None:
    """`scf pods smoke` before the first run: nothing is made for it but the promise."""
    with pytest.raises(BudgetExceeded):
        Allowance(tmp_path, clock).approve(ONE, 25.01, usd_per_h=1.0)
    assert not (tmp_path / "runs.db").exists()
