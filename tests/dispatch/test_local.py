"""The local door's own promises: detached jobs, lost jobs, and work without the drive."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import SystemClock
from scf.core.errors import DoorUnavailable, DriveError
from scf.dispatch.job import ExitReason, JobPhase, JobSpec
from scf.dispatch.local import LocalDoor
from scf.storage.partitions import Drive
from support.tiny_worker import WORKER
from support.waiting import is_gone, wait_for


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive.scaffold(tmp_path / "root")


@pytest.fixture
def door(drive: Drive, home: Path) -> LocalDoor:
    return LocalDoor(drive.folder("system_cache", "jobs"), home, worker=WORKER)


def tiny(**todo: object) -> JobSpec:
    return JobSpec(job_id="job-1", kind="tiny", deadline_s=600.0, config=todo)


def start(door: LocalDoor, **todo: object) -> int:
    """Start a tiny job; returns its program's process id once it works."""
    door.submit(tiny(**todo), {})
    started = door.jobs.path / "job-1" / "outputs" / "started"
    return int(wait_for(lambda: started.exists() and started.read_text(), what="the program"))


def reason(door: LocalDoor) -> ExitReason:
    status = wait_for(
        lambda: (s := door.poll("job-1")).phase is JobPhase.ENDED and s, what="the job to end"
    )
    assert status.exit is not None
    return status.exit.reason


def test_a_job_survives_the_kill_of_the_process_that_submitted_it(
    door: LocalDoor, home: Path
) -> None:
    """kill -9 of the daemon leaves the job running, and the next daemon finds it."""
    go = home / "go"
    script = f"""
import os, signal
from pathlib import Path
from scf.dispatch.job import JobSpec
from scf.dispatch.local import LocalDoor
from scf.storage.partitions import Folder
door = LocalDoor(Folder.at(Path({str(door.jobs.path)!r})), Path({str(home)!r}), worker={WORKER!r})
door.submit(JobSpec(job_id="job-1", kind="tiny", deadline_s=600.0, config={{"until": {str(go)!r}}}), {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", script], check=False)

    assert result.returncode == -signal.SIGKILL
    assert door.poll("job-1").phase is JobPhase.RUNNING
    go.touch()
    assert reason(door) is ExitReason.COMPLETED
    assert (door.collect("job-1") / "outputs" / "count").read_text() == "once\n"


def test_a_job_whose_processes_are_all_killed_is_lost(door: LocalDoor) -> None:
    """Nobody asked for it and there is no exit record: `lost`."""
    start(door, sleep_s=240)
    os.killpg(door.poll("job-1").placement["pid"], signal.SIGKILL)

    assert reason(door) is ExitReason.LOST


def test_a_program_without_its_worker_still_counts_as_running_and_can_be_ended(
    door: LocalDoor,
) -> None:
    """When the worker alone is killed, the program holds the job's lock, and the group is found."""
    start(door, sleep_s=240)
    os.kill(door.poll("job-1").placement["pid"], signal.SIGKILL)

    assert door.poll("job-1").phase is JobPhase.RUNNING
    door.cancel("job-1")
    assert reason(door) is ExitReason.CANCELLED


def test_a_worker_that_dies_with_the_cancellation_unread_takes_its_program_along(
    door: LocalDoor,
) -> None:
    """The signal reached the worker and the worker died of another one first."""
    start(door, sleep_s=240)
    worker = door.poll("job-1").placement["pid"]
    os.kill(worker, signal.SIGSTOP)
    door.cancel("job-1")
    os.kill(worker, signal.SIGKILL)

    assert reason(door) is ExitReason.CANCELLED


def test_the_worker_sees_the_emergency_lock_by_itself(door: LocalDoor, home: Path) -> None:
    """With no daemon alive, a lock file still ends the job with all its processes."""
    start(door, sleep_s=240, deaf=True, child=True)
    child = int((door.jobs.path / "job-1" / "outputs" / "child.pid").read_text())

    EmergencyLock(home).set("smoke", now=SystemClock().now())

    status = wait_for(
        lambda: (s := door.poll("job-1")).phase is JobPhase.ENDED and s, what="the end"
    )
    assert status.exit is not None
    assert status.exit.reason is ExitReason.CANCELLED
    assert "emergency lock" in status.exit.detail
    wait_for(lambda: is_gone(child), what="the grandchild to be gone")


def test_a_job_never_starts_under_the_emergency_lock(door: LocalDoor, home: Path) -> None:
    """The lock may appear between the daemon's look and the start: the worker looks again."""
    EmergencyLock(home).set("smoke", now=SystemClock().now())
    door.submit(tiny(), {})

    assert reason(door) is ExitReason.CANCELLED
    assert not (door.jobs.path / "job-1" / "outputs" / "started").exists()


def test_a_job_can_be_ended_when_the_drive_has_gone(
    door: LocalDoor, drive: Drive, tmp_path: Path
) -> None:
    """What is needed to find its processes lies on the internal disk; no folder appears instead."""
    pid = start(door, sleep_s=240)
    drive.root.rename(tmp_path / "pulled")

    door.cancel("job-1", at_once=True)

    wait_for(lambda: is_gone(pid), what="the program to be gone")
    assert reason(door) is ExitReason.CANCELLED
    with pytest.raises(DriveError):
        door.submit(JobSpec(job_id="job-2", kind="tiny", deadline_s=1.0), {})
    assert not drive.root.exists()


def test_a_worker_that_cannot_be_started_is_an_unavailable_door(drive: Drive, home: Path) -> None:
    """Nothing was started; the same job starts once the door works."""
    jobs = drive.folder("system_cache", "jobs")
    with pytest.raises(DoorUnavailable):
        LocalDoor(jobs, home, worker=("/nowhere/python",)).submit(tiny(), {})

    door = LocalDoor(jobs, home, worker=WORKER)
    door.submit(tiny(), {})
    assert reason(door) is ExitReason.COMPLETED


def test_a_crash_while_the_bundle_is_made_leaves_none(drive: Drive, home: Path) -> None:
    """A bundle is complete or absent; the leftovers have a hidden temporary name."""
    jobs = drive.folder("system_cache", "jobs")
    script = f"""
from pathlib import Path
from scf.dispatch.job import JobSpec
from scf.dispatch.local import LocalDoor
from scf.storage.partitions import Folder
door = LocalDoor(Folder.at(Path({str(jobs.path)!r})), Path({str(home)!r}), worker={WORKER!r})
door.submit(JobSpec(job_id="job-1", kind="tiny", deadline_s=600.0), {{}})
"""
    for name in ("durable.before_rename", "durable.folder.before_rename"):
        env = {**os.environ, "SCF_FAIL": f"{name}:kill"}
        subprocess.run([sys.executable, "-c", script], env=env, check=False)
        assert not (jobs.path / "job-1").exists()
        assert all(path.name.startswith(".job-1.tmp-") for path in jobs.path.iterdir())
    door = LocalDoor(jobs, home, worker=WORKER)
    door.submit(tiny(), {})
    assert reason(door) is ExitReason.COMPLETED
    shutil.rmtree(jobs.path)
