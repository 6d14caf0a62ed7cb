"""A Ray cluster as a set of machines that run one function on many inputs.

Ray tasks with streaming generators, not Ray Data: what is read here is not a table. A record that
is refused has to come back beside those that are not, in the order of the file; blocks must not be
reordered, joined or split; and one process, here, consumes them all. Ray Data gives none of this
without being told otherwise at each step, and needs pandas and pyarrow for it. Tasks give it, with
back pressure. A task whose machine died is started anew, and what it gave before is passed over.

Nothing but this file imports ray (contract "Only doors call out"). Usage reports are off, and no
dashboard is asked for. A process that imports it may be ended by Ray, with exit code 0, when the
Ray node of its machine dies: `ray_machines` has it in a child.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

from scf.core.errors import DoorError, DoorUnavailable, MissingTool, UsageError

# How long a cluster's head may take to answer a knock, and a worker to give its next block of some
# megabytes. A file is hashed whole before its first block: 600 s are 70 GB at 120 MB/s.
_CONNECT_WAIT_S = 20.0
_BLOCK_WAIT_S = 600.0
# Blocks of one task that wait to be taken, and how often a task is started anew.
_BLOCKS_AHEAD = 2
_RETRIES = 2
# While we wait we look now and then whether all machines are still there: Ray was seen to wait for
# ever for what a dead one had made (2.60, with and without its own retries).
_LOOK_EVERY_S = 5.0


class _NodeGone(Exception):
    """A machine that was there when a task was started is not there any more."""


class _Task:
    """One call, which may have to be started more than once."""

    def __init__(self, ray: ModuleType, remote: Any, call: tuple[Any, ...]) -> None:
        self._ray, self._remote, self._call = ray, remote, call
        self.start()

    def start(self) -> None:
        """Start it anew, on the machines that there are now."""
        self.nodes = alive_nodes(self._ray)
        self.generator: Any = self._remote.remote(*self._call)


class RayCluster:
    """A cluster that this machine is a node of.

    Args:
        address: `HOST:PORT` of its head, or `auto` for the one that this machine runs.
        block_wait_s: Longest wait for a worker.
        on_look: Called every few seconds while we wait for one.

    Raises:
        MissingTool: ray is not installed.
        DoorUnavailable: No cluster answers there.
    """

    def __init__(
        self,
        address: str,
        *,
        block_wait_s: float = _BLOCK_WAIT_S,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        if "://" in address:
            raise UsageError(
                f"--ray {address}: the address of a cluster is HOST:PORT or auto",
                remedy="Make this machine a node of it: `ray start --address=HOST:PORT`.",
            )
        self._ray = _ray()
        self._block_wait_s = block_wait_s
        self._on_look = on_look
        try:
            _look_for(address)  # ray itself knocks for minutes, then ends the process
            self._ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise DoorUnavailable(
                f"no Ray cluster answers at {address}: {error}",
                remedy="Start one: `ray start --head`, and `ray start --address=HOST:PORT` on each "
                "further machine, this one too.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; it goes on without us."""
        self._ray.shutdown()

    @property
    def num_cpus(self) -> int:
        """CPUs of the whole cluster."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def stream(
        self, work: Callable[..., Iterator[bytes]], calls: Sequence[tuple[Any, ...]]
    ) -> Iterator[Iterator[bytes]]:
        """What `work(*call)` yields, for each call in order; one task a CPU, and two waiting.

        Raises:
            DoorError: A worker gave nothing for too long, or died again and again.
        """
        task = self._ray.remote(work).options(
            num_cpus=1,
            scheduling_strategy="SPREAD",
            max_retries=0,
            num_returns="streaming",
            _generator_backpressure_num_objects=_BLOCKS_AHEAD,
        )
        ahead = self.num_cpus + 2
        waiting = deque(calls)
        running: deque[_Task] = deque()
        try:
            while waiting or running:
                while waiting and len(running) < ahead:
                    running.append(_Task(self._ray, task, waiting.popleft()))
                yield self._blocks(running)
                # Left before its end (the origin is known), or through.
                self._cancel(running.popleft().generator)
        finally:
            for one in running:
                self._cancel(one.generator)

    def _blocks(self, running: "deque[_Task]") -> Iterator[bytes]:
        """Every block of the first task, once, however often it has to be started."""
        task = running[0]
        errors = self._ray.exceptions
        num_taken = 0
        for is_last in [*[False] * _RETRIES, True]:
            try:
                for number, reference in enumerate(self._references(task)):
                    if number >= num_taken:
                        block = self._get(reference, task)
                        num_taken += 1
                        yield block
                return
            except errors.RayTaskError as error:
                raise DoorError(f"a worker failed: {error.cause!r}\n{error}") from error
            except (_NodeGone, errors.RayError) as error:
                if is_last:
                    raise DoorError(
                        f"the Ray cluster failed: {error}",
                        remedy="Look at it with `ray status`; a new ingest goes on.",
                    ) from error
                # All of them, in their order: those behind would hold the CPUs that are left, and
                # wait for us to take what they have made.
                for one in running:
                    self._cancel(one.generator)
                for one in running:
                    one.start()

    def _references(self, task: "_Task") -> Iterator[Any]:
        while True:
            for _ in self._looks(task):
                if self._ray.wait([task.generator], timeout=_LOOK_EVERY_S)[0]:
                    break
            try:
                reference = next(task.generator)
            except StopIteration:
                return
            yield reference

    def _get(self, reference: Any, task: "_Task") -> bytes:
        for _ in self._looks(task):
            with contextlib.suppress(self._ray.exceptions.GetTimeoutError):
                return bytes(self._ray.get(reference, timeout=_LOOK_EVERY_S))
        raise AssertionError("looks end with an error")

    def _looks(self, task: "_Task") -> Iterator[None]:
        """A look, again and again, until the machines are fewer or it has taken too long."""
        deadline = time.monotonic() + self._block_wait_s
        while time.monotonic() < deadline:
            yield
            self._on_look()
            if task.nodes - alive_nodes(self._ray):
                raise _NodeGone("a machine has left it")
        raise DoorError(
            f"the Ray cluster gave nothing for {self._block_wait_s:g} s",
            remedy="Look at it with `ray status`; a new ingest goes on.",
        )

    def _cancel(self, generator: Any) -> None:
        with contextlib.suppress(Exception):  # it is through, or its machine is gone
            self._ray.cancel(generator, force=True)


def alive_nodes(ray: ModuleType) -> frozenset[str]:
    """The machines of the cluster."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _look_for(address: str) -> None:
    """Raise OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_WAIT_S).close()


def _ray() -> ModuleType:
    # Ray phones home unless told not to, and starts a cluster of its own when it is asked for
    # something after ours has gone. It looks at these when it is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingTool(
            "ingest on many machines needs ray, which is not installed",
            remedy="Install the extra on each of them: `pip install 'scf[ray]'`.",
        ) from error
    module: ModuleType = ray
    return module
