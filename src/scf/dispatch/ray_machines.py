"""The machines of a Ray cluster, as a process that must not die with them sees them.

Ray lives in a child (`dispatch.ray_driver`), which it may end or hold up as it likes. What happens
to the child becomes an error here: that it is gone, or that it has said nothing for too long.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from scf.core import errors
from scf.core.errors import DoorError, DoorUnavailable, ScfError
from scf.dispatch.process import kill_group
from scf.dispatch.ray_driver import RUN_AGAIN, receive_frame, send_frame

DRIVER = (sys.executable, "-P", "-m", "scf.dispatch.ray_driver")
# Joining took 3 to 8 s. While it waits for a block, the driver says so every 5 s.
_JOIN_WAIT_S = 120.0
_SILENCE_S = 120.0
_LEAVE_WAIT_S = 15.0
_END_WAIT_S = 5.0


class _DriverGone(Exception):
    """The driver has ended, or is silent."""


class RayMachines:
    """A cluster that this machine is a node of, and a process that dies with us, not we with it.

    Args:
        address: `HOST:PORT` of its head, or `auto` for the one that this machine runs.
        silence_s: The driver is held to be gone when it says nothing for so long.

    Raises:
        MissingTool: ray is not installed.
        DoorUnavailable: No cluster answers there.
    """

    def __init__(self, address: str, *, silence_s: float = _SILENCE_S) -> None:
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                # A group of its own: Ctrl-C is for us, and we end it with all that it started.
                self._driver = subprocess.Popen(
                    [*DRIVER, str(theirs.fileno()), address],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            self._channel.close()
            raise
        try:
            self._channel.settimeout(_JOIN_WAIT_S)
            self._answer()
            self._channel.settimeout(silence_s)
        except _DriverGone as error:
            self._end()
            raise DoorUnavailable(
                f"no Ray cluster answers at {address}: {error}",
                remedy="Look at it with `ray status`; start this machine's node anew.",
            ) from error
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._end()

    def close(self) -> None:
        """Leave the cluster; it goes on without us."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown(socket.SHUT_WR)
            self._channel.settimeout(_LEAVE_WAIT_S)
            while True:
                receive_frame(self._channel)
        self._end()

    def stream(
        self, work: Callable[..., Iterator[bytes]], calls: Sequence[tuple[Any, ...]]
    ) -> Iterator[Iterator[bytes]]:
        """What `work(*call)` yields, for each call in order; one task a CPU, and two waiting.

        Args:
            work: A function of a module that every machine has.
            calls: As JSON knows them; lists arrive as tuples.

        Raises:
            DoorError: A worker gave nothing for too long, or died again and again; or the driver
                has ended, or is silent.
        """
        told = {"work": f"{work.__module__}:{work.__qualname__}", "calls": calls}
        self._ask(b"S", json.dumps(told).encode())
        for _ in calls:
            self._ask(b"K")
            yield self._blocks()

    def _blocks(self) -> Iterator[bytes]:
        while (block := self._ask(b"N")) is not None:
            yield block

    def _ask(self, kind: bytes, body: bytes = b"") -> bytes | None:
        # A driver that has failed told why before it went: that is read in any case.
        with contextlib.suppress(OSError):
            send_frame(self._channel, kind, body)
        try:
            return self._answer()
        except _DriverGone as error:
            raise DoorError(
                f"Ray has failed in the middle: {error}; this machine's Ray node may have died",
                remedy=RUN_AGAIN,
            ) from error

    def _answer(self) -> bytes | None:
        """The next answer: a block, or None."""
        try:
            while (frame := receive_frame(self._channel))[0] == b".":
                pass
        except TimeoutError as error:
            limit_s = self._channel.gettimeout()
            raise _DriverGone(f"its driver has said nothing for {limit_s:g} s") from error
        except (EOFError, OSError) as error:
            raise _DriverGone(f"its driver has ended ({self._how_it_ended()})") from error
        kind, body = frame
        if kind == b"X":
            raise _error_of(json.loads(body))
        return body if kind == b"B" else None

    def _how_it_ended(self) -> str:
        try:
            return f"exit code {self._driver.wait(_END_WAIT_S)}"
        except subprocess.TimeoutExpired:
            return "without a word"

    def _end(self) -> None:
        """Nothing of the driver is left, and nothing of ours is open."""
        kill_group(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        self._channel.close()


def _error_of(told: dict[str, Any]) -> ScfError:
    kind = getattr(errors, str(told["error"]), DoorError)
    error: ScfError = kind(told["message"], remedy=told["remedy"])
    return error
