"""The ssh door: jobs on a machine of the user's own.

The machine has Python with what training needs, rsync and an ssh server; scf itself is sent. A job
gets a session of its own there, so that it lives on when the link is cut, and is found again by a
daemon that comes back. How to set a box up: docs/operations/ssh-door.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.core.clock import Clock
from scf.core.errors import DoorUnavailable, UsageError
from scf.dispatch.follower import FollowSettings
from scf.dispatch.group_link import GroupLink
from scf.dispatch.job import JobSpec
from scf.dispatch.remote import RemoteDoor, sender_of
from scf.dispatch.transfer import BoxFault, Link, SshBox, SshLink
from scf.storage.partitions import Folder


class SshDoor(RemoteDoor):
    """Runs jobs on a box of the user's own. Promises: `Dispatcher`.

    Args:
        box: The machine.
        jobs: Where bundles lie, on the drive.
        home: The home; the door's small files go to `home/ssh_jobs` and `home/ssh`.
        settings: Intervals, limits, the worker; by default this scf's own code is sent.
        clock: Time.
        peers: More machines, which train together with `box`; `box.host` is where they meet.
    """

    def __init__(
        self,
        box: SshBox,
        jobs: Folder,
        home: Path,
        *,
        settings: FollowSettings | None = None,
        clock: Clock | None = None,
        peers: Sequence[SshBox] = (),
    ) -> None:
        super().__init__(
            "ssh",
            _OwnBox(box, home, peers),
            jobs=jobs,
            home=home,
            settings=settings or FollowSettings(code=home / "code"),
            clock=clock,
        )


class _OwnBox:
    """A machine that is always the same and is never given back."""

    is_rented = False

    def __init__(self, box: SshBox, home: Path, peers: Sequence[SshBox]) -> None:
        self._box = box
        self._peers = tuple(peers)
        self._folder = home / "ssh"
        self._sender = sender_of(home)

    def expect(self, spec: JobSpec) -> Mapping[str, Any]:
        known = 1 + len(self._peers)
        if spec.nodes not in {1, known}:
            raise UsageError(f"{spec.job_id}: {spec.nodes} nodes; the ssh door has {known}")
        try:
            self._link().call("prepare", {"wanted": []}, limit_s=30.0)
        except BoxFault as error:
            raise DoorUnavailable(str(error), remedy=error.remedy) from error
        return {"box": self._box.name, "address": f"{self._box.host}:{self._box.port}"}

    def place(self, job_id: str, facts: dict[str, Any], spec: JobSpec) -> dict[str, Any] | None:
        del job_id, spec
        return facts

    def link(
        self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...] = ()
    ) -> SshLink | None:
        del job_id, facts
        return self._link(held)

    def release(self, job_id: str, facts: Mapping[str, Any], link: Link | None) -> bool:
        del facts
        return link is not None and bool(link.call("forget", {"job_id": job_id})["forgotten"])

    def end_at_once(self, job_id: str) -> None:
        """The machine stays."""

    def cost_usd(self, job_id: str) -> float | None:
        del job_id
        return None

    def _link(self, held: tuple[int, ...] = ()) -> SshLink:
        boxes = (self._box, *self._peers)
        links = [SshLink(box, self._folder, self._sender, held) for box in boxes]
        return GroupLink(links, self._box.host) if self._peers else links[0]
