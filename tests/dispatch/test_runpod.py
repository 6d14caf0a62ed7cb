"""The RunPod door's own promises: one pod a job, every pod given back, whatever goes wrong between."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes.runpod.world import (
    BROKEN,
    LOST_REPLY,
    LOST_REQUEST,
    NO_BALANCE,
    NO_CAPACITY,
    TOO_MANY,
    TWICE,
    PodScript,
)
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import SystemClock, parse_utc
from scf.core.errors import BudgetExceeded, DoorUnavailable
from scf.dispatch.job import ExitReason, JobPhase
from scf.dispatch.pod_board import PodBoard
from scf.dispatch.pod_record import PodFiles, PodRecord, PodState
from scf.dispatch.purse import OpenPurse
from scf.dispatch.runpod import RunpodDoor
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.dispatch.runpod_model import PodOrder
from support.clocks import HurriedClock, ManualClock
from support.remote_jobs import ended, tiny
from support.rented_pods import CHEAP, DEAR, Doors, runpod_door
from support.waiting import wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    doors = runpod_door(tmp_path)
    yield doors
    doors.close()


def released(door: RunpodDoor, job_id: str = "job-1") -> None:
    wait_for(
        lambda: door.poll(job_id).placement["stage"] == "released", what="the pod to be given back"
    )


def book(tmp_path: Path) -> PodFiles:
    return PodFiles(tmp_path / "home" / "runpod")


def test_a_pod_is_rented_for_a_job_and_given_back(doors: Doors, tmp_path: Path) -> None:
    """It has a name of ours, an end of its own after the job's deadline, and is gone at the end."""
    door = doors()
    door.submit(tiny(), {})
    assert ended(door).reason is ExitReason.COMPLETED
    released(door)

    (pod,) = doors.provider.all_pods
    assert pod.status == "TERMINATED"
    assert pod.name.startswith("scf-")
    (record,) = book(tmp_path).all()
    lease_s = (parse_utc(record.lease_until) - parse_utc(record.intended_at)).total_seconds()
    assert lease_s == pytest.approx(1200 + 600 + 1800)
    assert pod.env["SCF_JOB"] == "job-1"
    assert pod.env["SCF_LEASE_UNTIL"] == record.lease_until
    assert parse_utc(record.lease_until).replace(microsecond=0) == pod.terminate_after
    assert not (tmp_path / "home" / "runpod" / "job-1").exists()


@pytest.mark.parametrize("fault", [LOST_REPLY, LOST_REQUEST, BROKEN, TWICE])
def test_a_lost_answer_makes_one_pod(doors: Doors, fault: object) -> None:
    """Whether the order had been carried out, not carried out, or carried out twice."""
    doors.provider.script("create", fault)
    door = doors()
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    released(door)
    assert doors.provider.alive() == []
    assert (door.collect("job-1") / "outputs" / "count").read_text() == "once\n"
    assert doors.provider.count("create") == (1 if fault in (LOST_REPLY, TWICE) else 2)


def test_a_pod_that_is_shown_late_is_found_and_not_ordered_again(doors: Doors) -> None:
    doors.provider.script("create", LOST_REPLY)
    doors.provider.pod_scripts.append(PodScript(unseen=4))
    door = doors(visible_s=600.0)
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert doors.provider.count("create") == 1


