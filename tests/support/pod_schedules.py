"""Seeded misfortune of rented pods, with a manual clock: hours in milliseconds.

    PYTHONPATH=tests python -m support.pod_schedules SEED

The code that is tried is the door's own (`RentedPods`), the reaper's (`strays`, `sweep`) and the
purse's (`Allowance`); the provider is the double's `World` without its network. The daemon dies at a
moment of the seed's choice, for ever. Then the pod's agent, the reaper and `terminateAfter` are
left, as far as the seed leaves them. In a share of the schedules each job asks for a cluster, which
`terminateAfter` does not know; `agent` means there that a member's key may end it.
"""

import contextlib
import random
import sys
import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from fakes.runpod.clusters import ClusterScript
from fakes.runpod.world import GPU_PRICES, FakePod, PodScript, World
from scf.core.clock import parse_utc
from scf.core.errors import BudgetExceeded, ScfError
from scf.daemon.allowance import Allowance, Promise
from scf.daemon.reaper import EVERY_S, HURRY_S, Look
from scf.dispatch.follower import MachineGone
from scf.dispatch.job import JobSpec
from scf.dispatch.pod_access import PodAccess
from scf.dispatch.pod_record import PodRecord
from scf.dispatch.rental import Candidate, RunpodSettings
from scf.dispatch.rented_pods import RentedPods
from scf.dispatch.runpod_client import TRIES
from scf.dispatch.runpod_errors import (
    BalanceTooLow,
    CreateUnknown,
    NotPlaced,
    ProviderFault,
    RateLimited,
    RequestRefused,
)
from scf.dispatch.runpod_model import Cluster, Created, GpuOffer, Pod, PodOrder
from scf.dispatch.sweeping import lease_left_s, name_prefix, shown, strays, sweep
from support.clocks import ManualClock

STEP_S = 5.0
AGENT_S = 10.0
LATE_S = 120.0
CLUSTER_SHARE = 0.25
CANDIDATES = (Candidate("NVIDIA H100 80GB HBM3"), Candidate("NVIDIA RTX A4000"))


@dataclass
class Outcome:
    """What a schedule came to.

    Attributes:
        seed: What it was made from.
        pods: Pods that were made.
        alive: Pods alive `LATE_S` after the last lease.
        spent_usd: What they cost.
        cap_usd: What they may have cost.
        faults: Misfortunes met.
        hands: Which of the hands were left when the daemon was dead.
        list_calls_max: List calls of the daemon within any minute.
        was_doubled: Whether an order was carried out twice.
        nodes: Pods that each job asks for.
        clusters: Clusters that were made.
        losses: Jobs that ended because a member was gone.
    """

    seed: int
    pods: int = 0
    alive: int = 0
    spent_usd: float = 0.0
    cap_usd: float = 0.0
    faults: int = 0
    hands: tuple[str, ...] = ()
    list_calls_max: int = 0
    was_doubled: bool = False
    jobs_done: int = 0
    nodes: int = 1
    clusters: int = 0
    losses: int = 0


