"""One holder at a time, across processes, and a dead holder holds nothing."""

import signal
import subprocess
import sys
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
