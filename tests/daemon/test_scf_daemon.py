"""The conductor, from dropped files to a release, on its own clock and in its own process."""

import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.audit.check import check_log
from scf.core.errors import DriveError, EmergencyLocked, OperatorError
from scf.daemon.heartbeat import DaemonState, is_running, read_state
from scf.daemon.scf_daemon import main
from scf.runs.state import State
from scf.signing.keys import public_keys
from scf.storage.instance_lock import AlreadyRunning
from support.clocks import ManualClock
from support.conducting import Works, tick_until
from support.waiting import is_gone, wait_for


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path)


def states(works: Works) -> list[State]:
    return [transition.to_state for transition in works.transitions()]


WHOLE_WAY = [
    State.DISCOVERED, State.VALIDATED, State.PLANNED, State.SUBMITTED, State.RETURNED,
    State.VERIFIED, State.PROVEN, State.PROMOTED, State.RELEASED,
]  # fmt: skip


def test_dropped_files_become_a_release(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn of the loop; every step is in the audit log, which holds."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_sleep_s": 0.5}))
    works.drop("a.ndjson", range(120))
    lines: list[str] = []

    assert works.until_idle(lines.append) == 0

    (run,) = works.runs()
    assert states(works) == WHOLE_WAY
    assert run.facts["generation"] == "ebdm_gen0001"
    assert run.facts["fossils"] == 120
    assert works.generations() == ["ebdm_gen0001"]
    assert len(list((works.root / "release_history").glob("week-*"))) == 1
    assert any("step 2 of at most 2" in line for line in lines)
    audit = works.root / "zk_proofs" / "audit"
    assert check_log(audit, public_keys(works.home / "keys")["foundry"]).ok
    indices = [transition.audit_index for transition in works.transitions()]
    assert None not in indices
    assert indices == sorted(set(indices))


def test_nothing_new_means_nothing_done(works: Works) -> None:
    """The second time there is nothing to do: no run, no entry, no release."""
    works.drop("a.ndjson", range(120))
    works.until_idle()
    before = (len(works.transitions()), works.history())

    assert works.until_idle() == 0

    assert (len(works.transitions()), works.history()) == before


def test_a_second_generation_begins_from_the_first_and_is_held_against_it(works: Works) -> None:
    """Fresh fossils make another run, whose parent is the champion."""
    works.drop("a.ndjson", range(120))
    works.until_idle()
    works.drop("b.ndjson", range(120, 240))
    works.until_idle()

    first, second = works.runs()
    assert (first.state, second.state) == (State.RELEASED, State.PROMOTED)
    assert second.facts["parent"]["generation"] == "ebdm_gen0001"
    assert second.facts["measured_against"] == "ebdm_gen0001"
    assert [move["generation"] for move in works.history()] == ["ebdm_gen0001", "ebdm_gen0002"]


def test_too_few_fresh_fossils_start_nothing(works: Works) -> None:
    works.drop("a.ndjson", range(63))
    works.until_idle()

    assert works.runs() == []


def test_the_same_bytes_are_ingested_once(works: Works) -> None:
    """A copy under another name, or the same file after a restart, is not read again."""
    works.set(min_fresh_fossils=1000)
    works.drop("a.ndjson", range(10))
    lines: list[str] = []
    works.until_idle(lines.append)
    works.drop("copy-of-a.ndjson", range(10))
    works.until_idle(lines.append)

    assert [line for line in lines if "fossils in" in line] == [
        line for line in lines if line.startswith("drop/a.ndjson: 10 fossils in")
    ]
    assert len(lines) >= 1


def test_a_file_that_still_grows_is_left_alone(works: Works) -> None:
    """Until it has been still for `settle_s`, by its own time or by ours."""
    works.set(min_fresh_fossils=1000, settle_s=5.0)
    clock = ManualClock(datetime.now(UTC))
    works.drop("a.ndjson", range(10), age_s=0)
    with works.conductor(clock) as (conductor, talk):
        assert not conductor.tick().is_idle
        clock.advance(4)
        with (works.root / "fossil_vault/drop/a.ndjson").open("ab") as file:
            file.write(b"\n")
        os.utime(works.root / "fossil_vault/drop/a.ndjson", (time.time() + 4,) * 2)
        conductor.tick()
        assert not any("fossils in" in line for line in talk)
        for _ in range(10):
            clock.advance(3)
            conductor.tick()
        assert any("10 fossils in" in line for line in talk)


