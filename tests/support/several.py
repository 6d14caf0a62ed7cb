"""Start a program as several processes that torchrun introduces to each other."""

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.processes import python_env


def free_port() -> int:
    """A TCP port that nobody listens on now, and that no outgoing connection will be given.

    Below the range that the kernel hands out by itself: torchrun listens seconds after it was told
    the port, and on a busy machine one of those had been given away by then.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports were tried, and all are taken")


def torchrun(
    num: int, *arguments: str, log: Path, program: Sequence[str] = ("-m", "scf.training.train_ebdm")
) -> "subprocess.Popen[bytes]":
    """`num` processes on this machine, static rendezvous; all they say goes to `log`."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(num),
        "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
        *program, *arguments,
    ]  # fmt: skip
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=python_env())
