"""Run a program of the system with a limit on everything: time, output, and what it is told.

The program gets a process group of its own, which is killed when a limit is passed; an environment
from an allow-list, so that no secret of ours reaches it; and its input through a pipe, because
command lines can be read by everybody on the machine.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from scf.core.errors import MissingTool
from scf.dispatch.process import kill_group

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "SSH_AUTH_SOCK")

_PIECE_BYTES = 65_536


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        returncode: Of the program; minus the signal's number where one ended it.
        stdout: What it wrote, up to the limit.
        stderr: The same, up to 64 KiB.
        fault: The limit that was passed, as a sentence; None when none was.
    """

    returncode: int
    stdout: bytes
    stderr: str
    fault: str | None


def run_limited(
    command: Sequence[str],
    *,
    stdin: bytes = b"",
    limit_s: float,
    stdout_max_bytes: int = 2**20,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run `command` to its end or to a limit; nothing of it is left either way.

    Raises:
        MissingTool: There is no such program.
    """
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, "LC_ALL": "C"},
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError as error:
        raise MissingTool(
            f"the program {command[0]} is not installed", remedy=f"Install {command[0]}."
        ) from error
    try:
        with child:
            stdout, stderr, fault = _converse(child, stdin, limit_s, stdout_max_bytes)
            kill_group(child.pid, signal.SIGKILL)
            child.wait()
    except BaseException:
        kill_group(child.pid, signal.SIGKILL)
        raise
    return Finished(child.returncode, stdout, stderr.decode(errors="replace"), fault)


def _converse(
    child: "subprocess.Popen[bytes]", stdin: bytes, limit_s: float, stdout_max_bytes: int
) -> tuple[bytes, bytes, str | None]:
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    deadline = time.monotonic() + limit_s
    waiting = memoryview(stdin)
    said: dict[IO[bytes], bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        os.set_blocking(child.stdin.fileno(), False)
        selector.register(child.stdin, selectors.EVENT_WRITE)
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(timeout=max(0.0, min(1.0, deadline - time.monotonic()))):
                if key.fileobj is child.stdin:
                    waiting = _write_some(child.stdin, waiting)
                    if not waiting:
                        selector.unregister(child.stdin)
                        with contextlib.suppress(BrokenPipeError):
                            child.stdin.close()
                    continue
                stream = child.stdout if key.fileobj is child.stdout else child.stderr
                piece = os.read(stream.fileno(), _PIECE_BYTES)
                if not piece:
                    selector.unregister(stream)
                elif stream is child.stderr:
                    said[stream] = (said[stream] + piece)[-_PIECE_BYTES:]
                else:
                    said[stream] += piece
            if len(said[child.stdout]) > stdout_max_bytes:
                fault = f"said more than {stdout_max_bytes} bytes"
                return bytes(said[child.stdout]), bytes(said[child.stderr]), fault
            if time.monotonic() >= deadline:
                fault = f"took longer than {limit_s:g} s"
                return bytes(said[child.stdout]), bytes(said[child.stderr]), fault
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            fault = f"took longer than {limit_s:g} s"
            return bytes(said[child.stdout]), bytes(said[child.stderr]), fault
    return bytes(said[child.stdout]), bytes(said[child.stderr]), None


def _write_some(stream: IO[bytes], waiting: memoryview) -> memoryview:
    try:
        return waiting[os.write(stream.fileno(), waiting[:_PIECE_BYTES]) :]
    except BlockingIOError:
        return waiting
    except BrokenPipeError:
        return memoryview(b"")
