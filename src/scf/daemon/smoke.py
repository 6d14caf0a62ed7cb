"""`scf pods smoke`: rent the cheapest fitting pod, run a one-minute job, give it back, say all.

It goes the way of every job (`RunpodDoor`), so what it learns holds for training: whether the order
is taken, how long until ssh answers, what the image holds. Whatever happens, the pod is told to end
and is seen to be gone before this returns; where that cannot be seen, it says so, loudly.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scf.config import FoundryConfig
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock
from scf.core.errors import BudgetExceeded, DoorError, DoorUnavailable, ScfError
from scf.daemon.allowance import Allowance
from scf.daemon.doors import access_of
from scf.dispatch.job import ExitReason, JobExit, JobPhase, JobSpec
from scf.dispatch.pod_record import PodFiles
from scf.dispatch.registry import RunpodAccess, open_client, open_runpod
from scf.dispatch.rental import candidates
from scf.dispatch.runpod_model import GpuOffer
from scf.storage import durable
from scf.storage.partitions import Folder

if TYPE_CHECKING:
    from scf.dispatch.runpod import RunpodDoor

JOB_S = 60.0
LOOK_S = 1.0
# What fails for so long without a break (no capacity, no balance) is not waited for here.
TROUBLE_MAX_S = 120.0
# After the job, its outputs come back in this time, and the pod is told to end.
RETURN_S = 180.0
# How long the end of the pod is waited for.
GONE_S = 300.0
OFFERS_MAX = 4

_POD_NAME = re.compile(r" scf-[0-9a-f-]+")


class SmokeFailed(DoorError):
    """The provider, or the pod, did not do what it must."""


@dataclass
class SmokeReport:
    """What was learnt, in the order in which it was.

    Attributes:
        lines: (what, value).
        machine: What the job said of the machine; empty when it said nothing.
        is_gone: Whether the pod was seen to be gone.
    """

    lines: list[tuple[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    is_gone: bool = True

    def note(self, what: str, value: Any, talk: Callable[[str], None]) -> None:
        """Keep it, and say it."""
        self.lines.append((what, value))
        talk(f"{what:28} {value}")

    def to_json(self) -> dict[str, Any]:
        learnt = [{"what": what, "value": value} for what, value in self.lines]
        return {
            "schema_version": 1,
            "learnt": learnt,
            "machine": self.machine,
            "is_gone": self.is_gone,
        }


def smoke(
    config: FoundryConfig,
    clock: Clock,
    *,
    max_usd: float,
    timeout_s: float,
    job_s: float = JOB_S,
    talk: Callable[[str], None] = lambda _: None,
    report: SmokeReport | None = None,
) -> SmokeReport:
    """Rent, look, run, give back.

    Args:
        config: All settings; `[runpod]` says the image.
        clock: Time.
        max_usd: The pod's price times its lease stays below.
        timeout_s: From the order until the job has ended.
        job_s: How long the job works.
        talk: Gets what is learnt, a line each.
        report: Filled as it goes, so that what was learnt before a failure is not lost.

    Raises:
        SmokeFailed: And no pod is left; where one may be, the message says which.
        DoorUnavailable, KeyRefused: Nothing was rented.
        BudgetExceeded: A cap, or `max_usd`, speaks against it. Nothing was rented.
    """
    EmergencyLock(config.home).require_clear("renting a pod")
    report = SmokeReport() if report is None else report
    access = access_of(config, clock)
    lease_s = timeout_s + RETURN_S
    cloud = config.runpod.cloud
    offers = _affordable(config.home, clock, access, cloud, lease_s, max_usd, report, talk)
    job_id = f"smoke-{secrets.token_hex(6)}"
    spec = JobSpec(job_id=job_id, kind="smoke", deadline_s=timeout_s, config={"seconds": job_s})
    # The lease is ready_s + deadline + return_s: all of it within `lease_s`.
    wanted = access.rental
    rental = replace(
        wanted,
        candidates=candidates((o.gpu for o in offers), config.runpod.data_centers, cloud),
        max_usd_per_h=max(offer.usd_per_h(cloud) for offer in offers) * wanted.num_gpus,
        max_usd_per_job=max_usd,
        ready_s=timeout_s / 2,
        return_s=RETURN_S / 2,
        look_s=min(wanted.look_s, 15.0),
    )
    spec = replace(spec, deadline_s=timeout_s / 2)
    folder = config.home / "smoke"
    folder.mkdir(mode=0o700, exist_ok=True)
    door = open_runpod(Folder.at(folder), config.home, replace(access, rental=rental))
    try:
        ended = _run(door, spec, clock, timeout_s, report, talk)
        _learn(door, job_id, ended, report, talk)
    finally:
        try:
            _give_back(door, job_id, config, clock, report, talk)
        except KeyboardInterrupt:
            with contextlib.suppress(DoorError):
                door.cancel(job_id, at_once=True)
            talk("... not waited for: `scf pods` shows whether it is gone; its lease ends it, too")
            raise
        door.close()
        shutil.rmtree(folder / job_id, ignore_errors=True)
    if not report.is_gone:
        raise SmokeFailed(
            f"the pod of {job_id} was told to end and was not seen to be gone",
            remedy="Look at once: `scf pods`; or end it in the console. Its lease ends it, too.",
        )
    if ended.reason is not ExitReason.COMPLETED:
        raise SmokeFailed(f"the job ended with {ended.reason}: {ended.detail}")
    return report


def _affordable(
    home: Path,
    clock: Clock,
    access: RunpodAccess,
    cloud: str,
    lease_s: float,
    max_usd: float,
    report: SmokeReport,
    talk: Callable[[str], None],
) -> list[GpuOffer]:
    """The cheapest GPU types that are to be had, cheapest first."""
    from scf.dispatch.rented_pods import OVERRUN_S, PODS_OF_AN_ORDER

    client = open_client(access)
    try:
        catalogue = client.gpu_offers(num_gpus=access.rental.num_gpus)
        skew_s = client.clock_skew_s
    finally:
        client.close()
    report.note("key", "accepted", talk)
    report.note("clock ahead by", "unknown" if skew_s is None else f"{skew_s:.0f} s", talk)
    offered = [
        offer
        for offer in catalogue
        if offer.usd_per_h(cloud) > 0 and offer.availability not in {None, "NONE"}
    ]
    offered.sort(key=lambda offer: offer.usd_per_h(cloud))
    report.note("GPU types to be had", len(offered), talk)
    if not offered:
        raise DoorUnavailable("the catalogue offers no GPU at present")
    hours = (lease_s + OVERRUN_S) / 3600 * access.rental.num_gpus
    fitting = [offer for offer in offered if offer.usd_per_h(cloud) * hours <= max_usd]
    if not fitting:
        least = offered[0].usd_per_h(cloud) * hours
        raise BudgetExceeded(
            f"the cheapest pod ({offered[0].gpu}) may cost {least:.2f} USD in its lease of "
            f"{lease_s:.0f} s and {OVERRUN_S:.0f} s more, over --max-usd {max_usd:.2f}",
            remedy="Allow more (--max-usd), or a shorter time (--timeout).",
        )
    best = fitting[0]
    report.note("cheapest", f"{best.gpu} at {best.usd_per_h(cloud):.2f} USD/h", talk)
    usd_per_h = PODS_OF_AN_ORDER * best.usd_per_h(cloud) * access.rental.num_gpus
    max_usd = PODS_OF_AN_ORDER * best.usd_per_h(cloud) * hours
    Allowance(home, clock).require_room("the smoke test", max_usd, usd_per_h=usd_per_h)
    return fitting[:OFFERS_MAX]


def _run(
    door: "RunpodDoor",
    spec: JobSpec,
    clock: Clock,
    timeout_s: float,
    report: SmokeReport,
    talk: Callable[[str], None],
) -> JobExit:
    began = clock.monotonic()
    door.submit(spec, {})
    stage, trouble, troubled_at = "", "", 0.0
    while True:
        try:
            status = door.poll(spec.job_id)
        except DoorUnavailable as error:
            said = str(error)
        else:
            said = str(status.placement.get("trouble", ""))
            now_at = str(status.placement.get("stage", ""))
            if now_at != stage:
                stage, trouble = now_at, ""
                report.note(f"stage {stage}", f"after {clock.monotonic() - began:.1f} s", talk)
            if status.phase is JobPhase.ENDED:
                assert status.exit is not None
                return status.exit
        if said and not trouble:
            troubled_at = clock.monotonic()
        # The same words each time: without the moment and the name, which is new for each order.
        said = _POD_NAME.sub("", said.rpartition("Z: ")[2])
        if said and said != trouble:
            talk(f"... {said}")
            trouble = said  # until the next stage: between two candidates there is none
        if trouble and clock.monotonic() - troubled_at > TROUBLE_MAX_S:
            return JobExit(ExitReason.TIMED_OUT, f"nothing else for {TROUBLE_MAX_S:g} s: {trouble}")
        if clock.monotonic() - began > timeout_s:
            why = f"; {trouble}" if trouble else ""
            return JobExit(ExitReason.TIMED_OUT, f"no end after {timeout_s:g} s{why}")
        clock.sleep(LOOK_S)


def _learn(
    door: "RunpodDoor",
    job_id: str,
    ended: JobExit,
    report: SmokeReport,
    talk: Callable[[str], None],
) -> None:
    with contextlib.suppress(DoorError):
        placement = door.poll(job_id).placement
        for key in ("pod_id", "user", "port", "python", "code", "cost_usd_per_h"):
            if key in placement:
                report.note(key, placement[key], talk)
    if ended.reason is ExitReason.COMPLETED:
        with contextlib.suppress(ScfError, OSError):
            path = door.collect(job_id) / "outputs" / "smoke.json"
            report.machine = durable.read_json(path)
            for key, value in sorted(report.machine.items()):
                report.note(key, value, talk)


def _give_back(
    door: "RunpodDoor",
    job_id: str,
    config: FoundryConfig,
    clock: Clock,
    report: SmokeReport,
    talk: Callable[[str], None],
) -> None:
    """End the pod and see that it is gone, however the job ended; also after Ctrl-C."""
    report.is_gone = False
    talk(
        f"... giving the pod back, and waiting until it is seen to be gone ({GONE_S:.0f} s at most)"
    )
    with contextlib.suppress(DoorError):
        door.cancel(job_id, at_once=True)
    deadline = clock.monotonic() + GONE_S
    while clock.monotonic() < deadline:
        with contextlib.suppress(DoorError):
            status = door.poll(job_id)
            if status.phase is JobPhase.ABSENT or status.placement.get("stage") == "released":
                report.is_gone = True
                break
            if "stage" not in status.placement and status.phase is JobPhase.ENDED:
                report.is_gone = True  # it was never ordered
                break
        clock.sleep(LOOK_S)
    record = PodFiles(config.home / "runpod").read(job_id)
    if record is not None:
        if record.detail and len(record.rented) > 1:
            report.note("given up before", record.detail, talk)
        report.note("pods rented", len(record.rented), talk)
        report.note("cost, by price and time", f"{record.cost_usd(clock.now()):.4f} USD", talk)
        report.note("lease was until", record.lease_until, talk)
    report.note("pod is gone", "yes" if report.is_gone else "NOT SEEN", talk)
