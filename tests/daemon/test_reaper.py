"""Four hands end a rented pod. Each is tried alone, with the other three tied."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes.runpod.clusters import ClusterScript
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import BROKEN, Answer, PodScript
from scf.cli.main import run as scf_command
from scf.config import load_config
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import SystemClock, parse_utc, utc_text
from scf.daemon.allowance import Allowance
from scf.daemon.reaper import EVERY_S, HURRY_S, Reaper
from scf.dispatch import pod_lease
from scf.dispatch.job import ExitReason, JobSpec
from scf.dispatch.pod_record import PodFiles, PodRecord, PodState, Rented
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.dispatch.runpod_model import PodOrder
from scf.dispatch.sweeping import name_prefix
from support.clocks import HurriedClock
from support.processes import python_env
from support.rented_pods import CHEAP, runpod_door
from support.waiting import wait_for

KEY = "rpa_CANARY0123456789abcdef"


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    with FakeRunpod(key=KEY, keeps_leases=False, calls_per_minute=10_000) as provider:
        yield provider


@pytest.fixture
def home(tmp_path: Path, provider: FakeRunpod, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "scf.toml").write_text(
        f'[runpod]\nrest = "{provider.rest}"\ngraphql = "{provider.graphql}"\n'
    )
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return home


def rent(
    home: Path,
    provider: FakeRunpod,
    *,
    name: str = "",
    lease_s: float = 600.0,
    state: PodState | None = PodState.CREATED,
    nodes: int = 1,
) -> PodRecord:
    """A pod or a cluster, and what the book says of it; with no `state` the book says nothing."""
    now = SystemClock().now()
    name = name or f"{name_prefix(home)}job-1"
    client = RunpodClient(ApiKey(KEY), rest=provider.rest, graphql=provider.graphql)
    order = PodOrder(
        name=name, image="w", gpu=CHEAP.gpu, terminate_after=now + timedelta(seconds=lease_s),
        num_pods=nodes,
    )  # fmt: skip
    created = client.create(order)
    client.close()
    record = PodRecord(
        job_id=name.rpartition("-")[2] or "job",
        name=name,
        state=state or PodState.NONE,
        candidate=0,
        intended_at=utc_text(now),
        lease_until=utc_text(now + timedelta(seconds=lease_s)),
        max_usd=1.0,
        pod_id=created.pod_id,
        nodes=nodes,
    )
    if state is not None:
        PodFiles(home / "runpod").write(record)
    return record


def reap(home: Path) -> list[str]:
    """One look of the reaper; why each pod was ended."""
    reaper = Reaper(load_config(home, environment={}), SystemClock())
    try:
        return [stray.why for stray in reaper.look().ended]
    finally:
        reaper.close()


def test_the_reapers_hand(home: Path, provider: FakeRunpod) -> None:
    """No daemon, no drive, no `terminateAfter`, no agent in the pod: past its lease a pod ends."""
    rent(home, provider, lease_s=600)
    assert reap(home) == []
    assert provider.alive()

    rent(home, provider, name=f"{name_prefix(home)}late", lease_s=-1)

    (why,) = reap(home)
    assert why.startswith("its lease ended at")
    assert [pod.name for pod in provider.alive()] == [f"{name_prefix(home)}job-1"]


def test_the_reaper_ends_strays_and_namesakes_and_leaves_others(
    home: Path, provider: FakeRunpod
) -> None:
    rent(home, provider)
    rent(home, provider, state=None)  # the same name twice: a repeated delivery
    rent(home, provider, name=f"{name_prefix(home)}forgotten", state=None)
    rent(home, provider, name="scf-00000000-anothers", state=None)

    assert sorted(reap(home)) == ["another pod has its name", "no job needs it"]
    assert len(provider.alive()) == 2


def test_the_reaper_ends_all_of_ours_under_the_emergency_lock(
    home: Path, provider: FakeRunpod
) -> None:
    """With the daemon dead or hanging."""
    rent(home, provider)
    rent(home, provider, name="somebody-elses", state=None)
    EmergencyLock(home).set("smoke", now=SystemClock().now())

    assert reap(home) == ["the emergency lock is set"]
    assert [pod.name for pod in provider.alive()] == ["somebody-elses"]


def test_one_damaged_record_keeps_no_pod_alive(home: Path, provider: FakeRunpod) -> None:
    """Its own pod is in no book then, and ends, too."""
    rent(home, provider, lease_s=600)
    rent(home, provider, name=f"{name_prefix(home)}late", lease_s=-1)
    (home / "runpod" / "1.pod.json").write_text("{")

    assert len(reap(home)) == 2
    assert not provider.alive()


def test_the_reaper_as_a_process_goes_on_when_the_provider_fails(
    home: Path, provider: FakeRunpod
) -> None:
    """It says so and looks again; SIGTERM ends it. The key is not in its command line."""
    rent(home, provider, lease_s=-1)
    provider.script("list", *[BROKEN] * 3)
    code = (
        "import sys; from scf.daemon import reaper; reaper.EVERY_S = 0.2;"
        "reaper.run_reaper.__kwdefaults__['every_s'] = 0.2; sys.exit(reaper.main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "--home", str(home)],
        env=python_env(RUNPOD_API_KEY=KEY),
        stderr=subprocess.PIPE,
    ) as child:
        wait_for(lambda: not provider.alive(), what="the pod to be ended")
        assert KEY.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
        child.terminate()
        said = child.communicate(timeout=120)[1].decode()
    assert child.returncode == 0
    assert "does not answer" in said
    assert KEY not in said


def test_the_command(home: Path, provider: FakeRunpod, capsys: pytest.CaptureFixture[str]) -> None:
    rent(home, provider, lease_s=-1)

    assert scf_command(["reaper", "run", "--once", "--home", str(home)]) == 0

    assert "1 told to end" in capsys.readouterr().out
    assert not provider.alive()


def test_the_pods_own_hand(home: Path, provider: FakeRunpod) -> None:
    """The agent in the pod, with the provider's key of this pod, which can do nothing else."""
    record = rent(home, provider, lease_s=600)
    other = rent(home, provider, name="somebody-elses", state=None)
    assert record.pod_id is not None
    environment = {
        "SCF_LEASE_UNTIL": utc_text(SystemClock().now() + timedelta(seconds=1)),
        "RUNPOD_POD_ID": record.pod_id,
        "RUNPOD_API_KEY": provider.pod_key(record.pod_id),
        "SCF_RUNPOD_REST": provider.rest,
        "SCF_RUNPOD_GRAPHQL": provider.graphql,
    }
    with subprocess.Popen(
        [sys.executable, "-I", str(Path(pod_lease.__file__))],
        env={"PATH": os.environ["PATH"], **environment},
        stderr=subprocess.PIPE,
    ) as child:
        wait_for(
            lambda: record.pod_id not in {pod.pod_id for pod in provider.alive()},
            what="the pod to end itself",
        )
        child.kill()
        said = child.communicate(timeout=120)[1].decode()
    assert "ends itself at" in said
    assert provider.pod_key(record.pod_id) not in said
    assert [pod.pod_id for pod in provider.alive()] == [other.pod_id]