def test_a_rejected_checkpoint_keeps_its_reason_and_report(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is against it: nothing is promoted, nothing is released."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"gain": -0.2}))
    works.drop("a.ndjson", range(120))
    works.until_idle()

    (run,) = works.runs()
    assert run.state is State.REJECTED
    assert "not shown to be lower" in run.reason
    report = works.root / "system_cache/jobs" / run.facts["measure_attempt"] / "outputs/report"
    assert (report / "report.json").exists()
    assert works.generations() == []
    assert works.until_idle() == 0
    assert len(works.runs()) == 1


def test_a_job_that_keeps_failing_is_parked_and_blocks_nobody(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tries with growing pauses, then parked with its reason; fresh fossils get their run."""
    monkeypatch.setattr("scf.daemon.advance.BACKOFF_FIRST_S", 0.01)
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_exit": 9}))
    works.drop("a.ndjson", range(120))
    works.until_idle()
    (run,) = works.runs()
    assert run.state is State.FAILED
    assert "parked after 3 tries: worker_error: exit code 9" in run.reason

    monkeypatch.delenv("SCF_TINY")
    works.drop("b.ndjson", range(120, 240))
    works.until_idle()
    assert [run.state for run in works.runs()] == [State.FAILED, State.RELEASED]


def test_a_run_that_would_fail_again_is_not_tried_again(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diverged with this plan and this seed is diverged the next time, too."""
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_error": "Diverged"}))
    works.drop("a.ndjson", range(120))
    works.until_idle()

    (run,) = works.runs()
    assert (run.state, run.tries) == (State.FAILED, 1)
    assert run.reason.startswith("parked, it would fail again: diverged")


def test_a_stage_that_always_breaks_parks_its_run_with_the_reason(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback is in the log, with the run's id."""
    monkeypatch.setattr("scf.daemon.advance.BACKOFF_FIRST_S", 0.01)
    works.drop("a.ndjson", range(120))
    with works.conductor() as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.VERIFIED})))
        monkeypatch.setattr(
            conductor._errands.bench.rooms, "attest", lambda *a, **k: 1 / 0, raising=False
        )
        tick_until(conductor, lambda tick: tick.is_idle)
        (run,) = conductor.store.runs()

    assert run.state is State.FAILED
    assert run.reason == "parked after 3 tries: ZeroDivisionError: division by zero"
    text = (works.home / "logs/daemon.ndjson").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    broken = [row for row in logged if row["event"] == "run.stage_failed"]
    assert len(broken) == 3
    assert broken[0]["run"] == run.run_id
    assert "ZeroDivisionError" in broken[0]["exception"]


def test_a_release_that_cannot_be_packed_is_said_and_blocks_no_run(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the end is told what is not done."""
    monkeypatch.setattr("scf.daemon.advance.BACKOFF_FIRST_S", 0.01)

    def broken(self):
        raise OperatorError("no room on the shelf")

    monkeypatch.setattr("scf.daemon.rooms.Rooms.make_release", broken)
    works.drop("a.ndjson", range(120))
    with pytest.raises(OperatorError, match="not done after 3 tries: release"):
        works.until_idle()
    assert works.runs()[0].state is State.PROMOTED

    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(works.base / "config"))
    works.until_idle()
    assert works.runs()[0].state is State.RELEASED


def test_another_drive_under_the_same_name_is_a_missing_drive(works: Works) -> None:
    """A home belongs to one drive; nothing is written to another."""
    from scf.storage.partitions import Drive

    works.root.rename(works.base / "own")
    Drive.scaffold(works.root)
    before = sorted(works.root.rglob("*"))

    with pytest.raises(DriveError, match="the home's is"):
        works.until_idle()
    assert sorted(works.root.rglob("*")) == before


def test_another_run_overtakes_one_that_waits_for_its_retry(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of one run is no pause of the conductor."""
    works.set(settle_s=0.0, auto_release=False)
    clock = ManualClock(datetime.now(UTC))
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_exit": 9}))
    works.drop("a.ndjson", range(120))
    with works.conductor(clock) as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.LOST})))
        monkeypatch.delenv("SCF_TINY")
        works.drop("b.ndjson", range(120, 240))
        clock.advance(4.0)  # less than the backoff of 5 s
        conductor._errands.pulse._next_scan = 0.0
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))

        assert [run.state for run in conductor.store.runs()] == [State.LOST, State.PROMOTED]


