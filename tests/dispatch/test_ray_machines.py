"""What becomes of us when the process that speaks with Ray does not; no cluster is needed."""

import sys
import time
from pathlib import Path

import pytest

from scf.core.errors import DoorError, DoorUnavailable, MissingTool, OperatorError
from scf.dispatch import ray_machines
from scf.dispatch.ray_machines import RayMachines
from scf.fertilization.remote_work import work
from support.waiting import is_gone, wait_for

# The real frames, with something else than Ray behind them.
HEAD = """
import os, socket, subprocess, sys, time
from scf.core.errors import *
from scf.dispatch import ray_driver
import scf.fertilization.remote_work  # may take a second, which is not the one that is measured

class Cluster:
    def __init__(self, address, on_look):
        self.look = on_look
        if address == "missing":
            raise MissingTool("no ray", remedy="Install it.")
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def stream(self, work, calls):
        for call in calls:
            yield self.blocks(call)
    def blocks(self, call):
        yield repr(call).encode()
        {then}

ray_driver.RayCluster = Cluster
ray_driver.main(int(sys.argv[1]), sys.argv[2])
"""


def drive(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """A driver whose second block of each call is this."""
    code = HEAD.replace("{then}", then)
    monkeypatch.setattr(ray_machines, "DRIVER", (sys.executable, "-c", code))


def is_ended(machines: RayMachines) -> bool:
    return machines._driver.returncode is not None and machines._channel.fileno() < 0


def test_blocks_come_in_order_lists_are_tuples_and_what_is_left_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drive(monkeypatch, "self.look(); yield b''; yield bytes(3 * 2**20)")

    with RayMachines("there") as machines:
        seen = []
        for number, blocks in enumerate(
            machines.stream(work, [(n, {"f": ["a"]}) for n in (0, 1, 2)])
        ):
            seen.append(next(blocks) if number == 1 else list(blocks))

    def first(number: int) -> bytes:
        return repr((number, {"f": ("a",)})).encode()

    whole = [b"", bytes(3 * 2**20)]
    assert seen == [[first(0), *whole], first(1), [first(2), *whole]]
    assert is_ended(machines)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("os._exit(0)", "its driver has ended .exit code 0."),
        ("os.kill(os.getpid(), 9)", "its driver has ended .exit code -9."),
        ("raise OSError('Broken pipe')", "OSError: Broken pipe"),
    ],
)
def test_a_driver_that_ends_is_no_end_of_the_work(
    monkeypatch: pytest.MonkeyPatch, how: str, told: str
) -> None:
    """Exit code 0 too, and any error of Ray: it gives them all."""
    drive(monkeypatch, how)

    with (
        pytest.raises(DoorError, match=told) as failed,
        RayMachines("there") as machines,
    ):
        for blocks in machines.stream(work, [(0,)]):
            list(blocks)

    assert failed.value.exit_code == 8
    assert "what is committed is kept" in str(failed.value.remedy)
    assert is_ended(machines)


def test_a_silent_driver_is_ended_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    sleeper = 'subprocess.Popen(["sleep", "600"]).pid'
    drive(monkeypatch, f"open({str(note)!r}, 'w').write(str({sleeper})); time.sleep(600)")
    before = time.monotonic()

    with (
        pytest.raises(DoorError, match=r"said nothing for 1\.5 s"),
        RayMachines("there", silence_s=1.5) as machines,
    ):
        for blocks in machines.stream(work, [(0,)]):
            list(blocks)

    assert time.monotonic() - before < 60
    assert is_ended(machines)
    sleeping = int(note.read_text())
    wait_for(lambda: is_gone(sleeping), what="the end of what the driver had started")


def test_a_driver_that_still_waits_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, "[(time.sleep(0.5), self.look()) for _ in range(8)]; yield b'late'")

    with RayMachines("there", silence_s=3) as machines:
        (blocks,) = (list(blocks) for blocks in machines.stream(work, [(0,)]))

    assert blocks[1:] == [b"late"]


def test_errors_of_the_driver_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, "raise OperatorError('a worker is old', remedy='Install.')")
    with pytest.raises(MissingTool, match="no ray") as missing:
        RayMachines("missing")
    with pytest.raises(OperatorError, match="a worker is old"), RayMachines("there") as machines:
        for blocks in machines.stream(work, [(0,)]):
            list(blocks)
    assert missing.value.remedy == "Install it."


def test_a_driver_that_never_joins_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_machines, "DRIVER", (sys.executable, "-c", "raise SystemExit(0)"))

    with pytest.raises(DoorUnavailable, match="no Ray cluster answers at there"):
        RayMachines("there")
