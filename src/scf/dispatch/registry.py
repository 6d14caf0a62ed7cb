"""Which doors there are, by name, and how one is opened. The only file that knows more than one.

A door is imported when it is opened: who runs jobs on this machine needs neither httpx nor rsync.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scf.core.errors import MissingTool, UsageError
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.transfer import SshBox
from scf.storage.partitions import Folder

LOCAL, SSH, RUNPOD = "local", "ssh", "runpod"
NAMES = (LOCAL, SSH, RUNPOD)


@dataclass(frozen=True, kw_only=True)
class RunpodAccess:
    """What it takes to rent.

    Attributes:
        key: The API key; it is not printed.
        image: Container image of the worker, by digest.
        rest: Address of REST v2 (`SCF_RUNPOD_REST`); None for the provider's.
        graphql: Address of GraphQL (`SCF_RUNPOD_GRAPHQL`); None for the provider's.
        gpus: GPU types in order of preference.
        max_usd_per_h: See `RunpodSettings`.
        max_usd_per_job: See `RunpodSettings`.
        approve: Asked before each order with the job's id and its greatest cost; raises
            BudgetExceeded.
    """

    key: str
    image: str
    rest: str | None = None
    graphql: str | None = None
    gpus: tuple[str, ...] = ("NVIDIA H100 80GB HBM3",)
    max_usd_per_h: float = 5.0
    max_usd_per_job: float = 25.0
    approve: Callable[[str, float], None] | None = None

    def __repr__(self) -> str:
        return f"RunpodAccess(image={self.image!r}, gpus={self.gpus!r})"


def open_door(
    name: str,
    jobs: Folder,
    home: Path,
    *,
    box: SshBox | None = None,
    runpod: RunpodAccess | None = None,
) -> Dispatcher:
    """Open a door, and go on with what it had open.

    Args:
        name: One of `NAMES`.
        jobs: Where bundles lie, on the drive.
        home: The home.
        box: The machine, for `ssh`.
        runpod: The account, for `runpod`.

    Raises:
        UsageError: There is no such door, or what it needs was not given.
        MissingTool: A program or a library that it needs is not installed.
    """
    if name == LOCAL:
        from scf.dispatch.local import LocalDoor

        return LocalDoor(jobs, home)
    if name == SSH:
        if box is None:
            raise UsageError("the ssh door needs a box", remedy="See docs/operations/ssh-door.md.")
        from scf.dispatch.ssh import SshDoor

        ssh = SshDoor(box, jobs, home)
        ssh.resume()
        return ssh
    if name == RUNPOD:
        if runpod is None:
            raise UsageError("the runpod door needs an API key and an image")
        return _open_runpod(jobs, home, runpod)
    raise UsageError(f"door {name!r}: one of {', '.join(NAMES)}")


def _open_runpod(jobs: Folder, home: Path, access: RunpodAccess) -> Dispatcher:
    try:
        from scf.dispatch.runpod import Candidate, RunpodDoor, RunpodSettings
        from scf.dispatch.runpod_client import GRAPHQL, REST, ApiKey, RunpodClient
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise MissingTool(
            "the runpod door needs httpx", remedy="pip install 'scf[cloud]'"
        ) from error
    client = RunpodClient(
        ApiKey(access.key), rest=access.rest or REST, graphql=access.graphql or GRAPHQL
    )
    rental = RunpodSettings(
        image=access.image,
        candidates=tuple(Candidate(gpu) for gpu in access.gpus),
        max_usd_per_h=access.max_usd_per_h,
        max_usd_per_job=access.max_usd_per_job,
    )
    door = RunpodDoor(client, jobs, home, rental=rental, approve=access.approve)
    door.resume()
    return door
