"""A job of several nodes on the RunPod door: one cluster, rented whole, given back whole."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.runpod.clusters import ClusterScript
from fakes.runpod.world import (
    BROKEN,
    LOST_REPLY,
    LOST_REQUEST,
    NO_CAPACITY,
    TWICE,
    PodScript,
)
from scf.core.errors import BudgetExceeded, DoorUnavailable
from scf.core.identity import sha256_hex
from scf.dispatch.job import ExitReason, JobInput, JobPhase
from scf.dispatch.pod_record import PodFiles
from scf.dispatch.purse import OpenPurse
from scf.dispatch.runpod import RunpodDoor
from scf.dispatch.transfer import BoxUnreachable, SshLink
from support.clocks import HurriedClock
from support.remote_jobs import ended, tiny
from support.rented_pods import CHEAP, DEAR, Doors, cluster_door
from support.waiting import wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    doors = cluster_door(tmp_path)
    yield doors
    doors.close()


def released(door: RunpodDoor, doors: Doors, job_id: str = "job-1") -> None:
    """Given back: no cluster, no pod, whatever the provider shows."""
    wait_for(lambda: door.poll(job_id).placement["stage"] == "released", what="its end")
    assert doors.provider.alive() == doors.provider.alive_clusters() == []


def folder_of(doors: Doors, rank: int, cluster: int = 0) -> Path:
    """Where a member keeps what it was sent."""
    pod = doors.provider.all_clusters[cluster].members[rank]
    return doors.servers[pod.pod_id].folder / "workspace"


def running(doors: Doors, tmp_path: Path, job_id: str = "job-1") -> None:
    started = tmp_path / "jobs" / job_id / "outputs" / "started"
    wait_for(started.exists, what="the program to start")


def test_a_cluster_is_rented_for_a_job_of_two_nodes_and_given_back(
    doors: Doors, tmp_path: Path
) -> None:
    """One order by its own name; both members do the job; its lease is with each of them."""
    door = doors()
    door.submit(tiny(sleep_s=1.0), {})
    running(doors, tmp_path)
    both = [folder_of(doors, rank) for rank in (0, 1)]
    assert [(root / "jobs" / "job-1" / "outputs" / "started").exists() for root in both] == [
        True,
        True,
    ]
    (record,) = PodFiles(tmp_path / "home" / "runpod").all()
    assert ended(door).reason is ExitReason.COMPLETED
    released(door, doors)

    (cluster,) = doors.provider.all_clusters
    assert (record.pod_id, record.nodes, record.name) == (cluster.cluster_id, 2, cluster.name)
    assert cluster.name.startswith("scf-")
    assert [pod.env["SCF_LEASE_UNTIL"] for pod in cluster.members.values()] == [
        record.lease_until
    ] * 2
    placement = door.poll("job-1").placement
    assert placement["cluster_id"] == cluster.cluster_id
    assert [row["pod_id"] for row in placement["peers"]] == [cluster.members[1].pod_id]
    assert placement["cost_usd_per_h"] == 0.5


def test_each_member_gets_each_file_once(
    doors: Doors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the link to one of them breaks when the other has its files."""
    sent: list[tuple[str, str]] = []
    push = SshLink.push

    def breaks_once(link: SshLink, staged: Path, *, size_bytes: int) -> None:
        arrived = (doors.servers[link.box.name].folder / "workspace" / "incoming").rglob("*")
        there = {path.name for path in arrived}
        names = sorted(path.name for path in staged.iterdir() if path.name not in there)
        if sent and "broken" not in (box for box, _ in sent):
            sent.append(("broken", ""))
            raise BoxUnreachable("the link broke")
        push(link, staged, size_bytes=size_bytes)
        sent.extend((link.box.name, name) for name in names)

    monkeypatch.setattr(SshLink, "push", breaks_once)
    plan = JobInput("plan.json", "inputs/plan.json", sha256_hex(b"{}"))
    door = doors()
    door.submit(replace(tiny(), inputs=(plan,)), {"plan.json": b"{}"})

    assert ended(door).reason is ExitReason.COMPLETED
    members = sorted(pod.pod_id for pod in doors.provider.all_pods)
    assert sorted(sent) == sorted([("broken", ""), *((name, plan.sha256) for name in members)])


@pytest.mark.parametrize("fault", [LOST_REPLY, LOST_REQUEST, BROKEN, TWICE])
def test_a_lost_answer_makes_one_cluster(doors: Doors, fault: object) -> None:
    """Whether the order had been carried out, not carried out, or carried out twice."""
    doors.provider.script("create cluster", fault)
    door = doors()
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    released(door, doors)
    assert (door.collect("job-1") / "outputs" / "count").read_text() == "once\n"


def test_without_room_for_all_the_next_candidate_is_tried(doors: Doors) -> None:
    doors.provider.script("create cluster", NO_CAPACITY)
    door = doors(candidates=(DEAR, CHEAP), max_usd_per_h=9.0)
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    assert [row.order["gpu"] for row in doors.provider.all_clusters] == [CHEAP.gpu]


