"""One training job on two machines: two networks, a cable, torchrun, gloo; and what a door says of it."""

import base64
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scf.core.canonical import canonical_json
from scf.core.clock import SystemClock
from scf.core.errors import InputError
from scf.core.identity import sha256_hex
from scf.dispatch.follower import FollowSettings
from scf.dispatch.group_link import GroupLink
from scf.dispatch.job import ExitReason, JobExit, JobInput, JobSpec
from scf.dispatch.nodes import Node, environment_of, interface_towards
from scf.dispatch.sending import exit_of
from scf.dispatch.ssh import SshDoor
from scf.dispatch.transfer import BoxUnreachable
from scf.storage.partitions import Folder
from support.networks import Cable, new_cable
from support.ssh_boxes import Sshd, start_sshd
from support.training_jobs import losses, planned
from support.waiting import wait_for

STEPS = 40


def test_a_job_of_one_process_needs_no_torchrun() -> None:
    assert Node.of({}, num_gpus=8) is None
    assert environment_of(0, 1, "10.0.0.1", 29400) == {}


def test_a_node_is_started_as_it_was_told() -> None:
    node = Node.of(environment_of(1, 2, "10.0.0.1", 29401), num_gpus=4)

    assert node is not None
    assert node.command("scf.training.train_ebdm")[1:] == [
        "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "4",
        "--max-restarts", "0", "--rdzv-backend", "static", "--master-addr", "10.0.0.1",
        "--master-port", "29401", "-m", "scf.training.train_ebdm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [{"SCF_NODES": "two"}, {"SCF_NODES": "2", "SCF_NODE_RANK": "2"},
     {"SCF_NODES": "2", "SCF_MASTER_PORT": "0"}, {"SCF_PROCS_PER_NODE": "-1"}],
)  # fmt: skip
def test_what_cannot_be_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(InputError):
        Node.of(told, num_gpus=1)


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are looked up as Linux does")
def test_the_way_to_an_address_has_a_name() -> None:
    assert interface_towards("127.0.0.1") == "lo"


class _Box:
    """A link that says what it was told to say."""

    def __init__(self, answers: dict[str, dict[str, object]]) -> None:
        self.answers, self.asked = answers, []
        self.box = self.folder = self.sender = None
        self.held = ()

    def call(self, verb: str, request: dict[str, object], **_: object) -> dict[str, object]:
        self.asked.append((verb, request))
        return self.answers.get(verb, {})


def group(*boxes: _Box) -> GroupLink:
    made = GroupLink.__new__(GroupLink)
    made._links, made._address = boxes, "10.0.0.1"
    made._missing = [set() for _ in boxes]
    return made


def test_what_one_of_them_lacks_is_sent_and_the_fullest_disk_counts() -> None:
    link = group(
        _Box({"prepare": {"missing": ["a"], "free_bytes": 9, "rsync": True, "root": "/r"}}),
        _Box({"prepare": {"missing": ["b"], "free_bytes": 5, "rsync": False, "root": "/s"}}),
    )

    assert link.call("prepare", {"wanted": []}) == {
        "missing": ["a", "b"], "free_bytes": 5, "rsync": False, "root": "/r",
    }  # fmt: skip


def test_each_node_is_told_its_rank_and_its_own_folder_and_the_first_starts_last() -> None:
    boxes = [_Box({"start": {"phase": "started"}, "prepare": {"root": f"/r{n}"}}) for n in (0, 1)]
    order: list[int] = []
    for number, box in enumerate(boxes):
        real = box.call
        box.call = lambda verb, request, number=number, real=real, **_: (
            order.append(number) if verb == "start" else None,
            real(verb, request),
        )[1]
    spec = {"kind": "train_ebdm", "vault": "/r0/jobs/job-1/vault"}

    group(*boxes).call("start", {"job_id": "job-1", "spec": spec, "environment": {"A": "1"}})

    assert order == [1, 0]
    told = [next(request for verb, request in box.asked if verb == "start") for box in boxes]
    assert [row["environment"]["SCF_NODE_RANK"] for row in told] == ["0", "1"]
    assert {row["environment"]["SCF_MASTER_ADDR"] for row in told} == {"10.0.0.1"}
    assert told[1]["spec"]["vault"] == "/r1/jobs/job-1/vault"


def test_a_job_that_is_not_done_together_is_the_firsts_alone() -> None:
    boxes = [_Box({"start": {"phase": "started"}}), _Box({})]
    request = {"job_id": "job-1", "spec": {"kind": "smoke", "vault": None}, "environment": {}}

    group(*boxes).call("start", request)

    assert [verb for verb, _ in boxes[1].asked] == []
    assert boxes[0].asked[0][1]["environment"] == {}


def test_when_one_node_is_lost_the_others_do_not_wait_for_it() -> None:
    boxes = [_Box({"look": {"phase": "running"}}), _Box({"look": {"phase": "lost"}})]

    group(*boxes).call("look", {"job_id": "job-1", "files_max": 9})

    assert [verb for verb, _ in boxes[0].asked] == ["look", "cancel"]


