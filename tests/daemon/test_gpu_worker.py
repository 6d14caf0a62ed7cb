"""The worker by itself: as a stranger starts it, and what it makes of a program's end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core.errors import InputError
from scf.core.identity import sha256_hex
from scf.daemon import gpu_worker
from scf.daemon.gpu_worker import KINDS, check_inputs, reason_of
from scf.dispatch.bundle import Bundle, make_bundle
from scf.dispatch.job import ExitReason, JobInput, JobSpec
from scf.storage.partitions import Folder
from support.processes import python_env
from support.tiny_worker import WORKER
from support.waiting import wait_for


def bundle(tmp_path: Path, kind: str = "tiny", **todo: object) -> Bundle:
    spec = JobSpec(job_id="job-1", kind=kind, deadline_s=600.0, config=todo)
    return make_bundle(Folder.at(tmp_path / "jobs"), spec, {})


def work(path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*WORKER, str(path), *options],
        env=python_env(),
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_a_bundle_is_done_by_hand(tmp_path: Path) -> None:
    """From another folder, with a relative path; the second time there is nothing to do."""
    made = bundle(tmp_path)
    result = subprocess.run(
        [*WORKER, "jobs/job-1"], cwd=tmp_path, env=python_env(), capture_output=True, timeout=300
    )
    assert result.returncode == 0
    record = made.verify_outputs()
    assert record.reason is ExitReason.COMPLETED
    assert made.heartbeat()["job_id"] == "job-1"

    assert work(made.path).returncode == 3


def test_a_folder_that_is_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    result = work(tmp_path)

    assert result.returncode == 2
    assert "spec.json is missing" in result.stderr


def test_two_workers_at_one_bundle_are_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path, sleep_s=240.0, listens=True)
    with subprocess.Popen([*WORKER, str(made.path)], env=python_env()) as first:
        started = made.path / "outputs" / "started"
        wait_for(lambda: started.exists() and started.read_text(), what="the program")
        second = work(made.path)
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=120)

    assert second.returncode == 1
    assert "another worker" in second.stderr
    record = made.exit()
    assert record is not None
    assert record.reason is ExitReason.PREEMPTED
    assert (made.path / "outputs" / "saved").exists()


def test_the_lock_ends_a_job_that_was_started_by_hand(tmp_path: Path) -> None:
    """With `--home`; exit code 4."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "EMERGENCY_LOCK").touch()
    made = bundle(tmp_path)

    assert work(made.path, "--home", str(tmp_path / "home")).returncode == 4
    record = made.exit()
    assert record is not None
    assert record.reason is ExitReason.CANCELLED


def test_an_input_that_differs_is_bad_data(tmp_path: Path) -> None:
    """The program is not started."""
    plan = JobInput("plan.json", "inputs/plan.json", sha256_hex(b"{}"))
    spec = JobSpec(job_id="job-1", kind="tiny", deadline_s=600.0, inputs=(plan,))
    made = make_bundle(Folder.at(tmp_path / "jobs"), spec, {"plan.json": b"{}"})
    check_inputs(made.path, spec)
    (made.path / "inputs" / "plan.json").write_bytes(b"{ }")

    with pytest.raises(InputError, match=r"plan\.json: expected"):
        check_inputs(made.path, spec)
    assert work(made.path).returncode == 1
    record = made.exit()
    assert record is not None
    assert record.reason is ExitReason.BAD_DATA
    assert not (made.path / "outputs" / "started").exists()