@pytest.mark.parametrize("tied", ["terminate", "podTerminate"])
def test_the_pods_own_hand_has_two_fingers(provider: FakeRunpod, home: Path, tied: str) -> None:
    """Whether a pod's key may use REST v2 is not documented: both ways are tried."""
    record = rent(home, provider)
    provider.script(tied, *[BROKEN] * 9)
    environment = {"SCF_RUNPOD_REST": provider.rest, "SCF_RUNPOD_GRAPHQL": provider.graphql}
    key = provider.pod_key(str(record.pod_id))

    said = [
        pod_lease.end_by_rest(environment, str(record.pod_id), key),
        pod_lease.end_by_graphql(environment, str(record.pod_id), key),
    ]

    assert not provider.alive(), said


# A cluster: two hands are sure, a third only where the provider lets a member's key do it.


def test_the_reapers_hand_on_a_cluster(home: Path, provider: FakeRunpod) -> None:
    """Past its lease, in no book, or a namesake; another's is left alone. All members go."""
    rent(home, provider, nodes=2)
    rent(home, provider, nodes=2, state=None)  # the same name twice
    rent(home, provider, nodes=3, name=f"{name_prefix(home)}forgotten", state=None)
    rent(home, provider, nodes=2, name=f"{name_prefix(home)}late", lease_s=-1)
    rent(home, provider, nodes=2, name="scf-00000000-anothers", state=None)

    why = sorted(reap(home))
    assert why[0] == "another cluster has its name"
    assert why[1].startswith("its lease ended at")
    assert why[2:] == ["no job needs it"]
    assert [cluster.name for cluster in provider.alive_clusters()] == [
        f"{name_prefix(home)}job-1",
        "scf-00000000-anothers",
    ]
    assert len(provider.alive()) == 4


