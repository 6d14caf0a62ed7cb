"""Which doors there are, by name, and how one is opened. The only file that knows more than one.

A door is imported when it is opened: who runs jobs on this machine needs neither httpx nor rsync.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scf.core.errors import MissingTool, UsageError
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.nodes import PROCS
from scf.dispatch.purse import Purse
from scf.dispatch.ray_access import GUIDE, RaySettings
from scf.dispatch.rental import RunpodSettings
from scf.dispatch.transfer import SshBox
from scf.storage.partitions import Folder

if TYPE_CHECKING:
    from scf.dispatch.runpod import RunpodDoor
    from scf.dispatch.runpod_client import RunpodClient

LOCAL, SSH, RUNPOD, RAY = "local", "ssh", "runpod", "ray"
NAMES = (LOCAL, SSH, RUNPOD, RAY)


@dataclass(frozen=True, kw_only=True)
class BoxAccess(SshBox):
    """A machine of the user's own, and how often its jobs are looked at.

    Attributes:
        look_s: Pause between looks at a running job.
        peers: More machines, which train together with it.
    """

    look_s: float = 15.0
    peers: tuple[SshBox, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunpodAccess:
    """What it takes to rent.

    Attributes:
        key: The API key; it is not printed.
        rental: What is rented, and for how much.
        rest: Address of REST v2 (`SCF_RUNPOD_REST`); None for the provider's.
        graphql: Address of GraphQL (`SCF_RUNPOD_GRAPHQL`); None for the provider's.
        purse: Asked before each order.
        worker: The worker's command line; None for the real one.
    """

    key: str
    rental: RunpodSettings
    rest: str | None = None
    graphql: str | None = None
    purse: Purse | None = None
    worker: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"RunpodAccess(rental={self.rental!r})"


def open_door(
    name: str,
    jobs: Folder,
    home: Path,
    *,
    box: SshBox | None = None,
    runpod: RunpodAccess | None = None,
    ray: RaySettings | None = None,
) -> Dispatcher:
    """Open a door, and go on with what it had open.

    Args:
        name: One of `NAMES`.
        jobs: Where bundles lie, on the drive.
        home: The home.
        box: The machine, for `ssh`.
        runpod: The account, for `runpod`.
        ray: The cluster, for `ray`.

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
        from scf.dispatch.follower import FollowSettings
        from scf.dispatch.ssh import SshDoor

        access = box if isinstance(box, BoxAccess) else BoxAccess(**vars(box))
        settings = FollowSettings(code=home / "code", look_s=access.look_s)
        ssh = SshDoor(box, jobs, home, settings=settings, peers=access.peers)
        ssh.resume()
        return ssh
    if name == RUNPOD:
        if runpod is None:
            raise UsageError("the runpod door needs an API key and an image")
        return open_runpod(jobs, home, runpod)
    if name == RAY:
        if ray is None:
            raise UsageError("the ray door needs a cluster", remedy=GUIDE)
        try:
            from scf.dispatch.ray_door import RayDoor
        except ModuleNotFoundError as error:
            raise _no_httpx(error, name) from error
        on_ray = RayDoor(ray, jobs, home)
        on_ray.resume()
        return on_ray
    raise UsageError(f"door {name!r}: one of {', '.join(NAMES)}")


def open_runpod(jobs: Folder, home: Path, access: RunpodAccess) -> "RunpodDoor":
    """The runpod door, going on with what it had open. Raises MissingTool without httpx."""
    try:
        from scf.dispatch.runpod import RunpodDoor
    except ModuleNotFoundError as error:
        raise _no_httpx(error, RUNPOD) from error
    from scf.dispatch.follower import WORKER, FollowSettings

    # Several GPUs in a pod work together: one process each.
    rental = access.rental
    together = {PROCS: str(rental.num_gpus)} if rental.num_gpus > 1 else {}
    settings = FollowSettings(
        code=home / "code",
        look_s=rental.look_s,
        worker=access.worker or WORKER,
        environment=together,
    )
    door = RunpodDoor(
        open_client(access),
        jobs,
        home,
        rental=rental,
        purse=access.purse,
        settings=settings,
        owns_client=True,
    )
    door.resume()
    return door


def open_client(access: RunpodAccess, *, timeout_s: float = 30.0) -> "RunpodClient":
    """The account's client; no call takes longer than `timeout_s`, and few are made three times."""
    from scf.dispatch.runpod_client import GRAPHQL, REST, ApiKey, RunpodClient

    return RunpodClient(
        ApiKey(access.key),
        rest=access.rest or REST,
        graphql=access.graphql or GRAPHQL,
        timeout_s=timeout_s,
    )


def _no_httpx(error: ModuleNotFoundError, name: str) -> MissingTool:
    if error.name != "httpx":
        raise error
    return MissingTool(f"the {name} door needs httpx", remedy="pip install 'scf[cloud]'")