def test_a_pod_that_is_shown_after_we_gave_up_on_it_is_ended(doors: Doors) -> None:
    """Its name is in no book by then; the sweep finds it by its prefix."""
    doors.provider.script("create", LOST_REPLY)
    doors.provider.pod_scripts.append(PodScript(unseen=25))
    door = doors()
    door.submit(tiny(sleep_s=6), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert doors.provider.count("create") == 2
    wait_for(lambda: not doors.provider.alive() or door.sweep(), what="the late pod to be ended")
    released(door)
    assert doors.provider.alive() == []


@pytest.mark.parametrize("route", ["graphql", "rest"])
def test_no_capacity_moves_to_the_next_candidate(doors: Doors, route: str) -> None:
    doors.provider.script("create", NO_CAPACITY)
    door = doors(candidates=(DEAR, CHEAP), max_usd_per_h=4.0, route=route)
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert [pod.gpu for pod in doors.provider.all_pods] == [CHEAP.gpu]


def test_no_capacity_anywhere_is_said_and_tried_again(doors: Doors) -> None:
    doors.provider.script("create", *[NO_CAPACITY] * 6)
    door = doors(candidates=(DEAR, CHEAP))
    door.submit(tiny(), {})

    said = wait_for(lambda: door._records.read("job-1").trouble, what="the reason")
    assert "no candidate could be rented" in said.text
    assert ended(door).reason is ExitReason.COMPLETED
    assert doors.provider.count("create") >= 7


@pytest.mark.parametrize(
    "script",
    [
        PodScript(until_running=0, num_gpus=0),
        PodScript(has_ports=False),
        PodScript(until_running=None),
    ],
)
def test_a_pod_that_is_no_use_is_ended_and_the_next_candidate_taken(
    doors: Doors, script: PodScript
) -> None:
    """Zero GPUs, RUNNING without ports, a stuck image pull."""
    doors.provider.pod_scripts.append(script)
    clock = HurriedClock()
    door = doors(candidates=(CHEAP, replace(CHEAP, data_center="EU-RO-1")), clock=clock)
    door.submit(tiny(), {})
    if script.num_gpus is None:
        wait_for(lambda: doors.provider.count("list") > 3, what="some looks at the first pod")
        clock.leap(1300)  # over `ready_s`

    assert ended(door).reason is ExitReason.COMPLETED
    released(door)
    first, second = doors.provider.all_pods
    assert (first.status, second.data_center) == ("TERMINATED", "EU-RO-1")
    assert doors.provider.alive() == []


def test_pods_that_are_no_use_come_to_an_end(doors: Doors) -> None:
    """Money is not spent for ever on pods that never work."""
    doors.provider.pod_scripts.extend([PodScript(until_running=0, num_gpus=0)] * 9)
    door = doors(orders_max=3)
    door.submit(tiny(), {})

    record = ended(door)

    assert record.reason is ExitReason.LOST
    assert "zero GPUs" in record.detail
    released(door)
    assert (len(doors.provider.all_pods), doors.provider.alive()) == (3, [])


def test_a_pod_that_is_deleted_by_hand_is_a_lost_job(doors: Doors, tmp_path: Path) -> None:
    """It is noticed from the list, and what had come back is kept for the next try."""
    door = doors()
    door.submit(tiny(sleep_s=240), {})
    started = tmp_path / "jobs" / "job-1" / "outputs" / "started"
    wait_for(started.exists, what="the program to start")
    doors.provider.delete_by_hand(doors.provider.all_pods[0].pod_id)
    os.kill(int(started.read_text()), 9)  # a real pod takes its processes with it

    record = ended(door)

    assert record.reason is ExitReason.LOST
    assert "gone" in record.detail
    assert started.exists()
    released(door)


def test_terminated_means_that_the_provider_said_so_twice(doors: Doors) -> None:
    """A pod that lives on after it was told to end is told again; until then it is not released."""
    doors.provider.pod_scripts.append(PodScript(deaf=6))
    door = doors()
    door.submit(tiny(), {})
    ended(door)
    released(door)

    assert doors.provider.alive() == []
    assert doors.provider.count("terminate") > 1


def test_a_daemon_that_comes_back_gives_the_pod_back(doors: Doors) -> None:
    """The job had ended, and nobody polls it any more."""
    doors.provider.pod_scripts.append(PodScript(deaf=10_000))
    door = doors()
    door.submit(tiny(), {})
    ended(door)
    door.close()
    doors.provider.all_pods[0].deaf_left = 0
    assert doors.provider.alive()

    doors().resume()

    wait_for(lambda: not doors.provider.alive(), what="the pod to be given back")


@pytest.mark.parametrize("was_carried_out", [True, False])
def test_a_crash_between_the_book_and_the_answer_makes_one_pod(
    doors: Doors, tmp_path: Path, was_carried_out: bool
) -> None:
    """The book says `intended`; the next daemon looks for the name before it orders."""
    door = doors()
    door.close()  # no follower of this door runs
    door.submit(tiny(), {})
    order = PodOrder(
        name=f"{door._pods._prefix}abc-1",
        image="worker",
        gpu=CHEAP.gpu,
        terminate_after=SystemClock().now(),
    )
    record = PodRecord(
        job_id="job-1",
        name=order.name,
        state=PodState.INTENDED,
        candidate=0,
        intended_at="2026-01-01T00:00:00Z",
        lease_until="2099-01-01T00:00:00Z",
        max_usd=1.0,
    )
    full = door._pods._access.order_of(record, CHEAP)
    book(tmp_path).write(replace(record, intended_at=SystemClock().now().isoformat()))
    if was_carried_out:
        door._pods._client.create(full)

    again = doors()
    assert ended(again).reason is ExitReason.COMPLETED
    released(again)

    names = [pod.name for pod in doors.provider.all_pods]
    assert len(names) == 1
    assert (names == [order.name]) is was_carried_out


def test_a_cancelled_order_leaves_no_pod(doors: Doors) -> None:
    """Also one whose answer was lost."""
    doors.provider.script("create", LOST_REPLY)
    door = doors()
    door.submit(tiny(), {})
    wait_for(lambda: doors.provider.count("create"), what="the order")
    door.cancel("job-1")

    assert ended(door).reason is ExitReason.CANCELLED
    released(door)
    assert doors.provider.alive() == []
    assert len(doors.provider.all_pods) == 1


def test_nothing_is_rented_under_the_emergency_lock(doors: Doors, tmp_path: Path) -> None:
    door = doors()
    EmergencyLock(tmp_path / "home").set("smoke", now=SystemClock().now())
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.CANCELLED
    assert doors.provider.all_pods == []


def test_the_emergency_lock_ends_a_rented_pod_and_sees_that_it_is_gone(
    doors: Doors, tmp_path: Path
) -> None:
    """Without a word with the pod: not even its outputs are waited for."""
    door = doors()
    door.submit(tiny(sleep_s=240, deaf=True), {})
    started = tmp_path / "jobs" / "job-1" / "outputs" / "started"
    wait_for(started.exists, what="the program to start")

    EmergencyLock(tmp_path / "home").set("smoke", now=SystemClock().now())
    door.cancel("job-1", at_once=True)  # as the conductor does

    wait_for(lambda: not doors.provider.alive(), what="the pod's end")
    assert ended(door).reason is ExitReason.CANCELLED
    released(door)
    (record,) = book(tmp_path).all()
    assert record.released_at is not None
    assert not record.ending


def test_a_pod_is_given_back_when_the_drive_has_gone(doors: Doors, tmp_path: Path) -> None:
    """And while the provider does not answer at first."""
    door = doors()
    door.submit(tiny(sleep_s=240), {})
    started = tmp_path / "jobs" / "job-1" / "outputs" / "started"
    wait_for(started.exists, what="the program to start")
    (tmp_path / "jobs").rename(tmp_path / "pulled")
    doors.provider.script("terminate", *[BROKEN] * 4)

    door.cancel("job-1", at_once=True)

    wait_for(lambda: not doors.provider.alive(), what="the pod's end")
    released(door)


@pytest.mark.parametrize("fault", [NO_BALANCE, TOO_MANY])
def test_an_order_that_is_refused_waits(doors: Doors, fault: object) -> None:
    """No balance, too many calls: nothing was started, and it goes on when that is over."""
    doors.provider.script("create", replace(fault, headers={"Retry-After": "1"}))
    door = doors()
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert len(doors.provider.all_pods) == 1


# Money.


def test_what_costs_too_much_is_not_rented(doors: Doors) -> None:
    """The price is known before: by the hour at submit, by the job before the order."""
    with pytest.raises(DoorUnavailable, match="max_usd_per_h"):
        doors(candidates=(DEAR,), max_usd_per_h=1.0).submit(tiny(), {})

    door = doors(candidates=(DEAR, CHEAP), max_usd_per_job=0.5)
    door.submit(tiny("job-2"), {})
    assert ended(door, "job-2").reason is ExitReason.COMPLETED
    assert [pod.gpu for pod in doors.provider.all_pods] == [CHEAP.gpu]


def test_the_budget_is_asked_before_each_order(doors: Doors) -> None:
    asked = []

    class Purse(OpenPurse):
        def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
            asked.append((job_id, max_usd))
            if len(asked) < 3:
                raise BudgetExceeded("the day's budget is spent", remedy="Raise it.")

    door = doors(purse=Purse())
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert len(asked) >= 3
    # 0.25 USD/h for 1200 + 600 + 1800 s, and 300 s in which it may be ended late; for two pods.
    assert asked[0] == ("job-1", pytest.approx(2 * 0.25 * 3900 / 3600, abs=1e-3))
    assert len(doors.provider.all_pods) == 1


class Notes(OpenPurse):
    """What a purse is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []
        self.settled: list[float] = []

    def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
        self.asked.append((max_usd, usd_per_h))

    def settle(self, job_id: str, estimated_usd: float) -> None:
        self.settled.append(estimated_usd)


@pytest.mark.parametrize("fault", [None, TWICE])
def test_an_order_counts_twice_until_it_is_known_to_have_made_one_pod(
    doors: Doors, tmp_path: Path, fault: object
) -> None:
    """Also where it was carried out twice: the second pod is ended first, and seen to be gone."""
    doors.provider.script("create", fault)
    purse, go = Notes(), tmp_path / "go"
    door = doors(purse=purse)
    door.submit(tiny(until=str(go)), {})
    wait_for(lambda: len(purse.asked) == 2, what="the second half to be given back")
    alive = len(doors.provider.alive())
    go.touch()

    assert ended(door).reason is ExitReason.COMPLETED
    released(door)
    one_usd = 0.25 * 3900 / 3600
    first, second = purse.asked
    assert first == (pytest.approx(2 * one_usd, abs=1e-3), 0.5)
    assert second == (pytest.approx(one_usd, rel=0.2), 0.25)
    assert alive == 1
    assert doors.provider.alive() == []
    assert len(purse.settled) == 1


def test_after_a_pod_that_was_given_up_soon_the_next_waits_for_its_twin(doors: Doors) -> None:
    """The twin is shown late; it is ended and paid for before anything more is ordered."""
    doors.provider.script("create", TWICE)
    doors.provider.pod_scripts.extend(
        [PodScript(unseen=6), PodScript(until_running=0, num_gpus=0), PodScript()]
    )
    clock = HurriedClock()
    door = doors(visible_s=600.0, clock=clock)
    door.submit(tiny(), {})
    wait_for(lambda: doors.provider.count("terminate") >= 2, what="the twin to be ended")
    assert doors.provider.count("create") == 1
    clock.leap(601)
    wait_for(lambda: doors.provider.count("create") == 2, what="the next order")
    clock.leap(601)

    assert ended(door).reason is ExitReason.COMPLETED
    released(door)
    first, second, third = doors.provider.all_pods
    assert first.name == second.name != third.name
    assert doors.provider.alive() == []


def test_the_sweep_ends_our_strays_and_nobody_elses(doors: Doors) -> None:
    """A pod with our prefix and in no book, or past its lease; other pods are left alone."""
    door = doors()
    door.submit(tiny(sleep_s=240), {})
    wait_for(lambda: door.poll("job-1").placement["stage"] == "running", what="the job")
    prefix = door._pods._prefix
    for name in (f"{prefix}stray", "scf-00000000-another-overseer", "somebody-elses"):
        order = PodOrder(
            name=name,
            image="x",
            gpu=CHEAP.gpu,
            terminate_after=SystemClock().now() + timedelta(days=1),
        )
        # No ssh server of its own: it is never looked into.
        doors.provider.pod_scripts.append(PodScript(until_running=None))
        door._pods._client.create(order)

    wait_for(
        lambda: f"{prefix}stray" not in {pod.name for pod in doors.provider.alive()},
        what="the stray to be ended",
    )
    assert {"scf-00000000-another-overseer", "somebody-elses"} < {
        pod.name for pod in doors.provider.alive()
    }
    assert door.poll("job-1").phase is JobPhase.RUNNING
    door.cancel("job-1", at_once=True)
    ended(door)


def test_one_list_call_serves_all_pods_and_is_rare(doors: Doors) -> None:
    """At most 4 a minute, however often and by however many it is asked."""
    clock = ManualClock()
    provider = doors.provider
    client = RunpodClient(ApiKey(provider.key), rest=provider.rest, graphql=provider.graphql)
    board = PodBoard(client, clock, look_s=15.0)
    for _ in range(600):
        board.lots()
        clock.advance(0.1)
    client.close()

    assert provider.count("list") == 4


def test_the_api_key_is_nowhere(doors: Doors, tmp_path: Path) -> None:
    """Not in the home, not in a bundle, not on the pod, not in its order."""
    key = doors.provider.key.encode()
    door = doors()
    door.submit(tiny(), {})
    ended(door)
    released(door)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all(key not in path.read_bytes() for path in files)
    assert key.decode() not in str(doors.provider.all_pods[0].env)
