"""The whole way, with nothing but the provider and the GPU stood in for.

A real HTTP server with the provider's API, pods with sshd in networks of their own (root; else on
loopback), rsync, the code as a wheel, real training and measuring on the CPU, and the daemon.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from scf.config import load_config
from scf.control.emergency_lock import LOCK_NAME
from scf.core.clock import SystemClock, parse_utc
from scf.daemon.allowance import Allowance
from scf.daemon.heartbeat import DaemonState, read_state
from scf.daemon.scf_daemon import run_daemon
from scf.dispatch.pod_record import PodFiles
from scf.runs.state import State
from scf.runs.store import RunStore
from support.cloud_settings import write_settings
from support.conducting import Works
from support.gaussian_records import gaussian_points, write_points
from support.rented_pods import real_provider
from support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

KEY = "rpa_CANARY0123456789abcdef"


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    provider = real_provider(has_network=True, key=KEY)
    with provider:
        yield provider


@pytest.fixture
def works(tmp_path: Path, provider: FakeRunpod) -> Works:
    works = Works(tmp_path)
    drop_points(works, 600)
    configure(works, provider, max_steps=150)
    key_file = works.home / "runpod.key"
    key_file.touch(mode=0o600)
    key_file.write_text(KEY)
    return works


def drop_points(works: Works, num: int) -> None:
    """Normal points, in families of ten, as somebody drops a file."""
    path = works.root / "fossil_vault" / "drop" / "points.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_points(path, gaussian_points(num), families=num // 10)
    then = time.time() - 60
    os.utime(path, (then, then))


def configure(works: Works, provider: FakeRunpod, **training: float) -> None:
    given = {"max_seconds": 60.0, "checkpoint_every_s": 0.5, **training}
    lines = "\n".join(f"{name} = {value}" for name, value in given.items())
    more = f"""
