"""The process that speaks with Ray, for `dispatch.ray_machines`: `python -m ... DESCRIPTOR`.

Ray ends the process that is its driver, from inside and with exit code 0, when the Ray node of this
machine dies, or leaves it waiting. Neither may befall a process that owns a vault. So this one has
no vault, no key and no say: it is asked for one block at a time over a socket, and gives it.

Both ways go frames: 1 byte kind, 8 bytes length (little-endian), and that many bytes.

    asked      S  JSON {"work": "module:function", "calls": [...]}: begin; arrays become tuples
               N  the next block of the call that is under way      K  on to the next call
    answered   +  done      B  a block      E  no more of it
               .  still waiting (no answer yet)      X  JSON {"error": class, "message", "remedy"}

The first answer comes unasked, when the cluster is joined. When the asker is gone, so are we.
"""

import contextlib
import importlib
import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from scf.core.errors import DoorError, ScfError
from scf.dispatch.ray_cluster import RayCluster

_HEAD = struct.Struct("<cQ")
RUN_AGAIN = (
    "Look at it with `ray status`, and run the same again: what is committed is kept, and without "
    "--ray it needs no cluster."
)
_LEAVE_WAIT_S = 10.0
_Asked = tuple[bytes, bytes] | None


def send_frame(channel: socket.socket, kind: bytes, body: bytes = b"") -> None:
    """Send one. Raises OSError where nobody takes it."""
    channel.sendall(_HEAD.pack(kind, len(body)))
    channel.sendall(body)


def receive_frame(channel: socket.socket) -> tuple[bytes, bytes]:
    """Receive one.

    Raises:
        EOFError: The other side is gone.
        OSError: It is silent for longer than the channel's limit, or gone.
    """
    kind, length = _HEAD.unpack(_receive(channel, _HEAD.size))
    return kind, _receive(channel, length)


def _receive(channel: socket.socket, length: int) -> bytes:
    body = bytearray(length)
    rest = memoryview(body)
    while rest:
        count = channel.recv_into(rest)
        if count == 0:
            raise EOFError("the other side is gone")
        rest = rest[count:]
    return bytes(body)


def main(descriptor: int, address: str) -> None:
    """Join the cluster, do what is asked, leave."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, asked), daemon=True).start()
    with (
        _Telling(channel),
        RayCluster(address, on_look=lambda: send_frame(channel, b".")) as cluster,
    ):
        send_frame(channel, b"+")
        _serve(cluster, channel, asked)


class _Telling(contextlib.AbstractContextManager[None]):
    """Sends the error that ends us, ours or Ray's, if somebody is still there."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not isinstance(error, ScfError):
            error = DoorError(
                f"Ray has failed in the middle: {type(error).__name__}: {error}; "
                "this machine's Ray node may have died",
                remedy=RUN_AGAIN,
            )
        told = {"error": type(error).__name__, "message": str(error), "remedy": error.remedy}
        with contextlib.suppress(OSError):
            send_frame(self._channel, b"X", json.dumps(told).encode())
        return True


def _listen(channel: socket.socket, asked: "queue.SimpleQueue[_Asked]") -> None:
    # Of its own: while we wait for Ray, nothing else would notice that the asker is gone.
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked.put(receive_frame(channel))
    asked.put(None)
    time.sleep(_LEAVE_WAIT_S)
    os._exit(1)


def _serve(cluster: RayCluster, channel: socket.socket, asked: "queue.SimpleQueue[_Asked]") -> None:
    streams: Iterator[Iterator[bytes]] = iter(())
    blocks: Iterator[bytes] = iter(())
    while (frame := asked.get()) is not None:
        kind, body = frame
        if kind == b"S":
            told = json.loads(body)
            module, _, name = told["work"].partition(":")
            calls = [_tuples(call) for call in told["calls"]]
            streams = cluster.stream(getattr(importlib.import_module(module), name), calls)
            send_frame(channel, b"+")
        elif kind == b"K":
            blocks = next(streams, iter(()))
            send_frame(channel, b"+")
        else:
            block = next(blocks, None)
            send_frame(channel, b"E") if block is None else send_frame(channel, b"B", block)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return value


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