def test_a_key_that_may_not_ask_for_clusters_ends_pods_all_the_same(
    home: Path, provider: FakeRunpod
) -> None:
    """Somebody else in the account has one; this home never rented any."""
    rent(home, provider, nodes=2, name="scf-00000000-anothers", state=None)
    rent(home, provider, name=f"{name_prefix(home)}late", lease_s=-1)
    provider.script("list clusters", *[Answer(403, "not for this key")] * 3)

    assert len(reap(home)) == 1
    assert len(provider.alive()) == 2


def test_a_member_that_outlives_its_cluster_is_ended(home: Path, provider: FakeRunpod) -> None:
    """The cluster is in no list any more, the member has a name of the provider's choice."""
    provider.pod_scripts.extend([PodScript(), PodScript(deaf=2)])
    rent(home, provider, nodes=2, lease_s=-1)
    reap(home)
    assert provider.alive_clusters() == []
    assert len(provider.alive()) == 1

    reap(home)
    reap(home)
    assert provider.alive() == []


def test_a_cluster_that_does_not_hear_is_gone_two_minutes_after_its_lease(
    home: Path, provider: FakeRunpod
) -> None:
    """Three times, then its members three times, while the provider fails now and then."""
    provider.cluster_scripts.append(ClusterScript(deaf=3))
    provider.pod_scripts.extend([PodScript(deaf=3)] * 2)
    rent(home, provider, nodes=2, lease_s=-1)
    reaper = Reaper(load_config(home, environment={}), SystemClock())
    waited_s, pause_s, looks = 0.0, 1.0, 0
    while provider.alive() and looks < 50:
        looks += 1
        waited_s += pause_s
        # What `run_reaper` waits after a look that failed, and after any other.
        pause_s = HURRY_S if looks in {2, 4, 6, 7} else reaper.look().pause_s(EVERY_S)
    reaper.close()

    assert looks >= 9
    assert waited_s <= 120


def test_a_forgotten_member_is_known_by_the_variable_of_its_order(
    home: Path, provider: FakeRunpod
) -> None:
    """No book, and a cluster that is not shown (any more): the order's name is with the member."""
    provider.pod_scripts.extend([PodScript(), PodScript(deaf=2)])
    name = f"{name_prefix(home)}forgotten"
    order = {"image": "w", "gpu": CHEAP.gpu, "num_gpus": 1, "cloud": "SECURE", "disk_gb": 1}
    order |= {"ports": [], "env": {"SCF_ORDER": name}, "data_center": None}
    provider.terminate_cluster(provider.create_cluster(name=name, num_pods=2, **order))

    assert reap(home) == ["no job needs it"]


@pytest.mark.parametrize("may", [True, False])
def test_a_members_own_hand_works_as_far_as_the_provider_lets_it(
    provider: FakeRunpod, home: Path, may: bool
) -> None:
    """Its pod cannot be ended alone; whether its key ends the cluster, the documents do not say."""
    provider.members_may_end = may
    rent(home, provider, nodes=2)
    environment = {
        "SCF_LEASE_UNTIL": "2026-11-23T00:00:00Z",
        "SCF_RUNPOD_REST": provider.rest,
        "SCF_RUNPOD_GRAPHQL": provider.graphql,
    }
    member = provider.alive()[1]
    key = provider.pod_key(member.pod_id)

    assert pod_lease.end_by_rest(environment, member.pod_id, key) == "REST 409"
    assert pod_lease.end_by_graphql(environment, member.pod_id, key) == "GraphQL 200"
    assert len(provider.alive()) == 2
    said = pod_lease.end_cluster(environment, member.pod_id, key)

    assert said == ("cluster 204" if may else "cluster unknown (401)")
    assert len(provider.alive()) == (0 if may else 2)


