"""One holder at a time, across processes, and a dead holder holds nothing."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scf.storage.instance_lock import AlreadyRunning, instance_lock
from support.processes import python_env

HOLD = """
import sys, time
from pathlib import Path
from scf.storage.instance_lock import instance_lock
with instance_lock(Path(sys.argv[1]), holder="the first"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, env=python_env()
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match="the first") as caught:
            with instance_lock(path, holder="the second"):
                pass
        assert str(child.pid) in str(caught.value)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()

    with instance_lock(path, holder="the second"):
        assert "the second" in path.read_text()


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """`scf status` takes the lock shared for an instant, which may be long on a busy machine."""
    path = tmp_path / "lock"
    with instance_lock(path, holder="the first"):
        pass
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    looked = threading.Timer(0.3, os.close, [looking])
    looked.start()

    with instance_lock(path, holder="the second", wait_s=0.0):
        assert "the second" in path.read_text()
    looked.join()


STARTS_A_CHILD_AND_DIES = """
import os, signal, sys, time
from pathlib import Path
from scf.storage.instance_lock import instance_lock
with instance_lock(Path(sys.argv[1]), holder="the first"):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_a_dead_holder_had_begun_is_waited_for(tmp_path: Path) -> None:
    """Between fork and exec it has the dead one's descriptors, the lock's among them."""
    path = tmp_path / "lock"
    child = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_CHILD_AND_DIES, str(path)],
        stdin=subprocess.PIPE,
        env=python_env(),
    )
    assert child.wait(timeout=120) == -signal.SIGKILL
    assert child.stdin is not None
    began = time.monotonic()
    becomes_its_own = threading.Timer(0.3, child.stdin.close)
    becomes_its_own.start()

    with instance_lock(path, holder="the second", wait_s=0.0):
        assert "the second" in path.read_text()
    assert time.monotonic() - began > 0.2  # it was held until then
    becomes_its_own.join()
