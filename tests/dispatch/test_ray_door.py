"""The ray door over two nodes in two networks: training, a lost node, a lost head, a wrong token."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from scf.core.canonical import canonical_json
from scf.core.errors import DoorUnavailable
from scf.core.identity import sha256_hex
from scf.dispatch.bundle import Bundle
from scf.dispatch.dispatcher import BundleMismatch
from scf.dispatch.follower import FollowSettings
from scf.dispatch.job import ExitReason, JobInput, JobPhase, JobSpec
from scf.dispatch.ray_door import RayDoor, _gate_in
from scf.dispatch.ray_nodes import RayGroup
from scf.dispatch.transfer import BoxFault
from scf.storage.partitions import Folder
from support.hostile_worker import write_hostile
from support.ray_lan import QUICK, RayLan, start_lan
from support.training_jobs import losses, planned
from support.waiting import is_gone, wait_for

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


OpenDoor = Callable[..., RayDoor]


@pytest.fixture
def open_door(lan: RayLan, tmp_path: Path) -> Iterator[OpenDoor]:
    """Opens a door; `settings` of its follower, and changes to those of the cluster."""
    (tmp_path / "home").mkdir()
    opened: list[RayDoor] = []

    def open_one(settings: FollowSettings = QUICK, **changes: object) -> RayDoor:
        cluster = replace(lan.settings(tmp_path / "box"), **changes)
        jobs = Folder.at(tmp_path / "jobs")
        opened.append(RayDoor(cluster, jobs, tmp_path / "home", settings=settings))
        return opened[-1]

    yield open_one
    for door in opened:
        door.close()


@pytest.fixture
def door(open_door: OpenDoor) -> RayDoor:
    """Trains on both nodes with the real worker."""
    settings = FollowSettings(look_s=0.3, retry_s=0.2, retry_max_s=1.0, patience_s=3.0)
    return open_door(settings, group=RayGroup(nodes=2))


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
    trains(door, "job-1")
    assert lan.token not in " ".join(_command_lines(lan))
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
    assert not [path for path in _files(tmp_path) if lan.token.encode() in path.read_bytes()]
    assert re.search(
        rf"\(ip={lan.cable.there}, pid=\d+\) world_rank=1", (bundle / "worker.log").read_text()
    )


@pytest.mark.e2e
@pytest.mark.torch
def test_told_to_end_it_saves_and_a_lost_node_is_a_lost_attempt(
    lan: RayLan, door: RayDoor, plan: tuple[bytes, Path]
) -> None:
    """Cancelled: one checkpoint, status `stopped`. A node dies: `lost`, with what had come back."""
    submit(door, "job-2", plan, max_steps=10**6)
    trains(door, "job-2")
    door.cancel("job-2")
    assert ended(door, "job-2").reason is ExitReason.CANCELLED
    state = json.loads((door.collect("job-2") / "outputs/checkpoint/state.json").read_text())
    assert (state["status"], state["stop_reason"]) == ("stopped", "sigterm")

    submit(door, "job-3", plan, max_steps=10**6)
    bundle = trains(door, "job-3", saves=True)
    lan.kill(there=True)
    record = ended(door, "job-3")
    assert record.reason is ExitReason.LOST, _log(bundle, record)
    assert record.detail
    assert any((bundle / "outputs/checkpoint/resume").glob("*/digests.json"))
    lan.start_helper()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("(outputs / 'count').write_text('twice\\n')", "expected sha256"),
        ("(outputs / 'l').symlink_to('/etc/passwd')", "neither a file"),
    ],
    ids=["digest", "link"],
)
def test_what_a_hostile_node_gives_back_is_refused(
    open_door: OpenDoor, tmp_path: Path, harm: str, message: str
) -> None:
    """By the lines of the other doors; what a gate itself may lie about, test_ray_gate.py has."""
    write_hostile(tmp_path / "hostile.py", harm)
    door = open_door(replace(QUICK, worker=("{python}", str(tmp_path / "hostile.py"))))
    door.submit(JobSpec("job-1", "tiny", LIMIT_S), {})
    record = ended(door, "job-1")
    with pytest.raises(BundleMismatch) as refusal:
        door.collect("job-1")
    assert message in f"{record.detail} {refusal.value}"


@pytest.mark.e2e
def test_a_wrong_token_starts_nothing(open_door: OpenDoor, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 32)
    door = open_door(token_file=wrong)
    with pytest.raises(DoorUnavailable, match="does not take our token"):
        door.submit(JobSpec("job-1", "tiny", 30.0), {})
    assert door.poll("job-1").phase is JobPhase.ABSENT


@pytest.mark.e2e
def test_a_head_that_is_gone_is_said_and_ends_what_it_held_together(
    lan: RayLan, open_door: OpenDoor, tmp_path: Path
) -> None:
    """`poll` says so; the job's processes end; a head that came back knows nothing of it: lost."""
    door = open_door(replace(QUICK, patience_s=1.0))
    door.submit(JobSpec("job-1", "tiny", LIMIT_S, config={"sleep_s": 300, "listens": True}), {})
    started = tmp_path / "jobs/job-1/outputs/started"
    wait_for(lambda: started.exists() and started.read_text(), what="the program", limit_s=LIMIT_S)
    lan.kill_head()

    told = wait_for(lambda: _refusal(door, "job-1"), what="poll to say so", limit_s=LIMIT_S)
    assert "no Ray cluster answers" in told
    wait_for(
        lambda: is_gone(int(started.read_text())), what="the job's program to end",
        limit_s=LIMIT_S,
    )  # fmt: skip
    assert (tmp_path / "box/jobs/job-1/outputs/saved").exists()
    lan.kill()
    lan.start_head()
    wait_for(lambda: lan.num_nodes() == 1, what="a new head", limit_s=LIMIT_S)
    record = ended(door, "job-1")
    assert record.reason is ExitReason.LOST
    assert "started anew" in record.detail


def _refusal(door: RayDoor, job_id: str) -> str:
    """Why nothing can be learnt of the job; empty while something can."""
    try:
        door.poll(job_id)
    except DoorUnavailable as error:
        return str(error)
    return ""


def _command_lines(lan: RayLan) -> Iterator[str]:
    for process in lan.processes():
        with contextlib.suppress(psutil.Error):
            yield " ".join(process.cmdline())


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return found


def _log(bundle: Path, about: object) -> str:
    return f"{about}\n{Bundle(bundle).log_tail()[-5000:]}"