@pytest.mark.parametrize(
    ("first", "second", "reason", "detail"),
    [
        ("lost", "out_of_memory", "out_of_memory", "node 1: why"),
        ("preempted", "worker_error", "worker_error", "node 1: why"),
        ("lost", "preempted", "lost", "why"),
        ("diverged", "lost", "diverged", "why"),
        ("completed", "completed", "completed", "why"),
    ],
)
def test_a_job_ends_with_the_reason_of_the_node_that_failed_first(
    first: str, second: str, reason: str, detail: str
) -> None:
    """And not with that of those who only missed it."""
    link = group(_Box({"look": ended(first)}), _Box({"look": ended(second)}))

    told = exit_of(link.call("look", {"job_id": "job-1", "files_max": 9})["exit"])

    assert (told.reason, told.detail) == (reason, detail)


def test_what_all_nodes_took_is_added_up_and_who_is_not_in_it_is_named() -> None:
    boxes = [
        _Box({"look": ended("completed", energy_j=5.0, rss_max_bytes=7.0)}),
        _Box({"look": ended("completed", energy_j=6.0, rss_max_bytes=9.0)}),
        _Box({"look": {"phase": "running"}}),
        _Box({"look": {"phase": "absent"}}),
    ]

    told = exit_of(group(*boxes).call("look", {"job_id": "job-1", "files_max": 9})["exit"])

    assert told.usage == {"energy_j": 11.0, "rss_max_bytes": 9.0}
    assert told.not_metered == ("node 2 of the job",)


def test_an_exit_record_that_is_none_is_left_to_whoever_follows() -> None:
    link = group(_Box({"look": {"phase": "ended", "exit": "?"}}), _Box({"look": ended("lost")}))
    assert link.call("look", {"job_id": "job-1", "files_max": 9})["exit"] == "?"


def test_a_node_out_of_reach_keeps_nobody_from_the_first() -> None:
    """Nor from ending the others; who is rented there says whether it is lost."""
    silent = _Box({})
    silent.call = raises_unreachable
    first, third = (_Box({"look": {"phase": "running"}}) for _ in range(2))
    link = group(first, silent, third)

    assert link.call("look", {"job_id": "job-1", "files_max": 9}) == {"phase": "running"}
    link.call("cancel", {"job_id": "job-1", "at_once": False})
    assert [verb for verb, _ in third.asked] == ["look", "cancel"]
    first.call = raises_unreachable
    with pytest.raises(BoxUnreachable):
        link.call("cancel", {"job_id": "job-1", "at_once": False})


def raises_unreachable(*_: object, **__: object) -> None:
    raise BoxUnreachable("no route")


def ended(reason: str, **usage: float) -> dict[str, object]:
    record = JobExit(ExitReason(reason), "why", usage=usage)
    data = canonical_json(record.to_json())
    return {"phase": "ended", "exit": base64.b64encode(data).decode()}


# Two machines.


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = new_cable()
    if cable is None:
        pytest.skip("network namespaces need root on Linux and iproute2")
    yield cable
    cable.remove()


@pytest.mark.e2e
@pytest.mark.torch
def test_two_nodes_learn_what_one_learns(cable: Cable, tmp_path: Path) -> None:
    """The same minibatches of the same size: the same losses on the validation fossils."""
    plan, vault = planned(tmp_path)
    servers = [
        start_sshd(Path(tempfile.mkdtemp()), host=cable.here, environment={"OMP_NUM_THREADS": "1"}),
        start_sshd(Path(tempfile.mkdtemp()), host=cable.there, netns=cable.name,
                   environment={"OMP_NUM_THREADS": "1"}),
    ]  # fmt: skip
    try:
        alone = losses(train(tmp_path / "one", servers[:1], plan, vault))
        together = losses(train(tmp_path / "two", servers, plan, vault))
    finally:
        for server in servers:
            server.stop()

    assert [step for step, _ in alone] == [step for step, _ in together]
    assert len(alone) >= 3
    for (_, one), (_, two) in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=2e-3)


def train(base: Path, servers: list[Sshd], plan: bytes, vault: Path) -> Path:
    """Train on these machines; the job's bundle."""
    base.mkdir()
    config = canonical_json(
        {"preset": "tiny", "max_steps": STEPS, "max_seconds": 120.0, "batch_size": 64,
         "device": "cpu", "seed": 0, "evaluate_every": 10}
    )  # fmt: skip
    files = {"plan.json": plan, "train_config.json": config}
    inputs = tuple(JobInput(n, f"inputs/{n}", sha256_hex(data)) for n, data in files.items())
    boxes = [
        server.box(base / f"box-{number}", name=f"box-{number}")
        for number, server in enumerate(servers)
    ]
    home = base / "home"
    home.mkdir()
    door = SshDoor(
        boxes[0], Folder.at(base / "jobs"), home, peers=boxes[1:],
        settings=FollowSettings(code=home / "code", look_s=0.3, retry_s=0.2), clock=SystemClock(),
    )  # fmt: skip
    try:
        door.submit(JobSpec("job-1", "train_ebdm", 150.0, inputs=inputs, vault=str(vault)), files)
        ended = wait_for(lambda: door.poll("job-1").exit, what="training", limit_s=200)
        assert ended.reason is ExitReason.COMPLETED, (ended, _log(base))
        return door.collect("job-1")
    finally:
        door.close()


def _log(base: Path) -> str:
    return "".join(p.read_text()[-3000:] for p in base.rglob("worker.log"))
