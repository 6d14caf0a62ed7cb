"""What doors offer, and what becomes of a job that a door would not take."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.core.errors import DoorUnavailable
from scf.daemon.allowance import Allowance
from scf.daemon.doors import Doors
from scf.daemon.foresight import foresee
from scf.daemon.offers import choose_door, need_of
from scf.dispatch.job import JobPhase, JobStatus
from scf.runs.record import Run
from scf.runs.state import State
from support.clocks import ManualClock
from support.conducting import Works, tick_until


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path, {"auto_release": False, "settle_s": 0.0})


class RefusingDoor:
    """Answers everything, and takes no job."""

    name = "ssh"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    def submit(self, spec, files, *, resume=None):
        self.asked.append(spec.job_id)
        raise DoorUnavailable("no room for another job")

    def poll(self, job_id: str) -> JobStatus:
        return JobStatus(JobPhase.ABSENT)

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        self.cancelled.append(job_id)

    def collect(self, job_id: str) -> Path:
        raise NotImplementedError


def run_of(**intent: object) -> Run:
    return Run("run-0123456789ab", intent, State.VALIDATED, "", 0, None, {}, "", "")


def chosen(works: Works, run: Run, *order: str, size_bytes: int = 0):
    doors = Doors(order, lambda name: RefusingDoor(), SystemClock())
    return choose_door(
        run, {"shards": [{"size_bytes": size_bytes}]}, config=works.config, doors=doors,
        clock=SystemClock(), attempts=[], open_attempts=[],
    )  # fmt: skip


def settings(works: Works, text: str) -> None:
    with (works.home / "scf.toml").open("a") as file:
        file.write(f"\n{text}\n")


def test_the_price_of_a_rented_machine_is_weighed_against_the_runs_budget(works: Works) -> None:
    """5 USD an hour at most; 75 s of training and 120 s around them are 0.27 USD."""
    run = run_of(budget={"usd": 0.2, "seconds": 3600.0, "joules": 0.0}, config={"max_seconds": 75})
    rich = run_of(budget={"usd": 0.3, "seconds": 3600.0, "joules": 0.0}, config={"max_seconds": 75})

    assert chosen(works, run, "runpod", "local").door == "local"
    assert chosen(works, rich, "runpod", "local").door == "runpod"
    far = chosen(works, rich, "runpod", "local", size_bytes=10**9)
    assert far.door == "local"
    assert "0.41 USD, the run has 0.30" in far.reason


def test_a_month_whose_money_is_spent_rents_nothing(works: Works) -> None:
    """The caps of the purse hold before anybody is asked."""
    allowance = Allowance(works.home, ManualClock(datetime.now(UTC)))
    run = run_of(budget={"usd": 0.0, "seconds": 3600.0, "joules": 0.0}, config={"max_seconds": 75})
    assert chosen(works, run, "runpod", "local").door == "runpod"
    allowance.approve("run-ffffffffffff-train-ebdm-1", 24.9, usd_per_h=3.0)
    decision = chosen(works, run, "runpod", "local")

    assert decision.door == "local"
    assert "0.27 USD, the run has 0.10" in decision.reason


def test_a_door_that_is_not_set_up_is_passed_over_and_said(works: Works) -> None:
    """In the transition, and before that in `scf daemon plan`, which opens no door."""
    settings(works, '[doors]\norder = ["ssh", "runpod", "local"]')
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.origin("drop/a.ndjson")))
        (plan,) = foresee(works.config, SystemClock())
        assert "door local: free of charge" in plan.why
        assert "ssh not: [ssh] host is not set" in plan.why
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PLANNED})))
        (run,) = conductor.store.runs()
        move = conductor.store.transitions(run.run_id)[-1]

    assert "ssh not: the ssh door cannot be opened" in move.reason
    weighed = move.details["decision"]["weighed"]
    assert [one["door"] for one in weighed] == ["ssh", "runpod", "local"]
    assert [one["fits"] for one in weighed] == [False, False, True]


def test_a_door_that_refuses_is_told_to_forget_it_and_the_next_one_is_tried(works: Works) -> None:
    """Local fallback: nothing was started there and never will be; then this machine takes it."""
    settings(works, '[doors]\norder = ["ssh", "local"]')
    works.drop("a.ndjson", range(120))
    clock = ManualClock(datetime.now(UTC))
    door = RefusingDoor()
    with works.conductor(clock) as (conductor, _):
        conductor.open()
        conductor._rooms.doors._open["ssh"] = door
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PLANNED})))
        tick_until(conductor, lambda _: conductor.store.runs()[0].tries == 1)
        (run,) = conductor.store.runs()
        assert "ssh did not take it: no room" in run.reason
        clock.advance(10.0)
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.SUBMITTED})))
        (run,) = conductor.store.runs()
        attempts = conductor.store.attempts(run.run_id)
        tick_until(conductor, lambda tick: tick.is_idle)

    assert door.asked == door.cancelled == [attempts[0].attempt_id]
    assert [(a.door, a.exit_reason) for a in attempts] == [("ssh", "cancelled"), ("local", None)]
    assert run.facts["door"] == "local"
    assert works.runs()[0].state is State.PROMOTED


def test_what_earlier_tries_took_is_gone_from_the_budget(works: Works) -> None:
    run = run_of(budget={"usd": 5.0, "joules": 100.0, "seconds": 60.0})

    def left(spent_usd: float, used_j: float) -> tuple[float | None, float | None]:
        need = need_of(
            run, {}, works.config, money_left_usd=4.0, spent_usd=spent_usd, used_j=used_j
        )
        return need.usd_max, need.joules_max

    assert left(0.0, 0.0) == (4.0, 100.0)  # the caps leave less than the run's own budget
    assert left(3.0, 70.0) == (2.0, 30.0)
    assert left(6.0, 130.0) == (0.0, 0.0)


def test_several_machines_are_one_offer_and_each_is_sent_the_data(works: Works) -> None:
    """`scf daemon plan` says so: the price is the most that all of them together may cost."""
    more = "[runpod]\nnodes = 3\nmax_usd_per_h = 6.0\n[run]\nupload_bytes_per_s = 1e6\n"
    path = works.home / "scf.toml"
    path.write_text(path.read_text() + "\n" + more)
    decision = chosen(works, run_of(config={"max_seconds": 480.0}), "runpod", size_bytes=10**8)

    assert decision.door == "runpod"
    # 3 x 100 MB at 1 MB/s, and 600 s with what is beside training, at 6 USD/h.
    assert "1.50 USD, done within 15 min 00 s on 3 machines together with 300 MB" in decision.reason
