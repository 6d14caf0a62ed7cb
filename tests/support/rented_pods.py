"""Pods of the double of RunPod as real sshd processes, and a door that rents them."""

import base64
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes.runpod.clusters import variables
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import FakePod
from scf.core.clock import Clock
from scf.dispatch.follower import FollowSettings
from scf.dispatch.job import Job, JobSpec
from scf.dispatch.runpod import Candidate, RunpodDoor, RunpodSettings
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.storage.partitions import Folder
from support.networks import Cable, Overlay, new_cable, new_overlay
from support.ssh_boxes import QUICK, Sshd, kill_marked, start_sshd

CHEAP = Candidate("NVIDIA RTX A4000")
DEAR = Candidate("NVIDIA H100 80GB HBM3")


# What a pod runs has this in its environment, and ends with it. Its value is a folder's name that no
# other test process has.
MARK = "SCF_TEST_POD"


class RealPods:
    """Starts an ssh server for a pod, with the keys that its order carries.

    Args:
        has_network: Each pod gets a network of its own, where that is allowed.
    """

    def __init__(self, *, has_network: bool = False) -> None:
        self.servers: dict[str, Sshd] = {}
        self._has_network = has_network
        self._cables: dict[str, Cable] = {}
        self._overlays: dict[str, Overlay] = {}

    def start(self, pod: FakePod) -> tuple[str, int, str]:
        folder = Path(tempfile.mkdtemp(prefix="scf-pod-"))
        cable = new_cable() if self._has_network else None
        host = cable.there if cable else "127.0.0.1"
        if cable is not None:
            self._cables[pod.pod_id] = cable
            self._join(pod, cable)
        # An image may hand its variables to who logs in; those of a cluster must do no harm.
        told = variables(pod) if pod.cluster is not None else {}
        server = start_sshd(
            folder,
            host=host,
            netns=cable.name if cable else None,
            is_pod=True,
            host_key=base64.b64decode(pod.env["SCF_SSH_HOST_KEY"]),
            authorised=pod.env["SCF_PUBLIC_KEY"],
            environment={**told, MARK: folder.name, "OMP_NUM_THREADS": "1"},
        )
        self.servers[pod.pod_id] = server
        return host, server.port, "root"

    def _join(self, pod: FakePod, cable: Cable) -> None:
        """Into the network that the members of a cluster have beside the one to the world."""
        if pod.cluster is None or pod.rank is None:
            return
        cluster_id = pod.cluster.cluster_id
        if cluster_id not in self._overlays:
            self._overlays[cluster_id] = new_overlay()
        pod.overlay = self._overlays[cluster_id].join(cable, pod.rank)

    def stop(self, pod: FakePod) -> None:
        if server := self.servers.pop(pod.pod_id, None):
            server.stop()
            kill_marked(f"{MARK}={server.folder.name}")
        if cable := self._cables.pop(pod.pod_id, None):
            cable.remove()
        cluster = pod.cluster
        if cluster and not any(one.pod_id in self._cables for one in cluster.members.values()):
            self._remove_overlay(cluster.cluster_id)

    def _remove_overlay(self, cluster_id: str) -> None:
        if overlay := self._overlays.pop(cluster_id, None):
            overlay.remove()


def real_provider(*, has_network: bool = False, **arguments: Any) -> FakeRunpod:
    pods = RealPods(has_network=has_network)
    provider = FakeRunpod(start=pods.start, stop=pods.stop, calls_per_minute=100_000, **arguments)
    provider.servers = pods.servers
    return provider


def rental(**changes: Any) -> RunpodSettings:
    given = {
        "image": "worker@sha256:" + "0" * 64,
        "candidates": (CHEAP,),
        "look_s": 0.05,
        "visible_s": 0.6,
        "root": "workspace",
        "python": sys.executable,
    }
    return RunpodSettings(**(given | changes))


class _Door(RunpodDoor):
    """Asks for so many nodes whenever the job does not say."""

    def __init__(self, nodes: int, *arguments: Any, **named: Any) -> None:
        self._nodes = nodes
        super().__init__(*arguments, **named)

    def submit(self, spec: JobSpec, *arguments: Any, **named: Any) -> Job:
        asks = spec if spec.nodes > 1 else replace(spec, nodes=self._nodes)
        return super().submit(asks, *arguments, **named)


class Doors:
    """Opens the same door again and again, and closes all of them."""

    def __init__(self, provider: FakeRunpod, tmp_path: Path, *, nodes: int = 1) -> None:
        self.provider = provider
        self.servers: dict[str, Sshd] = provider.servers
        self._nodes = nodes
        self._tmp_path = tmp_path
        self._client = RunpodClient(
            ApiKey(provider.key), rest=provider.rest, graphql=provider.graphql
        )
        self._open: list[RunpodDoor] = []

    def __call__(
        self,
        *,
        nodes: int | None = None,
        purse: Any = None,
        settings: FollowSettings = QUICK,
        clock: Clock | None = None,
        **changes: Any,
    ) -> RunpodDoor:
        home = self._tmp_path / "home"
        home.mkdir(exist_ok=True)
        door = _Door(
            self._nodes if nodes is None else nodes,
            self._client,
            Folder.at(self._tmp_path / "jobs"),
            home,
            rental=rental(**changes),
            purse=purse,
            settings=settings,
            clock=clock,
        )
        self._open.append(door)
        return door

    def close(self) -> None:
        for door in self._open:
            door.close()
        self._client.close()
        self.provider.__exit__()


def runpod_door(tmp_path: Path, **arguments: Any) -> Doors:
    """For the contract suite: one provider, and the door opened anew with each call."""
    provider = real_provider(**arguments)
    provider.__enter__()
    return Doors(provider, tmp_path)


def cluster_door(tmp_path: Path) -> Doors:
    """The same where each job is done by the two pods of a cluster."""
    provider = real_provider()
    provider.__enter__()
    return Doors(provider, tmp_path, nodes=2)