def test_the_real_kinds_are_commands_with_absolute_programs() -> None:
    """By module name: the worker does not import what it starts."""
    inputs = (
        JobInput("plan.json", "inputs/plan.json", "0" * 64),
        JobInput("train_config.json", "inputs/train_config.json", "0" * 64),
        JobInput("parent", "/zoo/ebdm_gen0001/checkpoint"),
        JobInput("checkpoint", "/jobs/a/outputs/checkpoint"),
        JobInput("champion", "/zoo/ebdm_gen0001/checkpoint"),
        JobInput("anchor.json", "inputs/anchor.json", "0" * 64),
        JobInput("earlier-4-ebdm_gen0002", "/zoo/ebdm_gen0002/checkpoint"),
    )
    spec = JobSpec("job-1", "train_ebdm", 1.0, inputs=inputs, vault="/vault")

    assert KINDS["train_ebdm"](spec) == [
        sys.executable, "-m", "scf.training.train_ebdm", "--plan", "inputs/plan.json",
        "--vault", "/vault", "--config", "inputs/train_config.json", "--out",
        "outputs/checkpoint", "--progress", "progress.ndjson", "--resume",
        "--parent", "/zoo/ebdm_gen0001/checkpoint",
    ]  # fmt: skip
    assert KINDS["measure"](spec) == [
        sys.executable, "-m", "scf.verification.measure", "--checkpoint",
        "/jobs/a/outputs/checkpoint", "--plan", "inputs/plan.json", "--vault", "/vault",
        "--out", "outputs/report", "--champion", "/zoo/ebdm_gen0001/checkpoint",
        "--anchor", "inputs/anchor.json",
        "--earlier", "4", "ebdm_gen0002", "/zoo/ebdm_gen0002/checkpoint",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"needs the input 'plan\.json'"):
        KINDS["measure"](JobSpec("job-1", "measure", 1.0, inputs=inputs[3:], vault="/vault"))
    with pytest.raises(InputError, match="needs `vault`"):
        KINDS["train_ebdm"](JobSpec("job-1", "train_ebdm", 1.0, inputs=inputs))


@pytest.mark.parametrize(
    ("returncode", "note", "log", "oom", "reason"),
    [
        (0, {}, "", False, "completed"),
        (0, {"error": "Diverged"}, "", True, "completed"),
        (1, {"error": "Diverged"}, "train_ebdm: training diverged", False, "diverged"),
        (1, {"error": "PlanInvalid", "kind": "bad_data"}, "", False, "bad_data"),
        (1, {}, "torch.OutOfMemoryError: CUDA out of memory. Tried ...", False, "out_of_memory"),
        (1, {}, "MemoryError\n", False, "out_of_memory"),
        (1, {"error": "OutOfMemory"}, "Set a smaller microbatch", False, "out_of_memory"),
        (-9, {}, "", True, "out_of_memory"),
        (-9, {}, "", False, "worker_error"),
        (
            6,
            {"error": "BudgetExceeded", "kind": "error"},
            "the disk is full",
            False,
            "worker_error",
        ),
    ],
)
def test_every_end_has_its_reason(
    returncode: int, note: dict[str, object], log: str, oom: bool, reason: str
) -> None:
    found, detail = reason_of(returncode, note, log, was_oom_killed=oom)

    assert found == reason
    assert detail or reason == "completed" or not log


def test_help_would_do_for_a_stranger(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu_worker.main(["--help"])

    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("BUNDLE", "spec.json", "exit.json", "SIGTERM", "Exit codes"):
        assert word in text


def test_no_torch_in_the_worker() -> None:
    """It starts programs by name; importing it imports none of them."""
    code = "import sys, scf.daemon.gpu_worker; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0


def test_progress_reads_the_last_whole_note(tmp_path: Path) -> None:
    """A half-written last line is passed over; only the file's end is read."""
    made = bundle(tmp_path)
    assert made.last_progress() == {}
    lines = [json.dumps({"step": step}) for step in range(10_000)]
    (made.path / "progress.ndjson").write_text("\n".join(lines) + '\n{"step": 100')

    assert made.last_progress() == {"step": 9999}


def test_it_ends_with_the_gate_of_its_job(tmp_path: Path) -> None:
    """The process that Ray started for the job is gone: the program may save, and all of it ends."""
    gate = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    made = bundle(tmp_path, sleep_s=240.0, listens=True)
    env = python_env(SCF_WHILE_PID=str(gate.pid))
    with subprocess.Popen([*WORKER, str(made.path)], env=env) as worker:
        started = made.path / "outputs" / "started"
        wait_for(lambda: started.exists() and started.read_text(), what="the program to start")
        gate.kill()
        gate.wait()
        worker.wait(120)
    record = made.exit()
    assert record is not None
    assert record.reason is ExitReason.PREEMPTED
    assert (made.path / "outputs" / "saved").exists()