@dataclass
class _Client:
    """`RunpodClient` without a network: what `RentedPods` and the reaper call of it."""

    world: World
    clock: ManualClock
    dice: random.Random
    fault_rate: float
    outcome: Outcome
    lists: list[float] = field(default_factory=list)
    is_daemons: bool = True

    def create(self, order: PodOrder, *, route: str = "graphql") -> Created:
        del route
        fate = self.dice.random()
        if fate > self.fault_rate:
            return self._made(order)
        self.outcome.faults += 1
        kind = self.dice.choice(
            ["lost reply", "lost request", "no capacity", "no money", "broken", "wait", "twice"]
        )
        if kind == "no capacity":
            raise NotPlaced("no capacity")
        if kind == "no money":
            raise BalanceTooLow("no money")
        if kind == "wait":
            raise RateLimited("too many", 7.0)
        if kind == "twice":
            self.outcome.was_doubled = True
            self._made(order)
            return self._made(order)
        if kind == "lost reply" or (kind == "broken" and self.dice.random() < 0.5):
            self._made(order)
        raise CreateUnknown(kind)

    def _made(self, order: PodOrder) -> Created:
        if order.num_pods > 1:
            return self._made_cluster(order)
        script = PodScript(
            unseen=self.dice.choice([0, 0, 0, 1, 2, 4]),
            until_running=self.dice.choice([0, 1, 2, 2, None]),
            has_ports=self.dice.random() > 0.1,
            num_gpus=0 if self.dice.random() < 0.05 else None,
            deaf=self.dice.choice([0, 0, 0, 1, 3]),
        )
        self.world.pod_scripts.append(script)
        pod = self.world.create(
            name=order.name,
            image=order.image,
            gpu=order.gpu,
            num_gpus=order.num_gpus,
            cloud=order.cloud,
            disk_gb=order.disk_gb,
            ports=list(order.ports),
            env=dict(order.env),
            data_center=order.data_center,
            terminate_after=order.terminate_after,
        )
        return Created(pod.pod_id, pod.name, pod.price_usd_per_h)

    def _made_cluster(self, order: PodOrder) -> Created:
        num_pods = order.num_pods
        fates = [0, 0, 0, 0, 0, 1, 1, 3, 3, None]
        # One bad member spoils a cluster, so each is a little better than a pod.
        for _ in range(num_pods):
            member = PodScript(
                unseen=self.dice.choice([0, 0, 0, 1, 2, 4]),
                until_running=self.dice.choice([0, 1, 2, 2, 2, 2, 2, 2, 2, None]),
                has_ports=self.dice.random() > 0.03,
                num_gpus=0 if self.dice.random() < 0.02 else None,
                deaf=self.dice.choice([0, 0, 0, 1, 3]),
            )
            self.world.pod_scripts.append(member)
        script = ClusterScript(
            unseen=self.dice.choice([0, 0, 0, 1, 2, 4]),
            late={rank: self.dice.choice(fates) for rank in range(1, num_pods)},
            unranked=self.dice.choice([0, 0, 1, 3]),
            deaf=self.dice.choice([0, 0, 0, 1, 3]),
        )
        self.world.cluster_scripts.append(script)
        cluster = self.world.create_cluster(
            name=order.name,
            num_pods=num_pods,
            image=order.image,
            gpu=order.gpu,
            num_gpus=order.num_gpus,
            cloud="SECURE",
            disk_gb=order.disk_gb,
            ports=list(order.ports),
            env=dict(order.env),
            data_center=order.data_center,
        )
        self.outcome.clusters += 1
        return Created(cluster.cluster_id, cluster.name, 0.0)

    def list_pods(self) -> list[Pod]:
        if self.is_daemons:
            self.lists.append(self.clock.monotonic())
        self._maybe_fail()
        return [Pod.from_json(self.world.described(pod)) for pod in self.world.look()]

    def list_clusters(self) -> list[Cluster]:
        if self.is_daemons:
            self.lists.append(self.clock.monotonic())
        self._maybe_fail()
        return [Cluster.from_json(row.described()) for row in self.world.look_at_clusters()]

    def terminate(self, pod_id: str) -> None:
        self._maybe_fail()
        for pod in self.world.alive():
            if pod.pod_id == pod_id:
                if pod.cluster is not None and not pod.cluster.is_gone:
                    raise RequestRefused("409: it belongs to a cluster")
                self.world.terminate(pod)

    def terminate_cluster(self, cluster_id: str) -> bool:
        self._maybe_fail()
        for cluster in self.world.alive_clusters():
            if cluster.cluster_id == cluster_id:
                self.world.terminate_cluster(cluster)
                return True
        return False

    def gpu_offers(self, *, num_gpus: int = 1, product: str = "POD") -> list[GpuOffer]:
        del product
        self._maybe_fail()
        return [
            GpuOffer(gpu, memory, secure, community, "HIGH", {})
            for gpu, (memory, secure, community) in GPU_PRICES.items()
        ]

    def _maybe_fail(self) -> None:
        # The client repeats such a call; it fails when each try does.
        if all(self.dice.random() < self.fault_rate for _ in range(TRIES)):
            self.outcome.faults += 1
            raise ProviderFault("scripted")


class _Book:
    """A `PodBook` in memory: it outlives the daemon."""

    def __init__(self) -> None:
        self.records: dict[str, PodRecord] = {}

    def read(self, job_id: str) -> PodRecord | None:
        return self.records.get(job_id)

    def write(self, record: PodRecord) -> None:
        self.records[record.job_id] = record

    def all(self) -> list[PodRecord]:
        return list(self.records.values())

    def put_away(self, job_id: str) -> None:
        del self.records[job_id]


class _Purse(Allowance):
    """The purse's own rules, kept in memory."""

    def __init__(self, clock: ManualClock, caps: dict[str, float]) -> None:
        super().__init__(Path("/nowhere"), clock)
        self._rows: dict[str, Promise] = {}
        self._caps = caps

    def of(self, job_id: str) -> Promise | None:
        return self._rows.get(job_id)

    def all(self) -> list[Promise]:
        return list(self._rows.values())

    def limits(self) -> dict[str, float]:
        return self._caps

    def _keep(self, promise: Promise) -> None:
        self._rows[promise.job_id] = promise

    def _locked(self) -> Any:
        return contextlib.nullcontext()


