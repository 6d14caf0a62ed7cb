"""The ray door: jobs on a LAN of machines that Ray holds together.

One job is one Ray job, and Ray starts its gate (`ray_gate`): the worker runs beside it, files go
through it. Training is done by as many nodes as the settings say, in the processes of Ray Train
(`ray_train`); any other job by the first node alone. This machine needs no ray, only its token and
a way to the cluster. How to set one up: docs/operations/ray-door.md.
"""

import dataclasses
import json
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scf.core.clock import Clock
from scf.core.errors import DoorUnavailable, UsageError
from scf.core.identity import sha256_hex
from scf.dispatch.follower import FollowSettings, MachineGone
from scf.dispatch.job import JobSpec
from scf.dispatch.ray_access import RaySettings, RayToken
from scf.dispatch.ray_gate import MARK, key_of
from scf.dispatch.ray_jobs import RayJobs
from scf.dispatch.ray_link import RayBox, RayLink
from scf.dispatch.remote import RemoteDoor, sender_of
from scf.dispatch.transfer import BoxFault, Link
from scf.dispatch.wheel import build_wheel
from scf.storage.partitions import Folder

# A gate whose job is over stays so long, for what it made to be fetched.
IDLE_S = 24 * 3600.0


class RayDoor(RemoteDoor):
    """Runs jobs on a Ray cluster. Promises: `Dispatcher`.

    Args:
        ray: The cluster.
        jobs: Where bundles lie, on the drive.
        home: The home; the door's small files go to `home/ray_jobs`.
        settings: Intervals, limits, the worker.
        clock: Time.

    Raises:
        OperatorError: There is no token, or others may read it.
    """

    def __init__(
        self,
        ray: RaySettings,
        jobs: Folder,
        home: Path,
        *,
        settings: FollowSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings = settings or FollowSettings(look_s=ray.look_s)
        # The code comes as the Ray job's package, for the nodes that help as well.
        environment = {**settings.environment, **ray.group.environment()}
        settings = dataclasses.replace(settings, code=None, environment=environment)
        self._cluster = _Cluster(ray, sender_of(home))
        super().__init__(
            "ray",
            self._cluster,
            jobs=jobs,
            home=home,
            settings=settings,
            clock=clock,
            check=lambda: None,
        )

    def close(self, *, limit_s: float = 10.0) -> None:
        super().close(limit_s=limit_s)
        self._cluster.close()


class _Cluster:
    """Starts, reaches and ends the Ray job of a job of ours."""

    is_rented = False

    def __init__(self, ray: RaySettings, sender: str) -> None:
        self._ray = ray
        self._sender = sender
        self._token = RayToken.read(ray.token_file)
        self._jobs = RayJobs(ray.address, self._token)
        self._links: dict[str, RayLink] = {}
        self._links_lock = threading.Lock()

    def close(self) -> None:
        """Let go of all connections."""
        with self._links_lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        self._jobs.close()

    def expect(self, spec: JobSpec) -> Mapping[str, Any]:
        if spec.nodes not in {1, self._ray.group.nodes}:
            known = self._ray.group.nodes
            raise UsageError(f"{spec.job_id}: {spec.nodes} nodes; the ray door has {known}")
        version = self._jobs.check()
        submission_id = self._submission_id(spec.job_id)
        return {"cluster": self._ray.address, "ray": version, "submission_id": submission_id}

    def place(self, job_id: str, facts: dict[str, Any], spec: JobSpec) -> dict[str, Any] | None:
        """Have Ray start the gate, once, and learn where it is."""
        submission_id = self._submission_id(job_id)
        info = self._jobs.info(submission_id)
        if info is None:
            self._submit(submission_id, spec)
            return None
        if info.is_over:
            raise MachineGone(self._how_it_went(submission_id, info.message))
        gate = _gate_in(self._jobs.log(submission_id))
        return None if gate is None else {**facts, "submission_id": submission_id, "gate": gate}

    def link(
        self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...] = ()
    ) -> RayLink | None:
        del held
        if "gate" not in facts:
            return None
        submission_id = self._submission_id(job_id)
        info = self._jobs.info(submission_id)
        if info is None:
            raise MachineGone(
                f"the Ray cluster at {self._ray.address} knows nothing of {submission_id}: its "
                "head was started anew"
            )
        if info.is_over:
            raise MachineGone(self._how_it_went(submission_id, info.message))
        with self._links_lock:
            if submission_id not in self._links:
                box = RayBox(str(facts["gate"]), self._ray.python)
                key = key_of(self._token.text, submission_id)
                self._links[submission_id] = RayLink(box, str(facts["gate"]), key)
            return self._links[submission_id]

    def release(self, job_id: str, facts: Mapping[str, Any], link: Link | None) -> bool:
        """Take the bundle away there, then end the gate."""
        del facts
        submission_id = self._submission_id(job_id)
        try:
            info = self._jobs.info(submission_id)
            if info is not None and not info.is_over:
                if link is not None and not link.call("forget", {"job_id": job_id})["forgotten"]:
                    return False
                self._jobs.stop(submission_id)
        except DoorUnavailable:
            return False
        if info is not None and not info.is_over:
            return False
        with self._links_lock:
            done = self._links.pop(submission_id, None)
        if done is not None:
            done.close()
        return True

    def end_at_once(self, job_id: str) -> None:
        """The machines stay."""

    def cost_usd(self, job_id: str) -> float | None:
        del job_id
        return None

    def _submission_id(self, job_id: str) -> str:
        """The same for the same job of the same home, so that Ray never starts it twice."""
        return f"scf-{self._sender[-8:]}-{job_id}"

    def _submit(self, submission_id: str, spec: JobSpec) -> None:
        code = build_wheel()
        sha256 = sha256_hex(code)
        package = f"_ray_pkg_scf_{sha256}.zip"
        if not self._jobs.has_package(package):
            self._jobs.put_package(package, code)
        told = {
            "job": spec.job_id,
            "submission": submission_id,
            "root": self._ray.root,
            "sender": self._sender,
            "code": f"sha256:{sha256}",
            "ports": self._ray.ports,
            "idle-s": f"{IDLE_S + spec.deadline_s:.0f}",
        }
        options = [part for name, value in told.items() for part in (f"--{name}", value)]
        command = [self._ray.python, "-m", "scf.dispatch.ray_gate", *options]
        request: dict[str, Any] = {
            "submission_id": submission_id,
            "entrypoint": f"exec {shlex.join(command)}",
            "runtime_env": {"working_dir": f"gcs://{package}"},
            "metadata": {"scf_job": spec.job_id, "scf_kind": spec.kind},
        }
        if self._ray.node:  # else Ray begins it on the head; CPUs and GPUs are Ray Train's to take
            request["entrypoint_resources"] = {f"node:{self._ray.node}": 0.001}
        self._jobs.submit(request)

    def _how_it_went(self, submission_id: str, message: str) -> str:
        said = self._jobs.log(submission_id).strip().splitlines()
        last = said[-1].strip()[:300] if said else ""
        return f"the Ray job {submission_id} is over: {message[:500]} {last}".strip()


def _gate_in(log: str) -> str | None:
    """Where the gate says that it is; None while it has not."""
    for line in log.splitlines():
        if line.startswith(MARK):
            try:
                told = json.loads(line.removeprefix(MARK))
                host, port = str(told["host"]), int(told["port"])
            except (ValueError, KeyError, TypeError) as error:
                raise BoxFault(f"the gate says {line[:100]!r}") from error
            if not all(char.isalnum() or char in ".-" for char in host) or not 0 < port < 65536:
                raise BoxFault(f"the gate says {line[:100]!r}")
            return f"{host}:{port}"
    return None
