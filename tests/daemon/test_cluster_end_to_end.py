"""The whole way on a cluster: two rented machines in networks of their own train one model.

As test_cloud_end_to_end.py, with `[runpod] nodes = 2`: torchrun over the cluster's own network, gloo
on the CPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from scf.config import load_config
from scf.core.clock import SystemClock
from scf.daemon.allowance import Allowance
from scf.dispatch.pod_record import PodFiles
from scf.runs.record import Attempt
from scf.runs.state import State
from scf.runs.store import RunStore
from support.cloud_settings import write_settings
from support.conducting import Works
from support.gaussian_records import gaussian_points, write_points
from support.processes import python_env
from support.rented_pods import MARK, real_provider
from support.ssh_boxes import marked
from support.training_jobs import losses
from support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

KEY = "rpa_CANARY0123456789abcdef"
STEPS = 300
CHECKPOINTS = "outputs/checkpoint/**/state.json"
MORE = f"""
[daemon]
settle_s = 0.0
job_deadline_s = 1200.0
[training]
preset = "tiny"
device = "cpu"
max_seconds = 900.0
max_steps = {STEPS}
batch_size = 512
checkpoint_every_s = 0.5
[doors]
order = ["runpod"]
"""


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    with real_provider(has_network=True, key=KEY) as provider:
        yield provider


@pytest.fixture
def works(tmp_path: Path, provider: FakeRunpod) -> Works:
    works = Works(tmp_path)
    path = works.root / "fossil_vault" / "drop" / "points.ndjson"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_points(path, gaussian_points(600), families=60)
    then = time.time() - 60
    os.utime(path, (then, then))
    write_settings(works.home, works.root, provider, more=MORE, nodes=2)
    key_file = works.home / "runpod.key"
    key_file.touch(mode=0o600)
    key_file.write_text(KEY)
    return works


def test_two_rented_machines_learn_what_one_learns_though_one_is_lost_on_the_way(
    works: Works, provider: FakeRunpod
) -> None:
    """From records to a promoted generation; the clusters are gone, the bill is within the cap."""
    with works.process("--until-idle") as daemon:
        run = works.wait_for_state(State.SUBMITTED, limit_s=240)
        first = works.root / "system_cache" / "jobs" / f"{run.run_id}-train-ebdm-1"
        # Held in mid-training, however fast the machine is.
        wait_for(lambda: hold(provider), what="a checkpoint on a member", limit_s=240)
        wait_for(
            lambda: list(first.glob(CHECKPOINTS)),
            what="a checkpoint to come back",
            limit_s=240,
        )
        provider.delete_by_hand(provider.all_clusters[0].members[1].pod_id)
        assert daemon.wait(timeout=600) == 0, (works.base / "daemon.err").read_text()

    lost, train = attempts(works, run.run_id)
    assert lost.exit_reason == "lost", lost.receipt
    assert "peer" in str(lost.receipt["detail"]).lower() or "node 1" in lost.receipt["detail"]
    second = first.with_name(f"{run.run_id}-train-ebdm-2")
    notes = [json.loads(line) for line in (second / "progress.ndjson").read_text().splitlines()]
    assert next(note["step"] for note in notes if "step" in note) > 1  # it went on, not anew
    assert works.generations() == ["ebdm_gen0001"]

    # They are gone, and they were two, of two members each.
    wait_for(lambda: not provider.alive(), what="the clusters to be given back", limit_s=240)
    assert provider.alive_clusters() == []
    assert [len(cluster.members) for cluster in provider.all_clusters] == [2, 2]
    # The bill is within what was promised before, which is within the cap.
    config = load_config(works.home, environment={})
    for attempt in (lost, train):
        promise = Allowance(works.home, SystemClock()).of(attempt.attempt_id)
        record = PodFiles(works.home / "runpod").read(attempt.attempt_id)
        cluster_id = attempt.receipt["placement"]["cluster_id"]
        spent = sum(
            pod.cost_usd for pod in provider.all_pods if pod.cluster.cluster_id == cluster_id
        )
        assert 0 < spent <= promise.max_usd <= config.runpod.max_usd_per_job
        assert record.rented[0].usd_per_h == 0.5

    # The same minibatches of the same size: the same losses on the validation fossils.
    one, two = losses(alone(works, second)), losses(second)
    assert [step for step, _ in one] == [step for step, _ in two]
    assert (len(one) >= 3, one[-1][0]) == (True, STEPS)
    for (_, alone_loss), (_, together_loss) in zip(one, two, strict=True):
        assert together_loss == pytest.approx(alone_loss, rel=2e-3)


def hold(provider: FakeRunpod) -> bool:
    """Stop the second member's training, and so both, as soon as the first has a checkpoint."""
    folders = [
        provider.servers[pod.pod_id].folder
        for cluster in provider.all_clusters[:1]
        for _, pod in sorted(cluster.members.items())
        if pod.pod_id in provider.servers
    ]
    if len(folders) < 2 or not any(folders[0].glob(f"workspace/jobs/*/{CHECKPOINTS}")):
        return False
    for pid in marked(f"{MARK}={folders[1].name}"):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"train_ebdm" in command and b"torch.distributed.run" not in command:
            os.kill(pid, signal.SIGSTOP)
    return True


def alone(works: Works, bundle: Path) -> Path:
    """A bundle with the same plan and settings, trained by one process here from the beginning."""
    out = works.base / "alone"
    checkpoint = str(out / "outputs" / "checkpoint")
    command = [
        *(sys.executable, "-m", "scf.training.train_ebdm", "--out", checkpoint),
        *("--plan", str(bundle / "inputs" / "plan.json")),
        *("--config", str(bundle / "inputs" / "train_config.json")),
        *("--vault", str(works.root / "fossil_vault")),
    ]
    subprocess.run(command, check=True, env=python_env(), capture_output=True, timeout=600)
    return out


def attempts(works: Works, run_id: str) -> list[Attempt]:
    store = RunStore.open(works.home, SystemClock())
    try:
        return store.attempts(run_id, "train_ebdm")
    finally:
        store.close()