def test_a_clock_set_back_parks_no_run(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that lies further ahead than any backoff is due."""
    works.set(settle_s=0.0, auto_release=False)
    clock = ManualClock(datetime.now(UTC))
    monkeypatch.setenv("SCF_TINY", json.dumps({"train_exit": 9}))
    works.drop("a.ndjson", range(120))
    with works.conductor(clock) as (conductor, _):
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.LOST})))
        monkeypatch.delenv("SCF_TINY")
        clock.jump(-86400 * 3)
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))


def test_a_measure_that_fails_is_tried_again(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is not repeated for it."""
    works.set(settle_s=0.0, auto_release=False)
    clock = ManualClock(datetime.now(UTC))
    monkeypatch.setenv("SCF_TINY", json.dumps({"measure_exit": 9}))
    works.drop("a.ndjson", range(120))
    with works.conductor(clock) as (conductor, talk):
        tick_until(conductor, lambda _: any("measuring: worker_error" in line for line in talk))
        monkeypatch.delenv("SCF_TINY")
        clock.advance(6)
        tick_until(conductor, lambda _: bool(conductor.store.runs({State.PROMOTED})))
        (run,) = conductor.store.runs()
        kinds = [attempt.kind for attempt in conductor.store.attempts(run.run_id)]
        assert kinds == ["train_ebdm", "measure", "measure"]


def test_two_daemons_on_one_home_are_refused(works: Works) -> None:
    """The second says who holds it, and changes nothing."""
    with works.process() as first:
        works.wait_until_running()
        with pytest.raises(AlreadyRunning, match="scf daemon"):
            works.until_idle()
        assert works.run_process("--once") == 1
        first.terminate()
        assert first.wait(timeout=120) == 0
    assert not is_running(works.home)


def test_two_daemons_with_two_homes_on_one_root_are_refused(works: Works, tmp_path: Path) -> None:
    """The drive is held, too."""
    other = Works.__new__(Works)
    other.base, other.settings = tmp_path / "other", {}
    (other.base / "home").mkdir(parents=True)
    (other.home / "keys").symlink_to(works.home / "keys")
    (other.home / "scf.toml").write_text(f'root = "{works.root}"\n')
    with works.conductor() as (conductor, _):
        conductor.open()
        with pytest.raises(AlreadyRunning, match=str(works.home)):
            other.until_idle()


def test_ctrl_c_lets_the_job_go_and_the_next_daemon_goes_on(works: Works) -> None:
    """SIGINT: jobs are asked to end, exit code 130, and no try is counted."""
    works.drop("a.ndjson", range(120))
    with works.process("--until-idle", SCF_TINY=json.dumps({"train_sleep_s": 240})) as first:
        works.wait_for_state(State.SUBMITTED)
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=120) == 130

    (run,) = works.runs()
    assert (run.state, run.tries) == (State.LOST, 0)
    assert "cancelled" in run.reason
    works.until_idle()
    assert works.runs()[0].state is State.RELEASED


def test_the_drive_is_pulled_while_a_job_runs(works: Works, tmp_path: Path) -> None:
    """State DRIVE_MISSING, the job is ended, nothing appears where the drive was; then it goes on."""
    works.drop("a.ndjson", range(120))
    with works.process(SCF_TINY=json.dumps({"train_sleep_s": 240})) as daemon:
        works.wait_for_state(State.SUBMITTED)
        (lock,) = (works.home / "local_jobs").glob("*.lock")
        pid = json.loads(lock.read_text())["pid"]
        works.root.rename(tmp_path / "pulled")
        wait_for(
            lambda: read_state(works.home).get("state") == DaemonState.DRIVE_MISSING,
            what="state DRIVE_MISSING",
        )
        wait_for(lambda: is_gone(pid), what="the job to be gone")
        time.sleep(0.3)
        assert not works.root.exists()
        assert works.cli("status") == 0

        (tmp_path / "pulled").rename(works.root)
        wait_for(
            lambda: read_state(works.home).get("state") == DaemonState.WORKING, what="work again"
        )
        (run,) = works.runs()
        assert run.tries == 0
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=120) == 0


def test_without_the_drive_it_does_not_start(works: Works, tmp_path: Path) -> None:
    """Exit code 7, and no folder is made on the system disk."""
    works.root.rename(tmp_path / "pulled")

    with pytest.raises(DriveError):
        works.until_idle()
    for options in (["--once"], ["--until-idle"], []):
        assert main(["--home", str(works.home), *options]) == 7
    assert not works.root.exists()


def test_a_full_drive_is_a_state_with_a_name(tmp_path: Path, small_disk: Path) -> None:
    """Nothing is lost: with room again, the same daemon goes on."""
    works = Works.__new__(Works)
    works.base, works.settings = tmp_path, {}
    from scf.daemon.setup import initialise

    initialise(works.home, small_disk / "root")
    (works.home / "scf.toml").write_text(f'root = "{small_disk / "root"}"\n')
    source = tmp_path / "a.ndjson"
    Works.drop(works, "a.ndjson", range(1500)).rename(source)
    then = time.time() - 60
    drop = small_disk / "root" / "fossil_vault" / "a.ndjson"
    drop.write_bytes(source.read_bytes())
    os.utime(drop, (then, then))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 650_000)
    with works.conductor() as (conductor, _):
        full = tick_until(conductor, lambda tick: tick.state is DaemonState.DISK_FULL)
        assert full.trouble is not None
        ballast.unlink()
        conductor._errands._not_before.clear()
        tick_until(conductor, lambda tick: tick.state is not DaemonState.DISK_FULL)


def test_help_would_do_for_a_stranger(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])

    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("--until-idle", "--once", "--home", "--root", "Exit codes"):
        assert word in text


def test_it_refuses_to_start_under_the_lock(works: Works) -> None:
    works.cli("lock", "--reason", "smoke")

    with pytest.raises(EmergencyLocked):
        works.until_idle()
    assert main(["--home", str(works.home), "--once"]) == 4