class _Access(PodAccess):
    """The way to pods without ssh: the keys are one pair, and ssh always answers."""

    key_folder: Path

    @classmethod
    def _key(cls, path: Path) -> Path:  # type: ignore[override]
        return cls.key_folder / "key"

    def link(self, job_id: str, facts: Any, held: tuple[int, ...]) -> Any:
        return self

    def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def run_schedule(seed: int, *, has_reaper: bool = True, scratch: Path) -> Outcome:
    """One life of a daemon and its pods, and what is left when all leases are over."""
    dice = random.Random(seed)
    clock = ManualClock()
    outcome = Outcome(seed)
    caps = {
        "usd_hour": dice.choice([6.0, 12.0]),
        "usd_run": 1e9,
        "usd_day": dice.choice([4.0, 10.0, 30.0]),
        "usd_month": 40.0,
    }
    hands = [name for name in ("agent", "terminateAfter") if dice.random() < 0.6]
    # Dice of their own: a seed that has no clusters is the schedule that it always was.
    fate = random.Random(f"cluster {seed}")
    if fate.random() < CLUSTER_SHARE:
        outcome.nodes = fate.choice([2, 2, 3, 4])
        hands = [name for name in hands if name == "agent"]
    elif not has_reaper and not hands:
        hands = [dice.choice(["agent", "terminateAfter"])]
    outcome.hands = (*hands, *(["reaper"] if has_reaper else []))
    outcome.cap_usd = min(caps["usd_day"], caps["usd_month"])
    world = World(clock=clock, balance_usd=1000.0, keeps_leases="terminateAfter" in hands)
    client = _Client(world, clock, dice, dice.choice([0.0, 0.2, 0.5]), outcome)
    book = _Book()
    pods = RentedPods(
        client,  # type: ignore[arg-type]
        scratch,
        rental=RunpodSettings(
            # The cheap first for clusters: a cap on the hour would let few of the others pass.
            image="w", candidates=CANDIDATES[:: 1 if outcome.nodes == 1 else -1], ready_s=dice.choice([120.0, 600.0]), return_s=300.0,
            orders_max=4, max_usd_per_h=5.0 if outcome.nodes == 1 else 12.0,
        ),
        purse=_Purse(clock, caps),
        book=book,  # type: ignore[arg-type]
        clock=clock,  # type: ignore[arg-type]
    )  # fmt: skip
    pods._access = _Access(scratch, pods._rental)
    jobs = [
        JobSpec(
            f"job-{number}", "train_ebdm", dice.choice([300.0, 900.0, 3600.0]), nodes=outcome.nodes
        )
        for number in range(dice.choice([1, 1, 2, 3]))
    ]
    dies_at = clock.monotonic() + dice.uniform(0, 3000)
    _live(pods, jobs, dies_at, clock, dice, outcome, world, has_reaper, client, book)
    if client.lists:
        times = client.lists
        outcome.list_calls_max = max(sum(t <= u < t + 60 for u in times) for t in times)
    _outlive(hands, has_reaper, clock, dice, outcome, world, client, book)
    outcome.pods = len(world.all_pods)
    outcome.alive = len(world.alive())
    outcome.spent_usd = world.spent_usd()
    return outcome


def _live(
    pods: RentedPods, jobs: list[JobSpec], dies_at: float, clock: ManualClock, dice: random.Random,
    outcome: Outcome, world: World, has_reaper: bool, client: _Client, book: _Book,
) -> None:  # fmt: skip
    """The followers' steps, job by job, until the daemon dies between any two of them."""
    next_reap = clock.monotonic() + dice.uniform(0, EVERY_S)
    ends: dict[str, float] = {}
    facts: dict[str, dict[str, Any]] = {}
    done: set[str] = set()
    fate = random.Random(f"loss {outcome.seed}")
    while clock.monotonic() < dies_at and len(done) < len(jobs):
        for spec in jobs:
            if clock.monotonic() >= dies_at:
                return
            job_id = spec.job_id
            with contextlib.suppress(ScfError, BudgetExceeded):
                if job_id in done:
                    continue
                if job_id not in ends:
                    ready = pods.place(job_id, {}, spec)
                    if ready is not None:
                        facts[job_id] = ready
                        ends[job_id] = clock.monotonic() + dice.uniform(0.2, 1.0) * spec.deadline_s
                elif clock.monotonic() < ends[job_id] and spec.nodes > 1:
                    _look_after(pods, job_id, facts[job_id], ends, clock, fate, world, outcome)
                elif clock.monotonic() >= ends[job_id] and pods.release(job_id, {}, None):
                    done.add(job_id)
                    outcome.jobs_done += 1
        if has_reaper and clock.monotonic() >= next_reap:
            next_reap = clock.monotonic() + _reap(client, book, clock)
        clock.advance(STEP_S)
        world.pass_time(0.0)


