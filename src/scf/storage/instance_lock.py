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

# A lock that is held by nobody who works under it is waited for so long, whatever the caller asks.
PASSING_WAIT_S = 60.0


class AlreadyRunning(OperatorError):
    """Another process holds the lock."""


@contextlib.contextmanager
def instance_lock(path: Path, *, holder: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `path` while the block runs. The file stays; only the kernel's lock counts.

    Args:
        path: The lock file, on the internal disk.
        holder: What we are, for the message that the next one sees.
        wait_s: How long to wait for the present holder before giving up. A hold that passes by
            itself is waited for anyway (`_is_passing`), at most `PASSING_WAIT_S`.

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
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            waited_s = time.monotonic() - began
            limit_s = max(wait_s, PASSING_WAIT_S) if _is_passing(descriptor) else wait_s
            if waited_s >= limit_s:
                about = os.pread(descriptor, 4096, 0).decode(errors="replace")
                raise AlreadyRunning(
                    f"{path} is held by another process: {about}",
                    remedy="Let it finish, or stop it with `scf stop`.",
                ) from error
            time.sleep(0.02)
        else:
            return


def _is_passing(descriptor: int) -> bool:
    """Whether nobody works under the lock: it is only looked at, or its holder has died.

    `scf status` takes it shared for an instant. A holder that is killed while it starts a child
    leaves a copy of its descriptor in the child, until that has become its own program. On a busy
    machine either takes a second and more.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True
    try:
        about = json.loads(os.pread(descriptor, 4096, 0))
        if about["host"] != socket.gethostname():
            return False
        os.kill(int(about["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False  # nobody has written yet who it is, or it is another user's
    return False
