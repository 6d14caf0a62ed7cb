"""What runs on each node of a training run on Ray: it keeps the bundle's inputs, and trains.

The nodes that help get what the first has in its bundle: named by content, only what is missing,
in the objects that Ray carries between nodes. Their copy lies apart from a first node's (they may
share a file system: an NFS home) and is gone when the job is over.
"""

import importlib
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.dispatch import remote_agent
from scf.dispatch.nodes import interface_towards
from scf.dispatch.process import HeldFile


class Keeper:
    """The bundle of one job on a node that helps. Lives, as an actor of Ray, as long as the job.

    Args:
        root: Folder of everything of ours, as on the first node.
        address: Of this node.
        job_id: The job.
    """

    def __init__(self, root: str, address: str, job_id: str) -> None:
        os.umask(0o077)
        given = {"root": f"{root}/helping-{address}", "sender": "ray", "job_id": job_id}
        self._given = given
        self._place = remote_agent.Place(given)
        self._place.make()
        self._place.incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._place.jobs.iterdir():
            if not HeldFile(path / "worker.lock").is_held:
                shutil.rmtree(path, ignore_errors=True)

    def missing(self, wanted: Sequence[tuple[str, int]]) -> list[str]:
        """Which contents are not here."""
        answer = remote_agent.prepare(self._place, {**self._given, "wanted": wanted})
        missing: list[str] = answer["missing"]
        return missing

    def write(self, sha256: str, at: int, piece: bytes) -> None:
        """A part of a content, from byte `at`; the first part begins it anew."""
        path = self._place.incoming / sha256
        with path.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.write(piece)

    def receive(self, contents: Sequence[str]) -> list[str]:
        """Take in what has arrived; which is not what its name says."""
        request = {**self._given, "contents": list(contents)}
        refused: list[str] = remote_agent.receive(self._place, request)["refused"]
        return refused

    def lay(self, tree: Sequence[Sequence[str]], spec: Mapping[str, Any]) -> str:
        """Make the bundle; its path."""
        answer = remote_agent.lay(self._place, {**self._given, "tree": tree, "spec": dict(spec)})
        bundle = str(answer["bundle"])
        self._held = HeldFile(Path(bundle) / "worker.lock").acquire()
        return bundle

    def forget(self) -> None:
        """Take the bundle away; the contents stay, for the next job."""
        shutil.rmtree(self._place.job(self._given), ignore_errors=True)


def use_interface(address: str) -> None:
    """Have gloo and NCCL of this process use the network over which the first node is reached."""
    name = interface_towards(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name:
            os.environ.setdefault(variable, name)


def train(told: Mapping[str, Any]) -> None:
    """Run the module's `main` in this process, which Ray Train has introduced to the others.

    Args:
        told: `module`, `arguments` and `stop` as on the first node, whose bundle is `bundle`; and
            `bundles`, by the name of each node that helps.

    Raises:
        RuntimeError: `main` did not end with 0.
    """
    bundle = told["bundles"].get(_node_id(), told["bundle"])
    os.chdir(bundle)
    arguments = [
        bundle + text.removeprefix(told["bundle"]) if text.startswith(told["bundle"]) else text
        for text in told["arguments"]
    ]
    code = importlib.import_module(told["module"]).main(arguments, stop_file=Path(told["stop"]))
    if code:
        host = socket.gethostname()
        raise RuntimeError(f"{told['module']} has ended with {code} on {host}; see its log")


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