[daemon]
settle_s = 0.0
job_deadline_s = 600.0
[training]
preset = "tiny"
device = "cpu"
{lines}
[doors]
order = ["runpod"]
"""
    write_settings(works.home, works.root, provider, more=more)


def test_from_records_to_a_promoted_generation_on_a_rented_pod(
    works: Works, provider: FakeRunpod
) -> None:
    """Rented, sent, trained, brought back, measured, proven, promoted; the pod is gone, the bill in."""
    talk: list[str] = []
    config = load_config(works.home, environment={"OMP_NUM_THREADS": "1"})
    run_daemon(config, until_idle=True, gear="SINGULARITY", talk=talk.append)

    (run,) = works.runs()
    assert run.state in {State.PROMOTED, State.RELEASED}, run.reason
    assert works.generations() == ["ebdm_gen0001"]
    store = RunStore.open(works.home, SystemClock())
    train, measure = store.attempts(run.run_id)
    store.close()
    assert (train.door, measure.door) == ("runpod", "local")

    # The pod is gone, and it was one.
    wait_for(lambda: not provider.alive(), what="the pod to be given back")
    (pod,) = provider.all_pods
    # The bill is within what was promised before, which is within the cap.
    spent = provider.spent_usd()
    promise = Allowance(works.home, SystemClock()).of(train.attempt_id)
    assert 0 < spent <= promise.max_usd <= config.runpod.max_usd_per_job
    receipt = train.receipt
    assert receipt["placement"]["pod_id"] == pod.pod_id
    assert receipt["placement"]["code"].startswith("sha256:")
    assert 0 < receipt["cost_usd"] <= promise.max_usd
    wait_for(lambda: PodFiles(works.home / "runpod").all()[0].rented[0].until, what="its end")

    # The key is where it was given, and nowhere else: bundles, receipts, logs, proofs, the release,
    # its pages and archives, databases.
    files = {path for path in works.base.rglob("*") if path.is_file()}
    assert any("release_history" in path.parts for path in files)
    holders = [path for path in files if KEY.encode() in path.read_bytes()]
    assert holders == [works.home / "runpod.key"]
    assert KEY not in "\n".join(talk)


def test_a_pod_that_is_lost_in_mid_training_costs_minutes_not_the_run(
    works: Works, provider: FakeRunpod
) -> None:
    """The next pod goes on from the last checkpoint that came back."""
    configure(works, provider, max_steps=1_000_000, max_seconds=15.0)
    with works.process("--until-idle") as daemon:
        run = works.wait_for_state(State.SUBMITTED)
        first = works.root / "system_cache" / "jobs" / f"{run.run_id}-train-ebdm-1"
        steps = wait_for(lambda: checkpoint_step(first), what="a checkpoint to come back")
        provider.delete_by_hand(provider.all_pods[0].pod_id)

        assert daemon.wait(timeout=600) == 0, (works.base / "daemon.err").read_text()

    second = first.with_name(f"{run.run_id}-train-ebdm-2")
    notes = [json.loads(line) for line in (second / "progress.ndjson").read_text().splitlines()]
    # A run from the beginning would note step 1 first.
    assert notes[0]["step"] > steps > 0
    assert works.generations() == ["ebdm_gen0001"]
    assert len(provider.all_pods) == 2
    wait_for(lambda: not provider.alive(), what="the pods to be given back")


def test_the_emergency_lock_ends_the_pod_and_the_run_goes_on_after_it(
    works: Works, provider: FakeRunpod
) -> None:
    """Set twice: once the daemon obeys, and once it hangs (SIGSTOP) and the reaper ends the pod.

    No effect after the lock by the journal's own times; the pod is seen to be gone; nothing is
    deleted; once it is unlocked, the next pod goes on from the last checkpoint.
    """
    configure(works, provider, max_steps=1_000_000, max_seconds=500.0)
    book = PodFiles(works.home / "runpod")

    def is_locked() -> bool:
        return read_state(works.home).get("state") == DaemonState.EMERGENCY_LOCKED

    with works.process() as daemon:
        run = works.wait_for_state(State.SUBMITTED)
        jobs = works.root / "system_cache" / "jobs"
        first, second = (jobs / f"{run.run_id}-train-ebdm-{number}" for number in (1, 2))
        wait_for(lambda: checkpoint_step(first), what="a checkpoint to come back", limit_s=300)
        files = {p for p in works.root.rglob("*") if p.is_file() and "system_cache" not in p.parts}

        assert works.cli("lock", "--reason", "the bill looks wrong") == 0
        locked_at = parse_utc((works.home / LOCK_NAME).read_text().split()[0])
        wait_for(lambda: not provider.alive(), what="the pod's end")
        wait_for(lambda: book.all()[0].released_at, what="the pod to be seen to be gone")
        wait_for(is_locked, what="state EMERGENCY_LOCKED")
        assert [t for t in works.transitions() if parse_utc(t.at) > locked_at] == []
        assert len(provider.all_pods) == 1
        assert book.all()[0].ending == ()
        assert {path for path in files if not path.exists()} == set()
        steps = checkpoint_step(first)
        assert steps > 0

        assert works.cli("unlock", "--reason", "it was right") == 0
        notes = second / "progress.ndjson"
        wait_for(lambda: notes.exists() and notes.read_text(), what="training", limit_s=300)
        # From the beginning it would be 1.
        assert json.loads(notes.read_text().splitlines()[0])["step"] > steps
        assert works.runs()[0].tries == 0

        daemon.send_signal(signal.SIGSTOP)
        try:
            assert works.cli("lock", "--reason", "nobody answers") == 0
            assert works.cli("reaper", "run", "--once") == 0
            assert provider.alive() == []
        finally:
            daemon.send_signal(signal.SIGCONT)
        wait_for(is_locked, what="state EMERGENCY_LOCKED, when it comes back")
        assert len(provider.all_pods) == 2
        assert daemon.poll() is None


def checkpoint_step(bundle: Path) -> int:
    """Step of the newest checkpoint in a bundle; 0 while there is none."""
    steps = [0]
    for path in (bundle / "outputs").glob("checkpoint/**/state.json"):
        steps.append(int(json.loads(path.read_text()).get("step", 0)))
    return max(steps)
