"""The Sovereign Daemon: the conductor. It asks, waits and records; it computes nothing.

    python -m scf.daemon.scf_daemon [--home DIR] [--root DRIVE] [--once | --until-idle]

`Conductor.tick` does a bounded amount of work and returns; the loop here calls it at the pace of
the gear, tells a service manager that it lives, and hears signals.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from scf.config import FoundryConfig, find_home, load_config
from scf.control.control_file import GEAR_FLOORS_S
from scf.core.clock import Clock, SystemClock
from scf.core.errors import OperatorError, ScfError
from scf.daemon.commands import Operator
from scf.daemon.conductor import START_WAIT_S, Conductor, Tick
from scf.daemon.heartbeat import LOCK_NAME
from scf.daemon.notify import Manager
from scf.daemon.rooms import OpenDoor, open_local_door
from scf.storage.instance_lock import instance_lock

# Somebody sits and waits for `--until-idle`, so its pace is at least this.
HASTY_FLOOR_S = 0.1
# While nothing is left to do, a whole tick is made at least this often in the fast gears.
QUIET_S = 1.0
# After a stop, jobs may save their state for so long; then the daemon leaves, and they go on.
STOP_WAIT_S = 45.0


def run_daemon(
    config: FoundryConfig,
    *,
    once: bool = False,
    until_idle: bool = False,
    gear: str | None = None,
    clock: Clock | None = None,
    open_door: OpenDoor = open_local_door,
    talk: Callable[[str], None] = lambda _: None,
) -> int:
    """Run the conductor; returns 0 when it ended as it was asked to.

    Args:
        config: All settings.
        once: One tick, then return.
        until_idle: Return once nothing is left to do. Neither: run until told to stop.
        gear: In place of the operator's gear, for this run of the daemon.
        clock: Time.
        open_door: How jobs are run; tests bring their own worker.
        talk: Gets lines for people.

    Raises:
        AlreadyRunning: A daemon has this home, or this drive.
        EmergencyLocked: `once` and `until_idle` only; else it waits for `scf unlock`.
        DriveMissing: There is no drive at the start; later it waits, unless somebody waits for it.
        BudgetExceeded: `once` and `until_idle` only; else it waits for room.
        OperatorError: `until_idle`: something failed so often that it is not waited for.
        KeyboardInterrupt: SIGINT; jobs were asked to save their state and end.
    """
    clock = clock or SystemClock()
    if not config.home.is_dir():
        raise OperatorError(f"{config.home}: no home here", remedy="Run `scf init` first.")
    lock = instance_lock(config.home / LOCK_NAME, holder="scf daemon", wait_s=START_WAIT_S)
    with lock:
        conductor = Conductor(
            config, clock=clock, open_door=open_door, talk=talk, is_hasty=once or until_idle
        )
        with _closing(conductor), _signals(conductor.operator, talk) as caught:
            if not conductor.lock.is_set:
                conductor.open()
            talk(f"conductor of {config.home} on {config.need_root()}")
            manager = Manager.of(os.environ)
            _loop(conductor, clock, manager, once=once, until_idle=until_idle, gear=gear)
            manager.say("STOPPING=1")
        if signal.SIGINT in caught:
            raise KeyboardInterrupt
    return 0


def _loop(
    conductor: Conductor,
    clock: Clock,
    manager: Manager,
    *,
    once: bool,
    until_idle: bool,
    gear: str | None,
) -> None:
    stop_by: float | None = None
    conductor.still_alive = manager.alive
    while True:
        tick = conductor.tick()
        manager.ready(f"{tick.state}: {tick.trouble}" if tick.trouble else str(tick.state))
        if (once or until_idle) and tick.trouble is not None:
            raise tick.trouble
        if once:
            return
        if conductor.operator.stopping is not None:
            stop_by = stop_by or clock.monotonic() + STOP_WAIT_S
            is_drained = conductor.operator.stopping == "drain" or clock.monotonic() < stop_by
            if tick.is_idle or tick.trouble is not None or not is_drained:
                return
        elif until_idle and tick.is_idle:
            conductor.raise_given_up()
            return
        if not tick.did:
            floor_s = GEAR_FLOORS_S[gear] if gear else conductor.operator.floor_s
            is_quick = until_idle or conductor.operator.stopping is not None
            pause_s = min(floor_s, HASTY_FLOOR_S) if is_quick else floor_s
            _sleep(conductor, pause_s, clock, is_idle=tick.is_idle and not is_quick)


def _sleep(conductor: Conductor, pause_s: float, clock: Clock, *, is_idle: bool) -> None:
    """Wait, but not through something that happens, nor a signal to stop.

    While nothing is left to do, a look at three files stands for a tick in the fast gears; a whole
    tick is made every `QUIET_S` all the same.
    """
    was_stopping = conductor.operator.stopping
    end = clock.monotonic() + (max(pause_s, QUIET_S) if is_idle else pause_s)
    while (left_s := end - clock.monotonic()) > 0:
        if conductor.waker.wait(min(left_s, pause_s, conductor.waker.look_s)):
            conductor.hint()
            return
        if conductor.has_news() or conductor.operator.stopping != was_stopping:
            return


@contextmanager
def _closing(conductor: Conductor) -> Iterator[None]:
    try:
        yield
    finally:
        conductor.close()


@contextmanager
def _signals(operator: Operator, talk: Callable[[str], None]) -> Iterator[set[int]]:
    """SIGTERM and SIGINT ask for a stop; the second one ends the daemon where it stands."""
    caught: set[int] = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if caught:
            raise KeyboardInterrupt
        caught.add(number)
        operator.stopping = "now"
        talk(f"{signal.Signals(number).name}: stopping; jobs may save their state")

    before = {}
    with suppress(ValueError):  # not the main thread: whoever runs us there handles signals
        before = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m scf.daemon.scf_daemon`; returns the exit code."""
    options = _parser().parse_args(arguments)

    def talk(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    try:
        home = find_home(options.home, os.environ)
        config = load_config(home, root=options.root, environment=os.environ)
        return run_daemon(
            config,
            once=options.once,
            until_idle=options.until_idle,
            gear=options.gear,
            talk=talk,
        )
    except ScfError as error:
        talk(f"scf: {error}")
        if error.remedy:
            talk(f"     {error.remedy}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.daemon.scf_daemon",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 ok; 1 failure, or another daemon is running; 2 usage; 4 emergency "
        "lock;\n6 disk full; 7 drive missing; 130 interrupted. `scf daemon run` is the same.",
    )
    parser.add_argument("--home", type=Path, default=None, help="the home (default: SCF_HOME)")
    parser.add_argument("--root", type=Path, default=None, help="the drive (default: SCF_ROOT)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--once", action="store_true", help="one tick, then return")
    group.add_argument(
        "--until-idle", action="store_true", help="return once nothing is left to do"
    )
    parser.add_argument(
        "--gear",
        choices=tuple(GEAR_FLOORS_S),
        default=None,
        help="polling floor for this run, in place of the operator's",
    )
    return parser


__all__ = ["Conductor", "Tick", "main", "run_daemon"]


if __name__ == "__main__":
    sys.exit(main())
