"""One holder at a time: an advisory file lock that the kernel drops when its process dies."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from scf.core.errors import OperatorError


class AlreadyRunning(OperatorError):
    """Another process holds the lock."""


@contextlib.contextmanager
def instance_lock(path: Path, *, holder: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `path` while the block runs. The file stays; only the kernel's lock counts.

    Args:
        path: The lock file, on the internal disk.
        holder: What we are, for the message that the next one sees.
        wait_s: How long to wait for the present holder before giving up.

    Raises:
        AlreadyRunning: Somebody else holds it; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, wait_s)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "holder": holder}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                about = os.pread(descriptor, 4096, 0).decode(errors="replace")
                raise AlreadyRunning(
                    f"{path} is held by another process: {about}",
                    remedy="Let it finish, or stop it with `scf stop`.",
                ) from error
            time.sleep(0.02)
        else:
            return
