"""A lock file at any moment: no new effect, jobs ended with all their processes, exit code 4."""

import json
import os
import time
from pathlib import Path

import pytest

from scf.audit.log import AuditLog
from scf.control.emergency_lock import LOCK_NAME
from scf.core.errors import EmergencyLocked
from scf.daemon.heartbeat import DaemonState, read_state
from scf.runs.state import State
from scf.storage.partitions import Folder
from support.conducting import Works, tick_until
from support.foundries import tree_bytes
from support.waiting import is_gone, wait_for


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path)
    works.drop("a.ndjson", range(120))
    return works


def drive_without_jobs(works: Works) -> dict[str, bytes]:
    return {k: v for k, v in tree_bytes(works.root).items() if not k.startswith("system_cache")}


@pytest.mark.parametrize(
    "state",
    [State.DISCOVERED, State.PLANNED, State.SUBMITTED, State.VERIFIED, State.PROMOTED],
)
def test_a_lock_between_any_two_stages_stops_everything(works: Works, state: State) -> None:
    """Not a byte changes on the drive while it is set; afterwards the run ends as ever."""
    with works.conductor() as (conductor, _):
        reached: list[State] = []
        real_move, real_add = conductor.store.move, conductor.store.add_run

        def lock_at(run):
            reached.append(run.state)
            if run.state is state and not conductor.lock.is_set and len(reached) < 99:
                (works.home / LOCK_NAME).touch()
            return run

        def move(*args, **kwargs):
            return lock_at(real_move(*args, **kwargs))

        def add_run(*args, **kwargs):
            run, is_new = real_add(*args, **kwargs)
            return lock_at(run), is_new

        conductor.store.move, conductor.store.add_run = move, add_run
        locked = tick_until(conductor, lambda t: t.state is DaemonState.EMERGENCY_LOCKED)
        assert isinstance(locked.trouble, EmergencyLocked)
        conductor.store.move, conductor.store.add_run = real_move, real_add
        wait_for(lambda: not conductor.has_running_jobs(), what="the jobs' end")
        before, transitions = drive_without_jobs(works), len(conductor.store.transitions())
        for _ in range(5):
            assert conductor.tick().state is DaemonState.EMERGENCY_LOCKED
            time.sleep(0.02)
        assert drive_without_jobs(works) == before
        assert len(conductor.store.transitions()) == transitions
        assert not conductor.has_running_jobs()

        (works.home / LOCK_NAME).unlink()
        tick_until(conductor, lambda tick: tick.is_idle)

    (run,) = works.runs()
    assert run.state is State.RELEASED
    assert works.generations() == ["ebdm_gen0001"]


@pytest.mark.parametrize("what", ["empty file", "folder", "dangling link", "rubbish"])
def test_whatever_has_the_name_is_a_lock(works: Works, what: str) -> None:
    path = works.home / LOCK_NAME
    if what == "folder":
        path.mkdir()
    elif what == "dangling link":
        path.symlink_to("/nowhere")
    else:
        path.write_bytes(b"" if what == "empty file" else b"\xff" * 1000)

    with pytest.raises(EmergencyLocked):
        works.until_idle()
    assert works.runs() == []


def test_a_lock_during_a_job_ends_all_its_processes_at_once(works: Works) -> None:
    """In the slowest gear, too, and the daemon stays to be unlocked."""
    works.set(gear="STANDARD")
    with works.process(SCF_TINY=json.dumps({"train_sleep_s": 240, "child": True})) as daemon:
        run = works.wait_for_state(State.SUBMITTED)
        lock_file = works.home / "local_jobs" / f"{run.run_id}-train-ebdm-1.lock"
        pid = json.loads(lock_file.read_text())["pid"]
        child = works.root / f"system_cache/jobs/{run.run_id}-train-ebdm-1/outputs/child.pid"
        wait_for(lambda: child.exists() and child.read_text(), what="the job's own child")
        child_pid = int(child.read_text())

        assert works.cli("lock", "--reason", "smoke") == 0
        wait_for(lambda: is_gone(pid) and is_gone(child_pid), what="all to be gone")
        wait_for(
            lambda: read_state(works.home).get("state") == DaemonState.EMERGENCY_LOCKED,
            what="state EMERGENCY_LOCKED",
        )
        assert daemon.poll() is None
        assert works.runs()[0].tries == 0

        assert works.cli("unlock", "--reason", "false alarm") == 0
        wait_for(lambda: works.runs()[0].state is State.SUBMITTED, what="work again")