def _look_after(
    pods: RentedPods, job_id: str, facts: dict[str, Any], ends: dict[str, float],
    clock: ManualClock, fate: random.Random, world: World, outcome: Outcome,
) -> None:  # fmt: skip
    """A look at a running job of several nodes: now and then somebody deletes a member by hand."""
    if fate.random() < 0.005:
        outcome.faults += 1
        world.delete_by_hand(fate.choice([facts, *facts["peers"]])["pod_id"])
    try:
        pods.link(job_id, facts)
    except MachineGone:
        outcome.losses += 1
        ends[job_id] = clock.monotonic()


def _outlive(
    hands: list[str], has_reaper: bool, clock: ManualClock, dice: random.Random, outcome: Outcome,
    world: World, client: _Client, book: _Book,
) -> None:  # fmt: skip
    """The daemon is dead. The others go on until 120 s after the last lease."""
    leases = [_lease_of(pod) for pod in world.all_pods]
    end = max([clock.now(), *leases]) + timedelta(seconds=LATE_S)
    next_reap, next_agent = clock.monotonic() + dice.uniform(0, EVERY_S), 0.0
    while clock.now() < end:
        if "agent" in hands and clock.monotonic() >= next_agent:
            next_agent = clock.monotonic() + AGENT_S
            for pod in world.alive():
                # It has two fingers, REST and GraphQL, each of which fails now and then.
                is_asked = dice.random() > 0.3 or dice.random() > 0.3
                if _lease_of(pod) > clock.now() or not is_asked:
                    continue
                if pod.cluster is not None and not pod.cluster.is_gone:
                    world.terminate_cluster(pod.cluster)
                    if pod.cluster.is_ending:
                        pod.cluster.deaf_left -= 1
                else:
                    world.terminate(pod)
                    if pod.is_ending:
                        pod.deaf_left -= 1
        if has_reaper and clock.monotonic() >= next_reap:
            next_reap = clock.monotonic() + _reap(client, book, clock)
        clock.advance(STEP_S)
        world.pass_time(0.0)


def _lease_of(pod: FakePod) -> Any:
    return parse_utc(pod.env["SCF_LEASE_UNTIL"])


def _reap(client: _Client, book: _Book, clock: ManualClock) -> float:
    """A look as `run_reaper` makes it; the pause until the next."""
    client = replace(client, is_daemons=False)
    with contextlib.suppress(ScfError):
        lots = shown(client, has_clusters=any(row.is_cluster for row in book.all()))  # type: ignore[arg-type]
        prefix = name_prefix(_Access.key_folder)
        found = strays(lots, book.all(), prefix=prefix, now=clock.now())
        told = sweep(client, found)  # type: ignore[arg-type]
        look = Look(0, told, [], lease_left_s(book.all(), clock.now()))
        return look.pause_s(EVERY_S)
    return HURRY_S


def spent_by_an_order_carried_out_twice(cap_usd: float, *, scratch: Path) -> float:
    """What comes of one order when nobody but the provider's own end is left after it, in USD."""
    _make_key(scratch)
    clock, outcome = ManualClock(), Outcome(0)
    world = World(clock=clock, balance_usd=1e6)
    client = _Client(world, clock, random.Random(0), 0.0, outcome)

    class Twice(_Client):
        def create(self, order: PodOrder, *, route: str = "graphql") -> Created:
            self._made(order)
            return self._made(order)

    caps = {"usd_hour": 1e6, "usd_run": 1e6, "usd_day": cap_usd, "usd_month": 1e6}
    pods = RentedPods(
        Twice(**vars(client)),  # type: ignore[arg-type]
        scratch,
        rental=RunpodSettings(image="w", candidates=CANDIDATES),
        purse=_Purse(clock, caps),
        book=_Book(),  # type: ignore[arg-type]
        clock=clock,  # type: ignore[arg-type]
    )
    pods._access = _Access(scratch, pods._rental)
    with contextlib.suppress(ScfError):
        pods.place("job-1", {}, JobSpec("job-1", "train_ebdm", 3600.0))
    clock.advance(24 * 3600)
    return world.spent_usd()


def _make_key(home: Path) -> None:
    (home / "key").write_bytes(b"private")
    (home / "key.pub").write_text("ssh-ed25519 AAAA")
    _Access.key_folder = home


def run_many(seeds: range, *, has_reaper: bool = True) -> list[Outcome]:
    """Schedules of these seeds."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _make_key(home)
        return [run_schedule(seed, has_reaper=has_reaper, scratch=home) for seed in seeds]


if __name__ == "__main__":
    first = int(sys.argv[1])
    for reaper in (True, False):
        print(run_many(range(first, first + 1), has_reaper=reaper)[0])
