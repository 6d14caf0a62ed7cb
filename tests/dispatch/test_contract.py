"""What every door promises (`Dispatcher`), held against each door there is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scf.core.errors import UsageError
from scf.core.identity import sha256_hex
from scf.dispatch.bundle import Bundle
from scf.dispatch.dispatcher import BundleMismatch, Dispatcher
from scf.dispatch.job import ExitReason, JobExit, JobInput, JobPhase, JobSpec
from scf.dispatch.local import LocalDoor
from scf.storage.partitions import Folder
from support.ray_lan import ray_door
from support.rented_pods import cluster_door, runpod_door
from support.ssh_boxes import ssh_door
from support.tiny_worker import WORKER
from support.waiting import is_gone, wait_for

MakeDoor = Callable[[], Dispatcher]


def local_door(tmp_path: Path) -> MakeDoor:
    home = tmp_path / "home"
    home.mkdir()
    jobs = Folder.at(tmp_path / "jobs")
    return lambda: LocalDoor(jobs, home, worker=WORKER)


# One line a door.
DOORS = {
    "local": local_door,
    "ssh": ssh_door,
    "runpod": runpod_door,
    "cluster": cluster_door,
    "ray": ray_door,
}


@pytest.fixture(
    params=[pytest.param(name, marks=() if name == "local" else pytest.mark.e2e) for name in DOORS]
)
def make_door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDoor]:
    """Opens the same door; each call is as a daemon that was started again."""
    make = DOORS[request.param](tmp_path)
    yield make
    getattr(make, "close", lambda: None)()


def spec(job_id: str = "run-1-train-1", **todo: object) -> JobSpec:
    return JobSpec(job_id=job_id, kind="tiny", deadline_s=600.0, config=todo)


def ended(door: Dispatcher, job_id: str) -> JobExit:
    status = wait_for(
        lambda: (s := door.poll(job_id)).phase is JobPhase.ENDED and s, what=f"{job_id} to end"
    )
    assert status.exit is not None
    return status.exit


def running(door: Dispatcher, job_id: str, bundle: Path | None = None) -> None:
    wait_for(lambda: door.poll(job_id).phase is JobPhase.RUNNING, what=f"{job_id} to run")
    if bundle is not None:
        started = bundle / "outputs" / "started"
        wait_for(lambda: started.exists() and started.read_text(), what="the program to start")


def bundle_of(tmp_path: Path, job_id: str) -> Path:
    return tmp_path / "jobs" / job_id


def test_a_job_runs_and_its_bundle_comes_back_whole(make_door: MakeDoor) -> None:
    """Submit, poll, collect: outputs are there and fit the exit record."""
    door = make_door()
    assert door.poll("run-1-train-1").phase is JobPhase.ABSENT

    door.submit(spec(), {})
    record = ended(door, "run-1-train-1")
    bundle = Bundle(door.collect("run-1-train-1"))

    assert record.reason is ExitReason.COMPLETED
    assert record.returncode == 0
    assert record.usage["rss_max_bytes"] > 0
    assert (bundle.path / "outputs" / "count").read_text() == "once\n"
    assert [row["path"] for row in record.outputs] == ["outputs/count", "outputs/started"]
    assert bundle.last_progress()["step"] == 3
    assert door.collect("run-1-train-1") == bundle.path


def test_submit_twice_is_one_job(make_door: MakeDoor, tmp_path: Path) -> None:
    """While it runs, after it ended, and from a daemon that came back: never a second one."""
    door = make_door()
    door.submit(spec(sleep_s=0.5), {})
    door.submit(spec(sleep_s=0.5), {})
    make_door().submit(spec(sleep_s=0.5), {})
    ended(door, "run-1-train-1")
    make_door().submit(spec(sleep_s=0.5), {})

    assert ended(door, "run-1-train-1").reason is ExitReason.COMPLETED
    assert (door.collect("run-1-train-1") / "outputs" / "count").read_text() == "once\n"


def test_one_id_cannot_mean_two_jobs(make_door: MakeDoor) -> None:
    """Another spec under a used id is refused."""
    door = make_door()
    door.submit(spec(), {})

    with pytest.raises(UsageError, match="another spec"):
        door.submit(spec(sleep_s=1), {})
    ended(door, "run-1-train-1")


def test_inputs_travel_and_are_checked(make_door: MakeDoor) -> None:
    """The worker refuses a bundle whose input does not have the digest in the spec."""
    plan = JobInput("plan.json", "inputs/plan.json", sha256_hex(b"{}"))
    door = make_door()
    door.submit(replace(spec(), inputs=(plan,)), {"plan.json": b"{}"})
    assert ended(door, "run-1-train-1").reason is ExitReason.COMPLETED

    with pytest.raises(UsageError, match="digest"):
        door.submit(replace(spec("other"), inputs=(plan,)), {"plan.json": b"{ }"})
    with pytest.raises(UsageError, match="inputs"):
        door.submit(replace(spec("other"), inputs=(plan,)), {})


@pytest.mark.parametrize(
    ("todo", "reason", "detail"),
    [
        ({"exit_code": 3, "say": "no such luck"}, "worker_error", "exit code 3; no such luck"),
        ({"exit_code": 1, "note": {"event": "error", "error": "Diverged"}}, "diverged", ""),
        ({"exit_code": 1, "say": "RuntimeError: CUDA out of memory."}, "out_of_memory", "CUDA"),
        ({"link": True}, "worker_error", "neither a file nor a folder"),
    ],
)
def test_a_failure_has_a_reason(
    make_door: MakeDoor, todo: dict[str, object], reason: str, detail: str
) -> None:
    """Never just "failed"."""
    door = make_door()
    door.submit(spec(**todo), {})

    record = ended(door, "run-1-train-1")

    assert record.reason == reason
    assert detail in record.detail


def test_an_unknown_kind_is_bad_data(make_door: MakeDoor) -> None:
    door = make_door()
    door.submit(replace(spec(), kind="alchemy"), {})

    record = ended(door, "run-1-train-1")

    assert record.reason is ExitReason.BAD_DATA
    assert "alchemy" in record.detail


def test_a_deadline_ends_the_job(make_door: MakeDoor) -> None:
    """The job may save its state first."""
    door = make_door()
    door.submit(replace(spec(sleep_s=240, listens=True), deadline_s=0.5), {})

    record = ended(door, "run-1-train-1")

    assert record.reason is ExitReason.TIMED_OUT
    assert "outputs/saved" in [row["path"] for row in record.outputs]


def test_cancel_lets_the_job_save_its_state(make_door: MakeDoor, tmp_path: Path) -> None:
    """Twice is as good as once, and the reason is `cancelled`."""
    door = make_door()
    door.submit(spec(sleep_s=240, listens=True), {})
    running(door, "run-1-train-1", bundle_of(tmp_path, "run-1-train-1"))

    door.cancel("run-1-train-1")
    door.cancel("run-1-train-1")
    record = ended(make_door(), "run-1-train-1")
    door.cancel("run-1-train-1")

    assert record.reason is ExitReason.CANCELLED
    assert (door.collect("run-1-train-1") / "outputs" / "saved").exists()


def test_cancel_at_once_ends_every_process_of_the_job(make_door: MakeDoor, tmp_path: Path) -> None:
    """Also a program that does not listen, and what it has started; found again after a restart."""
    make_door().submit(spec(sleep_s=240, deaf=True, child=True), {})
    outputs = bundle_of(tmp_path, "run-1-train-1") / "outputs"
    running(make_door(), "run-1-train-1", outputs.parent)
    pids = [int((outputs / name).read_text()) for name in ("started", "child.pid")]

    make_door().cancel("run-1-train-1", at_once=True)

    assert ended(make_door(), "run-1-train-1").reason is ExitReason.CANCELLED
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid), what=f"process {pid} to be gone")


def test_a_job_cancelled_before_it_was_submitted_never_starts(make_door: MakeDoor) -> None:
    door = make_door()
    door.cancel("run-1-train-1")
    door.submit(spec(), {})

    assert ended(door, "run-1-train-1").reason is ExitReason.CANCELLED


def test_a_completed_job_cannot_be_cancelled_afterwards(make_door: MakeDoor) -> None:
    door = make_door()
    door.submit(spec(), {})
    ended(door, "run-1-train-1")

    door.cancel("run-1-train-1", at_once=True)

    assert ended(door, "run-1-train-1").reason is ExitReason.COMPLETED


def test_a_new_try_goes_on_from_what_the_old_one_left(make_door: MakeDoor) -> None:
    """`resume` carries the outputs over."""
    door = make_door()
    door.submit(spec("try-1"), {})
    ended(door, "try-1")

    door.submit(spec("try-2"), {}, resume=door.collect("try-1"))
    ended(door, "try-2")

    assert (door.collect("try-2") / "outputs" / "count").read_text() == "once\nonce\n"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda outputs: (outputs / "count").write_text("twice\n"), "expected sha256"),
        (lambda outputs: (outputs / "count").unlink(), "missing"),
        (lambda outputs: (outputs / "extra").write_text("x"), "not in the exit record"),
        (lambda outputs: (outputs / "extra").symlink_to("count"), "neither a file nor a folder"),
    ],
)
def test_collect_refuses_what_the_exit_record_does_not_promise(
    make_door: MakeDoor, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    """And names the file."""
    door = make_door()
    door.submit(spec(), {})
    ended(door, "run-1-train-1")
    harm(bundle_of(tmp_path, "run-1-train-1") / "outputs")

    with pytest.raises(BundleMismatch, match=message):
        door.collect("run-1-train-1")


@pytest.mark.parametrize("path", ["outputs/../../x", "/etc/passwd", "inputs/a", "outputs\\..\\x"])
def test_an_exit_record_that_points_outside_is_refused(
    make_door: MakeDoor, tmp_path: Path, path: str
) -> None:
    door = make_door()
    door.submit(spec(), {})
    ended(door, "run-1-train-1")
    exit_path = bundle_of(tmp_path, "run-1-train-1") / "exit.json"
    record = json.loads(exit_path.read_text())
    record["outputs"].append({"path": path, "sha256": "0" * 64, "size_bytes": 1})
    exit_path.write_text(json.dumps(record))

    assert ended(door, "run-1-train-1").reason is ExitReason.WORKER_ERROR
    with pytest.raises(BundleMismatch, match="not inside outputs"):
        door.collect("run-1-train-1")
