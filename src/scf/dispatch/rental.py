"""What may be rented, and for how much: settings of the RunpodDoor, as values."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from scf.core.errors import UsageError

H100_SXM = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Candidate:
    """A kind of pod that would do.

    Attributes:
        gpu: GPU type as the catalogue names it.
        data_center: Where; None leaves it to the provider.
        cloud: `SECURE` or `COMMUNITY`; a cluster is where the provider has it.
    """

    gpu: str = H100_SXM
    data_center: str | None = None
    cloud: str = "SECURE"


def candidates(
    gpus: Iterable[str], data_centers: Collection[str], cloud: str
) -> tuple[Candidate, ...]:
    """Each GPU type in each data centre, in order of preference; no centre leaves it to them."""
    return tuple(
        Candidate(gpu, center, cloud) for gpu in gpus for center in data_centers or (None,)
    )


@dataclass(frozen=True, kw_only=True)
class RunpodSettings:
    """What is rented, and for how much.

    Attributes:
        image: Container image of the worker, by digest.
        candidates: Tried in this order.
        max_usd_per_h: What costs more is not rented, and ended if it turns out to: a pod, or all
            pods of a cluster together.
        max_usd_per_job: Price times lease of it stays below.
        num_gpus: GPUs in a pod.
        disk_gb: Its disk.
        min_cuda: Oldest CUDA version of the host's driver; None for any.
        user: Login on the pod; None: as the provider says it.
        route: `graphql` (with the server-side end) or `rest`.
        ready_s: From the order until ssh answers; then the next candidate is tried.
        return_s: Part of the lease after the job's deadline: its outputs come back in it.
        orders_max: Pods that may be rented and given up for one job.
        look_s: Pause between two list calls.
        visible_s: A pod that was ordered may be missing from lists this long.
        root: Folder on the pod.
        python: The pod's Python.
        bandwidth_kib_s: Limit for transfers; None for no limit.
    """

    image: str
    candidates: tuple[Candidate, ...] = (Candidate(),)
    max_usd_per_h: float = 5.0
    max_usd_per_job: float = 25.0
    num_gpus: int = 1
    disk_gb: int = 80
    min_cuda: str | None = "13.0"
    user: str | None = None
    route: str = "graphql"
    ready_s: float = 1200.0
    return_s: float = 1800.0
    orders_max: int = 6
    look_s: float = 20.0
    visible_s: float = 120.0
    root: str = "/workspace/scf"
    python: str = "python3"
    bandwidth_kib_s: int | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UsageError("runpod: give at least one candidate")
