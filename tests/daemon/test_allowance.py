"""No more money is promised than the month has."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.core.errors import BudgetExceeded
from scf.daemon.allowance import Allowance
from scf.daemon.commands import LIMITS_SET
from scf.runs.record import AttemptEnd
from scf.runs.state import State
from scf.runs.store import RunStore
from support.clocks import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 23, 6, 0, tzinfo=UTC))


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock):
    store = RunStore.open(tmp_path, clock)
    store.set(LIMITS_SET, {"usd_month": 10.0})
    yield store
    store.close()


def open_job(store: RunStore, number: int) -> str:
    run, _ = store.add_run({"n": number}, {}, facts={})
    for state in (State.VALIDATED, State.PLANNED):
        run = store.move(run, state, "on")
    return store.open_attempt(run.run_id, "train_ebdm", "runpod", lambda _: {}).attempt_id


def end_job(store: RunStore, job_id: str, cost_usd: float) -> None:
    run = store.run(store.attempt(job_id).run_id)
    end = AttemptEnd(job_id, "completed", {"cost_usd": cost_usd})
    store.move(run, State.SUBMITTED, "on", ends=end)


def test_promises_count_until_the_receipt_is_in(store: RunStore, clock: ManualClock) -> None:
    allowance = Allowance(store, clock)
    first, second = open_job(store, 1), open_job(store, 2)
    allowance.approve(first, 6.0)
    allowance.approve(first, 6.0)
    assert allowance.spent_usd() == 6.0
    with pytest.raises(BudgetExceeded, match=r"6\.00 of 10\.00 USD"):
        allowance.approve(second, 5.0)

    end_job(store, first, 2.5)

    allowance.approve(second, 5.0)
    assert allowance.spent_usd() == 7.5


def test_a_new_month_has_a_new_allowance(store: RunStore, clock: ManualClock) -> None:
    allowance = Allowance(store, clock)
    job = open_job(store, 1)
    allowance.approve(job, 9.0)
    end_job(store, job, 9.0)
    assert allowance.spent_usd() == 9.0

    clock.advance(8 * 86_400)

    assert allowance.spent_usd() == 0.0


def test_nothing_may_be_spent_where_the_limit_is_nothing(
    store: RunStore, clock: ManualClock
) -> None:
    store.set(LIMITS_SET, {"usd_month": 0.0})
    allowance = Allowance(store, clock)
    allowance.approve(open_job(store, 1), 0.0)
    with pytest.raises(BudgetExceeded):
        allowance.approve(open_job(store, 2), 0.01)
