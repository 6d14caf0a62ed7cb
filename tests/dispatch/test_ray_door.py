"""The ray door over two nodes in two networks: training, a lost node, a lost head, a wrong token."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.dispatch.bundle import Bundle
from scf.dispatch.follower import FollowSettings
from scf.dispatch.job import ExitReason, JobInput, JobPhase, JobSpec
from scf.dispatch.ray_door import RayDoor, _gate_in
from scf.dispatch.ray_nodes import RayGroup
from scf.dispatch.transfer import BoxFault
from scf.storage.partitions import Folder
from support.ray_lan import RayLan, start_lan
from support.training_jobs import losses, planned
from support.waiting import wait_for

LIMIT_S = 300.0
STEPS = 40


def test_the_gate_is_read_from_the_log() -> None:
    said = 'Running entrypoint ...\nscf-ray-gate/1 {"host": "10.0.0.1", "port": 29700}\nmore\n'
    assert _gate_in(said) == "10.0.0.1:29700"
    assert _gate_in("nothing yet") is None
    for line in ("[]", '{"host": "a b", "port": 1}', '{"host": "a", "port": 70000}', "{"):
        with pytest.raises(BoxFault):
            _gate_in(f"scf-ray-gate/1 {line}")


@pytest.fixture(scope="module")
def lan() -> Iterator[RayLan]:
    """Tests harm it: the last one ends its head."""
    lan = start_lan()
    if lan.cable is None:
        lan.remove()
        pytest.skip("two nodes need network namespaces: root on Linux, and iproute2")
    yield lan
    lan.remove()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    return planned(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def door(lan: RayLan, tmp_path: Path) -> Iterator[RayDoor]:
    """Trains on both nodes with the real worker."""
    (tmp_path / "home").mkdir()
    settings = FollowSettings(look_s=0.3, retry_s=0.2, retry_max_s=1.0, patience_s=3.0)
    cluster = lan.settings(lan.folder / "box", group=RayGroup(nodes=2))
    jobs = Folder.at(tmp_path / "jobs")
    door = RayDoor(cluster, jobs, tmp_path / "home", settings=settings)
    yield door
    door.close()


def submit(door: RayDoor, job_id: str, plan: tuple[bytes, Path], **config: object) -> None:
    settings = {
        "preset": "tiny", "max_steps": STEPS, "max_seconds": 600.0, "batch_size": 64,
        "device": "cpu", "seed": 0, "evaluate_every": 10, "checkpoint_every_s": 10.0, "patience": 0,
    }  # fmt: skip
    files = {"plan.json": plan[0], "train_config.json": canonical_json(settings | config)}
    inputs = tuple(JobInput(n, f"inputs/{n}", sha256_hex(data)) for n, data in files.items())
    door.submit(JobSpec(job_id, "train_ebdm", LIMIT_S, inputs=inputs, vault=str(plan[1])), files)


def ended(door: RayDoor, job_id: str):
    return wait_for(lambda: door.poll(job_id).exit, what=f"{job_id} to end", limit_s=LIMIT_S)


def trains(door: RayDoor, job_id: str, *, saves: bool = False) -> Path:
    """The bundle here, once a step (a checkpoint) of the training over there has come back."""
    bundle = Bundle(door.jobs.path / job_id)

    def came() -> bool:
        assert door.poll(job_id).phase is JobPhase.RUNNING, _log(bundle.path, door.poll(job_id))
        resume = bundle.path / "outputs" / "checkpoint" / "resume"
        is_there = any(resume.glob("*/digests.json")) if saves else True
        return is_there and bundle.last_progress().get("event") == "step"

    wait_for(came, what="training to come back", limit_s=LIMIT_S)
    return bundle.path


@pytest.mark.e2e
@pytest.mark.torch
def test_two_nodes_learn_what_one_learns(
    lan: RayLan, door: RayDoor, plan: tuple[bytes, Path], tmp_path: Path
) -> None:
    """The same minibatches of the same size: the same losses on the validation fossils."""
    from scf.training import train_ebdm

    submit(door, "job-1", plan)
    ended_as = ended(door, "job-1")
    bundle = door.collect("job-1")
    assert ended_as.reason is ExitReason.COMPLETED, _log(bundle, ended_as)
    (tmp_path / "one").mkdir()
    inputs = bundle / "inputs"
    code = train_ebdm.main(
        ["--plan", str(inputs / "plan.json"), "--config", str(inputs / "train_config.json"),
         "--vault", str(plan[1]), "--out", str(tmp_path / "one" / "outputs" / "checkpoint")],
        stop_file=tmp_path / "stop",
    )  # fmt: skip
    assert code == 0

    alone, together = losses(tmp_path / "one"), losses(bundle)
    assert [step for step, _ in alone] == [step for step, _ in together]
    assert len(alone) >= 3
    np.testing.assert_allclose([row[1] for row in together], [row[1] for row in alone], rtol=2e-3)
    assert re.search(
        rf"\(ip={lan.cable.there}, pid=\d+\) world_rank=1", (bundle / "worker.log").read_text()
    )


def _log(bundle: Path, about: object) -> str:
    return f"{about}\n{Bundle(bundle).log_tail()[-5000:]}"
