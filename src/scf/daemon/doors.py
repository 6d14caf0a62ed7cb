"""The doors of one home, in the operator's order, each opened when it is first asked for.

What a door needs comes from the settings: addresses, limits, where its key lies. A door that cannot
be opened (a tool is missing, the box is off, there is no key) says why and is tried again later; it
keeps no other door from being used.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from scf.config import FoundryConfig
from scf.core.clock import Clock, SystemClock
from scf.core.errors import DoorUnavailable, InputError, ScfError, UsageError
from scf.daemon.allowance import Allowance
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.local import WORKER, LocalDoor
from scf.dispatch.ray_access import GUIDE, RaySettings, RayToken
from scf.dispatch.ray_nodes import RayGroup
from scf.dispatch.registry import LOCAL, RAY, RUNPOD, SSH, BoxAccess, RunpodAccess, open_door
from scf.dispatch.remote_state import RemoteJobs
from scf.dispatch.rental import RunpodSettings, candidates
from scf.dispatch.runpod_key import find_key
from scf.storage.partitions import Folder

OpenDoor = Callable[[Folder, Path], Dispatcher]
OpenByName = Callable[[str], Dispatcher]

REOPEN_S = 60.0


def open_local_door(jobs: Folder, home: Path) -> Dispatcher:
    """The door of this machine, with the worker that knows training and measuring."""
    return LocalDoor(jobs, home, worker=WORKER)


class Doors:
    """The doors by name. Used by the conductor's thread alone.

    Args:
        order: Names in order of preference.
        open_one: Opens a door by its name; raises ScfError when it cannot.
        clock: Time.
        left_open: Doors with jobs of an earlier day, of which something may be left elsewhere.
    """

    def __init__(
        self,
        order: tuple[str, ...],
        open_one: OpenByName,
        clock: Clock | None = None,
        left_open: tuple[str, ...] = (),
    ) -> None:
        self.order = order
        self._left_open = left_open
        self._open_one = open_one
        self._clock = clock or SystemClock()
        self._open: dict[str, Dispatcher] = {}
        self._shut: dict[str, tuple[float, DoorUnavailable]] = {}

    def get(self, name: str) -> Dispatcher:
        """The door called `name`; one that would not open is tried again after `REOPEN_S`.

        Raises:
            DoorUnavailable: It cannot be opened, with the reason.
        """
        if name in self._open:
            return self._open[name]
        now = self._clock.monotonic()
        again, why = self._shut.get(name, (now, None))
        if why is not None and now < again:
            raise why
        try:
            self._open[name] = self._open_one(name)
        except ScfError as error:
            text = f"the {name} door cannot be opened: {error}"
            unavailable = DoorUnavailable(text, remedy=error.remedy)
            self._shut[name] = (now + REOPEN_S, unavailable)
            raise unavailable from error
        self._shut.pop(name, None)
        return self._open[name]

    @property
    def local(self) -> Dispatcher:
        """This machine, where everything is measured whatever the order says."""
        return self.get(LOCAL)

    @property
    def is_giving_back(self) -> bool:
        """Whether some rented machine may still be there: nobody leaves before it is gone."""
        return any(getattr(door, "is_giving_back", False) for door in self._open.values())

    def close(self) -> None:
        """Let go of all of them. Jobs go on, and are found again by whoever opens a door anew."""
        for door in self._open.values():
            close = getattr(door, "close", None)
            if close is not None:
                close()
        self._open.clear()

    def resume(self) -> None:
        """Go on with what paid doors had open: a pod whose job has ended is still to be given back.

        Also of a door that the settings do not name any more. One that does not open is passed
        over; it is tried again when it is asked for.
        """
        for name in dict.fromkeys([*self.order, *self._left_open]):
            if name != LOCAL:
                try:
                    self.get(name)
                except DoorUnavailable:
                    continue


def open_doors(
    config: FoundryConfig,
    jobs: Folder,
    clock: Clock,
    *,
    open_local: OpenDoor = open_local_door,
    environment: Mapping[str, str] | None = None,
) -> Doors:
    """The doors that the settings describe; none of them is opened yet.

    Args:
        config: All settings.
        jobs: Where bundles lie, on the drive.
        clock: Time.
        open_local: Opens the door of this machine; tests bring their own worker.
        environment: Where an API key may stand (default: this process's).
    """

    def open_one(name: str) -> Dispatcher:
        if name == LOCAL:
            return open_local(jobs, config.home)
        return open_door(
            name,
            jobs,
            config.home,
            box=box_of(config) if name == SSH else None,
            runpod=access_of(config, clock, environment) if name == RUNPOD else None,
            ray=cluster_of(config) if name == RAY else None,
        )

    left_open = tuple(name for name in (SSH, RUNPOD, RAY) if _has_open_jobs(config.home, name))
    return Doors(config.doors.order, open_one, clock, left_open)


def _has_open_jobs(home: Path, name: str) -> bool:
    """Whether something of a job may be left there; a record that cannot be read counts as one."""
    folder = home / f"{name}_jobs"
    try:
        return folder.is_dir() and bool(RemoteJobs(folder).open_jobs())
    except InputError:
        return True


def box_of(config: FoundryConfig) -> BoxAccess:
    """The machine of `[ssh]`. Raises DoorUnavailable when none is given."""
    given = config.ssh
    if not given.host:
        raise DoorUnavailable("[ssh] host is not set", remedy="See docs/operations/ssh-door.md.")
    box = BoxAccess(
        name=given.name,
        host=given.host,
        port=given.port,
        user=given.user,
        host_keys=given.host_keys,
        identity=Path(given.identity).expanduser() if given.identity else None,
        root=given.root,
        python=given.python,
        bandwidth_kib_s=given.bandwidth_kib_s or None,
        cache_max_bytes=given.cache_max_bytes or None,
        look_s=given.look_s,
    )
    peers = tuple(_peer(box, number, row) for number, row in enumerate(given.peers, 1))
    return replace(box, peers=peers)


def _peer(box: BoxAccess, number: int, row: str) -> BoxAccess:
    """One more machine: another address and another host key, all else the same."""
    address, kind, key = row.split()
    host, _, port = address.partition(":")
    if port and not port.isdecimal():
        raise UsageError(f"[ssh] peers: {address!r} is not HOST or HOST:PORT")
    return replace(
        box,
        name=f"{box.name}-{number}",
        host=host,
        port=int(port or 22),
        host_keys=(f"{kind} {key}",),
    )


def cluster_of(config: FoundryConfig) -> RaySettings:
    """The cluster of `[ray]`.

    Raises:
        DoorUnavailable: None is given.
        OperatorError: Its token is not here, or others may read it.
    """
    given = config.ray
    if not given.address:
        raise DoorUnavailable("[ray] address is not set", remedy=GUIDE)
    token_file = Path(given.token_file or config.home / "ray.token").expanduser()
    RayToken.read(token_file)
    return RaySettings(
        address=given.address,
        token_file=token_file,
        group=RayGroup(given.nodes, given.procs, given.cpus, given.gpus),
        node=given.node,
        root=given.root,
        python=given.python,
        ports=given.ports,
        look_s=given.look_s,
    )


def access_of(
    config: FoundryConfig, clock: Clock, environment: Mapping[str, str] | None = None
) -> RunpodAccess:
    """The account of `[runpod]`, its key and its purse.

    Raises:
        DoorUnavailable: No image is given.
        OperatorError: There is no key, or others may read its file.
    """
    if not config.runpod.image:
        raise DoorUnavailable(
            "[runpod] image is not set", remedy="See docs/operations/first-h100-run.md."
        )
    access = account_of(config, environment)
    return replace(access, purse=Allowance(config.home, clock))


def account_of(config: FoundryConfig, environment: Mapping[str, str] | None = None) -> RunpodAccess:
    """The same without a purse and whether or not there is an image: for looking and for ending.

    Raises:
        OperatorError: There is no key, or others may read its file.
    """
    given = config.runpod
    found = find_key(
        config.home, given.key_file, os.environ if environment is None else environment
    )
    rental = RunpodSettings(
        image=given.image,
        candidates=candidates(given.gpus, given.data_centers, given.cloud),
        num_gpus=given.num_gpus,
        disk_gb=given.disk_gb,
        min_cuda=given.min_cuda or None,
        user=given.user or None,
        max_usd_per_h=given.max_usd_per_h,
        max_usd_per_job=given.max_usd_per_job,
        ready_s=given.ready_s,
        return_s=given.return_s,
        look_s=given.look_s,
        visible_s=given.visible_s,
        route=given.route,
        root=given.root,
        python=given.python,
        bandwidth_kib_s=given.bandwidth_kib_s or None,
    )
    return RunpodAccess(
        key=found.key, rental=rental, rest=given.rest or None, graphql=given.graphql or None
    )
