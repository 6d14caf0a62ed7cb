"""A pod that somebody else has taken over: what it gives back is refused with the reason, and the
pod is ended all the same. And the API key is nowhere where it could be read."""

import json
import os
import pickle
import secrets
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import BROKEN, GARBAGE, LOST_REPLY, NO_BALANCE, Answer, Fault
from scf.core.clock import SystemClock
from scf.core.errors import ScfError, VerificationFailed
from scf.dispatch.dispatcher import BundleMismatch
from scf.dispatch.job import ExitReason, JobExit, JobSpec
from scf.dispatch.returned import ReturnLimits
from scf.dispatch.runpod import RunpodDoor
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.dispatch.runpod_model import PodOrder
from scf.verification.verify_checkpoint import verify_checkpoint
from support.checkpoints import seal, write_checkpoint
from support.cloud_settings import write_settings
from support.hostile_worker import write_hostile
from support.processes import python_env
from support.rented_pods import CHEAP, Doors, real_provider, runpod_door
from support.ssh_boxes import QUICK
from support.waiting import wait_for

pytestmark = pytest.mark.e2e

# No other test, and no other test run on this machine, has it in a process of its own.
KEY = f"rpa_CANARY{secrets.token_hex(16)}"


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    doors = runpod_door(tmp_path)
    yield doors
    doors.close()


def run_job(doors: Doors, settings: object = QUICK, **todo: object) -> tuple[RunpodDoor, JobExit]:
    door = doors(settings=settings)
    door.submit(JobSpec("job-1", "tiny", 600.0, config=todo), {})
    ended = wait_for(lambda: door.poll("job-1").exit, what="the job to end")
    wait_for(lambda: door.poll("job-1").placement["stage"] == "released", what="the pod's end")
    return door, ended


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("(outputs / 'count').write_text('twice\\n')", "expected sha256"),
        ("(outputs / 'l').symlink_to('/etc/passwd')", "neither a file"),
        ("promise('outputs/../../../evil')", "not inside outputs"),
        ("promise('/etc/cron.d/evil')", "not inside outputs"),
        ("promise('outputs/big', 10**13)", "over the limit"),
        ("exit_path.write_bytes(bytes(17 * 2**20))", "exit record"),
        ("exit_path.write_text('[' * 100_000)", "exit record"),
    ],
    ids=["digest", "link", "traversal", "absolute", "huge", "huge record", "deep record"],
)
def test_what_a_hostile_pod_gives_back_is_refused(
    doors: Doors, tmp_path: Path, harm: str, message: str
) -> None:
    worker = tmp_path / "hostile.py"
    write_hostile(worker, harm)

    door, ended = run_job(doors, replace(QUICK, worker=("{python}", str(worker))))

    with pytest.raises(BundleMismatch) as refusal:
        door.collect("job-1")
    assert message in f"{ended.detail} {refusal.value}"
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["job-1"]
    assert doors.provider.alive() == []


def test_an_endless_log_and_huge_outputs_do_not_fill_the_drive(
    doors: Doors, tmp_path: Path
) -> None:
    limits = ReturnLimits(small_max_bytes=1000, file_max_bytes=1000)
    settings = replace(QUICK, limits=limits)

    _, ended = run_job(doors, settings, say="x" * 1000, say_times=2000, checkpoint="y" * 5000)

    assert ended.reason is ExitReason.WORKER_ERROR
    # The outputs once it has ended; or the log, where a look fell between its birth and its growth.
    assert "over the limit" in ended.detail or "far too long" in ended.detail
    bundle = tmp_path / "jobs" / "job-1"
    log = bundle / "worker.log"
    # A file may grow while it is fetched, by so much (`returned.check_arrived`).
    assert not log.exists() or log.stat().st_size <= 2 * limits.small_max_bytes + 2**20
    assert not (bundle / "outputs" / "checkpoint").exists()
    assert doors.provider.alive() == []


def test_a_pickle_in_place_of_safetensors_is_never_opened(tmp_path: Path) -> None:
    """With a digest list that fits it: still refused, and what it would do is not done."""
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {mark}",)

    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, seed=1)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    seal(folder)

    with pytest.raises(VerificationFailed):
        verify_checkpoint(folder)
    assert not mark.exists()


@pytest.mark.parametrize("fault", [BROKEN, GARBAGE, LOST_REPLY, Answer(401, "no"), NO_BALANCE])
def test_the_key_is_in_no_backtrace(fault: Fault) -> None:
    """Of any error of the provider, whole, with the errors that it came of and what they carry."""
    order = PodOrder(name="scf-1", image="w", gpu=CHEAP.gpu, terminate_after=SystemClock().now())
    with FakeRunpod(key=KEY) as provider:
        provider.script("create", fault)
        client = RunpodClient(ApiKey(KEY), rest=provider.rest, graphql=provider.graphql)
        with pytest.raises(ScfError) as caught:
            client.create(order)
        client.close()

    told = "".join(traceback.format_exception(caught.value)) + repr(client) + repr(vars(client))
    cause: BaseException | None = caught.value
    while cause is not None:
        told += repr(cause) + repr(vars(cause))
        cause = cause.__cause__ or cause.__context__
    assert KEY not in told


def test_the_key_is_in_no_command_line_environment_file_or_word(tmp_path: Path) -> None:
    """The whole of `scf pods smoke`, as a process: looked at from outside while it runs."""
    home, key_file = tmp_path / "home", tmp_path / "apart.key"
    key_file.touch(mode=0o600)
    key_file.write_text(KEY)
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        if KEY.encode() in (path / name).read_bytes():
                            seen.add(f"{name} of {(path / 'comm').read_text().strip()}")
                    except OSError:
                        continue
            done.wait(0.05)

    with real_provider(key=KEY) as provider:
        scf = [sys.executable, "-m", "scf.cli.main"]
        env = python_env(XDG_CONFIG_HOME=str(tmp_path / "config"))
        subprocess.run([*scf, "init", "--home", home, "--root", tmp_path / "root"],
                       env=env, check=True, capture_output=True)  # fmt: skip
        write_settings(home, tmp_path / "root", provider, visible_s=0.5, key_file=str(key_file))
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        ran = subprocess.run(
            [*scf, "pods", "smoke", "--max-usd", "0.5", "--timeout", "600", "--job-seconds", "0.1",
             "--home", home], env=env, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        refused = subprocess.run(
            [*scf, "doctor", "--home", home], env=env | {"RUNPOD_API_KEY": KEY[:-1]},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        said = ""
        for words in ("doctor --json", "pods --json", "pods", "reaper run --once --json",
                      "status --json", "config show"):  # fmt: skip
            told = subprocess.run([*scf, *words.split(), "--home", home], env=env,
                                  capture_output=True, text=True, timeout=240)  # fmt: skip
            said += told.stdout + told.stderr
        provider.script("list", *[BROKEN] * 3, GARBAGE, LOST_REPLY)
        for _ in range(3):
            told = subprocess.run([*scf, "pods", "--home", home], env=env, capture_output=True,
                                  text=True, timeout=240)  # fmt: skip
            said += told.stdout + told.stderr
        done.set()
        watcher.join()
        orders = json.dumps([pod.env for pod in provider.all_pods])

    assert ran.returncode == 0, ran.stderr
    assert refused.returncode == 1
    assert seen == set()
    assert KEY not in ran.stdout + ran.stderr + refused.stdout + refused.stderr + orders + said
    assert '"runpod key"' in said  # it was the doctor who spoke
    assert KEY[:-1] not in refused.stdout + refused.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != key_file]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