def test_the_bill_of_a_cluster_is_asked_for_as_one(home: Path, provider: FakeRunpod) -> None:
    record = rent(home, provider, nodes=2)
    provider.pass_time(3600)
    provider.terminate_cluster(provider.all_clusters[0])
    purse = Allowance(home, SystemClock())
    purse.approve(record.job_id, 2.0, usd_per_h=0.5)
    gone = utc_text(SystemClock().now() - timedelta(hours=3))
    rented = Rented(pod_id=str(record.pod_id), usd_per_h=0.5, since=gone, until=gone)
    PodFiles(home / "runpod").write(
        replace(record, state=PodState.NONE, pod_id=None, rented=(rented,), released_at=gone)
    )
    reap(home)

    assert purse.spent_usd() == pytest.approx(0.5, abs=0.01)


def test_a_pod_without_its_variables_says_that_it_cannot_end_itself() -> None:
    said: list[str] = []
    assert pod_lease.main({"SCF_LEASE_UNTIL": "2026-11-23T00:00:00Z"}, said.append) == 1
    assert "cannot end itself" in said[0]


def test_the_providers_hand(home: Path) -> None:
    """`terminateAfter`, with nobody else alive."""
    with FakeRunpod(key=KEY) as provider:
        rent(home, provider, lease_s=600)
        provider.pass_time(480)  # real seconds pass as well, and more of them on a busy machine
        assert provider.alive()
        provider.pass_time(121)
        assert not provider.alive()
        assert provider.spent_usd() == pytest.approx(600 / 3600 * 0.25, rel=0.02)


@pytest.mark.e2e
def test_the_daemons_own_hand(tmp_path: Path) -> None:
    """No reaper, no `terminateAfter`, no agent in the pod: its door ends it when the lease is over.

    The job would have gone on; that each pod is given back after its job: tests/dispatch/test_runpod.py.
    """
    clock = HurriedClock()
    with contextlib.closing(runpod_door(tmp_path, keeps_leases=False)) as doors:
        provider = doors.provider
        door = doors(clock=clock)
        door.submit(JobSpec("job-1", "tiny", 600.0, config={"sleep_s": 240}), {})
        wait_for(lambda: door.poll("job-1").placement["stage"] == "running", what="the job")
        (record,) = PodFiles(tmp_path / "home" / "runpod").all()
        clock.leap((parse_utc(record.lease_until) - clock.now()).total_seconds() - 60)
        before = provider.count("list")
        wait_for(lambda: provider.count("list") > before + 2, what="looks before the lease ends")
        assert provider.alive()
        clock.leap(61)

        wait_for(lambda: not provider.alive(), what="the pod's end")
        ended = wait_for(lambda: door.poll("job-1").exit, what="the job to be given up")

        assert ended.reason is ExitReason.LOST
        assert provider.count("podTerminate") == 0


def test_the_bill_takes_the_place_of_the_estimate(home: Path, provider: FakeRunpod) -> None:
    """Once it is complete; until then the estimate counts, and nothing is made up."""
    provider.pod_scripts.append(PodScript())
    record = rent(home, provider)
    provider.pass_time(3600)
    provider.delete_by_hand(str(record.pod_id))
    clock, book = SystemClock(), PodFiles(home / "runpod")
    purse = Allowance(home, clock)
    purse.approve(record.job_id, 1.0, usd_per_h=0.25)
    purse.settle(record.job_id, 0.2505)
    gone = utc_text(clock.now() - timedelta(hours=3))
    rented = Rented(pod_id=str(record.pod_id), usd_per_h=0.25, since=gone, until=gone)
    ended = replace(record, state=PodState.NONE, pod_id=None, rented=(rented,))
    book.write(replace(ended, released_at=utc_text(clock.now())))
    reap(home)
    assert purse.spent_usd() == 0.2505

    book.write(replace(ended, released_at=gone))
    reap(home)

    promise = purse.of(record.job_id)
    assert promise is not None
    assert promise.billed_usd == pytest.approx(0.25, abs=1e-3)
    assert purse.spent_usd() == promise.billed_usd
    # Nothing is left to be done for it: the next look does not read it.
    assert book.all() == []
    assert (home / "runpod" / "past" / f"{record.job_id}.pod.json").exists()
    assert abs(promise.estimated_usd - promise.billed_usd) / promise.billed_usd < 0.02