def test_commands_that_start_effects_exit_with_4(works: Works, capsys) -> None:
    """And say how to go on; status goes on telling."""
    works.cli("lock", "--reason", "smoke")

    assert works.cli("daemon", "run", "--once") == 4
    assert works.cli("daemon", "run", "--until-idle") == 4
    assert "scf unlock --reason" in capsys.readouterr().err
    assert works.cli("status", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["emergency_lock"] is True
    assert told["state"] == "EMERGENCY_LOCKED"


def test_lock_works_when_the_daemon_hangs_and_the_settings_are_broken(
    works: Works, tmp_path: Path
) -> None:
    """It needs neither drive nor settings nor the daemon."""
    (works.home / "scf.toml").write_text("this is not [ TOML")
    works.root.rename(tmp_path / "pulled")

    assert works.cli("lock") == 0
    assert (works.home / LOCK_NAME).exists()
    assert works.cli("lock") == 0


def test_unlock_is_logged_first_and_needs_a_reason(works: Works, capsys) -> None:
    """No reason, or no log to enter it in: still locked."""
    works.cli("lock", "--reason", "smoke in the rack")
    assert works.cli("unlock") == 2
    assert works.cli("unlock", "--reason", "  ") == 2
    works.root.rename(works.base / "pulled")
    assert works.cli("unlock", "--reason", "fine") == 7
    assert (works.home / LOCK_NAME).exists()
    (works.base / "pulled").rename(works.root)

    assert works.cli("unlock", "--reason", "it was toast") == 0
    assert works.cli("unlock", "--reason", "again") == 3

    log = AuditLog.open(Folder.at(works.root / "zk_proofs" / "audit"), works.home)
    (logged,) = [one for one in log.entries() if one.entry.event == "emergency.unlocked"]
    assert logged.entry.details["reason"] == "it was toast"
    assert "smoke in the rack" in logged.entry.details["lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="shows that it holds for root, too")
def test_a_home_that_cannot_be_looked_into_is_locked(works: Works) -> None:
    """The lock's path cannot be read: nothing starts."""
    with works.conductor() as (conductor, _):
        works.home.rename(works.base / "elsewhere")
        try:
            assert conductor.lock.is_set
            with pytest.raises(EmergencyLocked):
                conductor._work()
        finally:
            (works.base / "elsewhere").rename(works.home)


def test_a_pulled_token_is_an_emergency_until_somebody_unlocks(works: Works, capsys) -> None:
    """It ends running jobs, stays set when the token is back, and cannot be unlocked without it."""
    token = works.base / "key" / "scf.token"
    token.parent.mkdir()
    token.touch()
    works.set(hardware_token=str(token), gear="STANDARD")
    with works.process(SCF_TINY=json.dumps({"train_sleep_s": 240})):
        run = works.wait_for_state(State.SUBMITTED)
        held = works.home / "local_jobs" / f"{run.run_id}-train-ebdm-1.lock"
        pid = json.loads(held.read_text())["pid"]
        token.parent.rename(works.base / "pulled")
        wait_for(lambda: is_gone(pid), what="the job to end")
        wait_for((works.home / LOCK_NAME).exists, what="the lock")
        assert works.cli("unlock", "--reason", "never mind") == 1
        assert "hardware token" in capsys.readouterr().err
        (works.base / "pulled").rename(token.parent)
        assert "hardware token" in (works.home / LOCK_NAME).read_text()
        assert works.cli("unlock", "--reason", "the key is back") == 0
        assert works.runs()[0].tries == 0


def test_nothing_starts_without_the_token(works: Works) -> None:
    works.set(hardware_token=str(works.base / "nowhere"))
    with pytest.raises(EmergencyLocked, match="hardware token"):
        works.until_idle()
    assert works.runs() == []
