"""The process that speaks with Ray while several nodes train, for `dispatch.ray_train`.

    python -m scf.dispatch.ray_driver_train DESCRIPTOR MODULE ARGUMENT...

Chooses the nodes, gives those that help what they lack of the bundle, and has Ray Train's
TorchTrainer start the processes and introduce them to each other (gloo on CPUs, NCCL on GPUs). It
says over the socket every few seconds that it is there, and at the end how it went: frames of
`ray_driver`, `.` there, `+` done, `X` failed, with JSON {"error", "message"}.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from scf.core.errors import DoorError, ScfError
from scf.dispatch.bundle import SPEC_NAME
from scf.dispatch.ray_driver import receive_frame, send_frame
from scf.dispatch.ray_node import Keeper, train, use_interface
from scf.dispatch.ray_nodes import RayGroup, selectors
from scf.dispatch.ray_train import STOP_NAME

_BEAT_S = 5.0
_PIECE_BYTES = 8 * 2**20
_PIECES_AHEAD = 4
# A helper takes in a piece, or hashes one content, in this time.
_HELPER_WAIT_S = 600.0
# A process waits so long for another; Ray Train is given this long to see that a node has died.
PEER_LIMIT_S = 300
_GONE_WAIT_S = 60.0

Node = dict[str, Any]


class NodesMissing(DoorError):
    """The cluster has not the nodes that the settings ask for."""


def main(descriptor: int, module: str, arguments: Sequence[str]) -> None:
    """Train, and say how it went."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    threading.Thread(target=_leave_with, args=(channel,), daemon=True).start()
    lock = threading.Lock()

    def say(kind: bytes, **what: str) -> None:
        with contextlib.suppress(OSError), lock:
            send_frame(channel, kind, json.dumps(what).encode() if what else b"")

    group = RayGroup.of(os.environ) or RayGroup()
    try:
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # what is said goes to a file
        import ray

        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), configure_logging=False)
        first, others = choose(ray, group)
        nodes = [first, *others]
        threading.Thread(target=_beat, args=(ray, nodes, say), daemon=True).start()
        run(ray, group, nodes, module, arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
        say(b"X", error=_name_of(error), message=_words_of(error))
    else:
        say(b"+")
    # Not by Ray's own end, which takes seconds and may hang: its job ends with this process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def choose(ray: ModuleType, group: RayGroup) -> tuple[Node, list[Node]]:
    """This node, and those that help: the first by address that have what a process takes.

    Raises:
        NodesMissing: There are not enough of them.
    """
    own = ray.get_runtime_context().get_node_id()
    able = {node["NodeID"]: node for node in ray.nodes() if _is_able(node, group)}
    if own not in able:
        raise NodesMissing(
            f"this node has not {group.procs * group.cpus:g} CPUs and "
            f"{group.procs * group.gpus:g} GPUs for Ray, and training begins here",
            remedy="Start it with --num-cpus, or name another in [ray] node.",
        )
    first = able.pop(own)
    others = sorted(able.values(), key=lambda node: str(node["NodeManagerAddress"]))
    if len(others) < group.nodes - 1:
        addresses = ", ".join(str(node["NodeManagerAddress"]) for node in [first, *others])
        raise NodesMissing(
            f"{group.nodes} nodes are asked for, and the cluster has {1 + len(others)}: {addresses}"
        )
    return first, others[: group.nodes - 1]


def run(
    ray: ModuleType, group: RayGroup, nodes: Sequence[Node], module: str, arguments: Sequence[str]
) -> None:
    """Give the helpers what they lack, then train on all of them.

    Raises:
        Exception: Ray's, or one of ours.
    """
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    api: Any = ray_train  # its stubs are those of Ray Train 1
    first, *others = nodes
    bundle = Path.cwd()
    with helping(ray, bundle, others) as bundles:
        trainer = TorchTrainer(
            train,
            train_loop_config={
                "module": module,
                "arguments": list(arguments),
                "bundle": str(bundle),
                "bundles": bundles,
                "stop": str(bundle / STOP_NAME),
            },
            torch_config=_connections(group, str(first["NodeManagerAddress"])),
            scaling_config=api.ScalingConfig(
                num_workers=group.world_size,
                use_gpu=group.gpus > 0,
                resources_per_worker={"CPU": group.cpus}
                | ({"GPU": group.gpus} if group.gpus else {}),
                label_selector=selectors(
                    first["NodeID"], [node["NodeID"] for node in others], group.procs
                ),
            ),
            # A new try is ours to make, from a checkpoint that was verified.
            run_config=api.RunConfig(
                name=bundle.name,
                storage_path=str(bundle / ".ray_results"),
                failure_config=api.FailureConfig(max_failures=0),
            ),
        )
        trainer.fit()


@contextlib.contextmanager
def helping(ray: ModuleType, bundle: Path, others: Sequence[Node]) -> Iterator[dict[str, str]]:
    """The bundle's inputs on the other nodes, while they are needed; their paths by node."""
    if not others:
        yield {}
        return
    tree = tree_of(bundle)
    contents = {sha256: bundle / name for name, sha256, _ in tree}
    actor = ray.remote(Keeper)
    keepers = {
        node["NodeID"]: actor.options(
            num_cpus=0, label_selector={"ray.io/node-id": node["NodeID"]}
        ).remote(str(bundle.parents[1]), str(node["NodeManagerAddress"]), bundle.name)
        for node in others
    }
    wanted = [(sha256, path.stat().st_size) for sha256, path in contents.items()]
    for keeper in keepers.values():
        missing = ray.get(keeper.missing.remote(wanted), timeout=_HELPER_WAIT_S)
        for sha256 in missing:
            _send(ray, keeper, sha256, contents[sha256])
        refused = ray.get(keeper.receive.remote(missing), timeout=_HELPER_WAIT_S)
        if refused:
            raise DoorError(f"contents have not arrived whole on a helping node: {refused[:3]}")
    spec = json.loads((bundle / SPEC_NAME).read_bytes())
    laid = {name: keeper.lay.remote(tree, spec) for name, keeper in keepers.items()}
    try:
        yield {name: ray.get(path, timeout=_HELPER_WAIT_S) for name, path in laid.items()}
    finally:
        with contextlib.suppress(Exception):  # a node that is gone; its next job tidies up
            ray.get([keeper.forget.remote() for keeper in keepers.values()], timeout=30.0)


def tree_of(bundle: Path) -> list[list[str]]:
    """`[name, SHA-256, how]` of each file that a helper reads."""
    rows = []
    for folder in ("inputs", "vault"):
        for path in sorted((bundle / folder).rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                rows.append([path.relative_to(bundle).as_posix(), sha256, "link"])
    return rows


def _send(ray: ModuleType, keeper: Any, sha256: str, path: Path) -> None:
    sent: list[Any] = []
    with path.open("rb") as file:
        at = 0
        while (piece := file.read(_PIECE_BYTES)) or at == 0:
            sent.append(keeper.write.remote(sha256, at, piece))
            at += len(piece)
            if len(sent) > _PIECES_AHEAD:
                ray.get(sent.pop(0), timeout=_HELPER_WAIT_S)
            if not piece:
                break
    ray.get(sent, timeout=_HELPER_WAIT_S)


def _connections(group: RayGroup, address: str) -> Any:
    """Ray Train's set-up of the process group, after each process knows which network to use."""
    from ray.train.torch import TorchConfig

    plain: Any = TorchConfig(
        backend="cpu:gloo,cuda:nccl" if group.gpus else "gloo", timeout_s=PEER_LIMIT_S
    )

    class Backend(plain.backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(use_interface, address)
            super().on_start(worker_group, backend_config)

    class Connections(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Connections(**plain.to_dict())


def _is_able(node: Node, group: RayGroup) -> bool:
    has = node["Resources"]
    return (
        bool(node["Alive"])
        and has.get("CPU", 0) >= group.procs * group.cpus
        and has.get("GPU", 0) >= group.procs * group.gpus
    )


def _beat(ray: ModuleType, nodes: Sequence[Node], say: Any) -> None:
    """Say that we are there, as long as all nodes are."""
    names = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in nodes}
    gone_at: float | None = None
    while True:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        say(b".")
        if lost := sorted(names[name] for name in names.keys() - alive):
            gone_at = gone_at or time.monotonic()
            # Ray Train was seen to wait for what a dead node had made; the training may still be
            # writing down that it has lost its peer.
            if time.monotonic() - gone_at > _GONE_WAIT_S:
                say(b"X", error="PeerLost", message=f"the Ray node {', '.join(lost)} is gone")
                os._exit(1)
        time.sleep(_BEAT_S)


def _leave_with(channel: socket.socket) -> None:
    """End with the process that started us."""
    with contextlib.suppress(EOFError, OSError):
        receive_frame(channel)
    os._exit(1)


def _name_of(error: Exception) -> str:
    if isinstance(error, ScfError):
        return type(error).__name__
    # What a process of the training itself raised comes in this wrapping; all else is Ray's way of
    # saying that it, or its node, is not there any more.
    failures = getattr(error, "worker_failures", {}).values()
    is_lost = any(type(failure).__name__ != "UserExceptionWithTraceback" for failure in failures)
    return "PeerLost" if is_lost or type(error).__name__.startswith("Actor") else "RayFailed"


def _words_of(error: Exception) -> str:
    if isinstance(error, ScfError):
        return f"{error} {error.remedy or ''}".strip()
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"Ray: {type(error).__name__}: {' '.join(lines)[-600:]}"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