@pytest.mark.parametrize(
    ("cluster", "pods"),
    [
        (ClusterScript(late={1: None}), []),
        (ClusterScript(), [PodScript(), PodScript(until_running=None)]),
        (ClusterScript(), [PodScript(), PodScript(num_gpus=0)]),
        (ClusterScript(), [PodScript(), PodScript(cuda="12.4")]),
        (ClusterScript(deaf=3), [PodScript(num_gpus=0), PodScript(deaf=3)]),
    ],
    ids=["one missing", "one stuck", "one without GPUs", "an old driver", "and deaf"],
)
def test_a_cluster_with_one_bad_member_is_given_up_whole(
    doors: Doors, cluster: ClusterScript, pods: list[PodScript]
) -> None:
    """And the next one does the job."""
    doors.provider.cluster_scripts.append(cluster)
    doors.provider.pod_scripts.extend(pods)
    clock = HurriedClock()
    door = doors(candidates=(CHEAP, CHEAP), clock=clock)
    door.submit(tiny(), {})
    is_silent = any(rank is None for rank in cluster.late.values())
    if is_silent or any(pod.until_running is None for pod in pods):
        # Nothing shows that it will never be ready, but time.
        wait_for(
            lambda: [c for c in doors.provider.all_clusters if c.pod_looks > 5],
            what="looks at the cluster",
            limit_s=120,
        )
        clock.leap(1300)  # over `ready_s`

    assert ended(door).reason is ExitReason.COMPLETED
    released(door, doors)
    assert len(doors.provider.all_clusters) == 2


def test_members_that_come_late_and_without_a_rank_are_waited_for(doors: Doors) -> None:
    doors.provider.cluster_scripts.append(ClusterScript(unseen=3, late={1: 4}, unranked=6))
    door = doors()
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    released(door, doors)
    assert len(doors.provider.all_clusters) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_member_ends_the_attempt_with_its_reason(
    doors: Doors, tmp_path: Path, rank: int
) -> None:
    """What came back by then stays, the rest of the cluster goes, and a new try resumes."""
    door = doors()
    door.submit(tiny(sleep_s=60), {})
    running(doors, tmp_path)
    doors.provider.delete_by_hand(doors.provider.all_clusters[0].members[rank].pod_id)

    lost = ended(door)
    assert lost.reason is ExitReason.LOST
    assert f"node {rank}" in lost.detail
    assert "is gone" in lost.detail
    released(door, doors)

    door.submit(tiny("job-2"), {}, resume=tmp_path / "jobs" / "job-1")
    assert ended(door, "job-2").reason is ExitReason.COMPLETED
    released(door, doors, "job-2")


def test_a_deleted_cluster_is_lost(doors: Doors, tmp_path: Path) -> None:
    door = doors()
    door.submit(tiny(sleep_s=60), {})
    running(doors, tmp_path)
    doors.provider.terminate_cluster(doors.provider.all_clusters[0])

    assert ended(door).reason is ExitReason.LOST
    released(door, doors)


def test_cancel_at_once_ends_the_cluster(doors: Doors, tmp_path: Path) -> None:
    door = doors()
    door.submit(tiny(sleep_s=60, deaf=True), {})
    running(doors, tmp_path)
    door.cancel("job-1", at_once=True)

    assert ended(door).reason is ExitReason.CANCELLED
    released(door, doors)


# Money.


def test_the_price_of_all_is_known_before(doors: Doors) -> None:
    """By the hour at submit; by the job before the order; the purse is asked for all of it."""
    with pytest.raises(DoorUnavailable, match="max_usd_per_h"):
        doors(max_usd_per_h=0.4).submit(tiny("job-0"), {})

    asked = []

    class Purse(OpenPurse):
        def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
            asked.append((max_usd, usd_per_h))

    door = doors(purse=Purse())
    door.submit(tiny(), {})
    assert ended(door).reason is ExitReason.COMPLETED
    # Two pods at 0.25 USD/h for 1200 + 600 + 1800 s, and 300 s in which they may be ended late; and
    # the order may be carried out twice.
    assert asked[0] == (pytest.approx(2 * 0.5 * 3900 / 3600, abs=1e-3), 1.0)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_members_that_cost_more_than_offered_are_promised_anew_or_ended(
    doors: Doors, tmp_path: Path, is_allowed: bool
) -> None:
    """The catalogue has no price for clusters: the real one is known once they are there."""
    asked = []

    class Purse(OpenPurse):
        def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
            asked.append(usd_per_h)
            if usd_per_h > 1.0 and not is_allowed:
                raise BudgetExceeded("the day's budget is spent", remedy="Raise it.")

    create = doors.provider.create

    def dearer(**given: object) -> object:
        pod = create(**given)
        pod.price_usd_per_h = 1.0 if len(doors.provider.all_clusters) == 1 else 0.25
        return pod

    doors.provider.create = dearer
    door = doors(purse=Purse(), candidates=(CHEAP, CHEAP))
    door.submit(tiny(), {})

    assert ended(door).reason is ExitReason.COMPLETED
    released(door, doors)
    assert len(doors.provider.all_clusters) == (1 if is_allowed else 2)
    assert asked[0] == 2 * 0.5  # twice, until it is known that there is one
    assert {2.0, 2 * 2.0} & set(asked)
    record = PodFiles(tmp_path / "home" / "runpod").read("job-1")
    assert record is not None
    assert record.rented[0].usd_per_h == 2.0


def test_a_stray_cluster_is_swept_and_nobody_elses(doors: Doors, tmp_path: Path) -> None:
    door = doors()
    door.submit(tiny(sleep_s=60), {})
    running(doors, tmp_path)
    order = dict(doors.provider.all_clusters[0].order)
    for name in (f"{door._pods._prefix}stray", "somebody-elses"):
        doors.provider.pod_scripts.extend([PodScript(until_running=None)] * 2)
        doors.provider.create_cluster(name=name, num_pods=2, **(order | {"env": {}}))

    wait_for(
        lambda: (
            f"{door._pods._prefix}stray" not in {c.name for c in doors.provider.alive_clusters()}
        ),
        what="the stray to be ended",
        limit_s=120,
    )
    assert "somebody-elses" in {c.name for c in doors.provider.alive_clusters()}
    assert door.poll("job-1").phase is JobPhase.RUNNING
    door.cancel("job-1", at_once=True)
    ended(door)
