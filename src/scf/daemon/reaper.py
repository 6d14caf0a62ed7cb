"""The reaper: ends rented machines that outlive their lease, whatever became of the daemon.

    python -m scf.daemon.reaper [--home DIR] [--once]

A process of its own that knows two lists: the pods and clusters in the home's book, with their
leases, and those that the provider shows. It needs neither the drive nor `runs.db`. Under the
emergency lock it ends every pod of this home. Pods of others it leaves alone. About once an hour it
asks what pods that have gone were billed, and tells the purse.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.config import FoundryConfig, find_home, load_config
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, SystemClock
from scf.core.errors import DoorError, OperatorError, ScfError
from scf.daemon.allowance import Allowance
from scf.daemon.doors import account_of
from scf.daemon.notify import Manager
from scf.dispatch.bills import reconcile
from scf.dispatch.pod_record import PodFiles
from scf.dispatch.registry import open_client
from scf.dispatch.sweeping import Stray, lease_left_s, name_prefix, shown, strays, sweep

# One look in so long, which is one list call, or two where clusters are rented: beside the
# daemon's 3 a minute, this home makes 4 at most, or 5.
EVERY_S = 60.0
# After a look that failed, or told something to end, the next comes sooner: a cluster that does not
# hear three times, and its members three times, must be gone two minutes after its lease.
HURRY_S = 10.0
BILLS_EVERY_S = 3600.0


@dataclass(frozen=True)
class Look:
    """What a look came to.

    Attributes:
        alive: Pods and clusters of this home that the provider shows.
        ended: Those that were told to end, and why.
        billed: Jobs whose bill came in.
        lease_left_s: Until the next lease ends; None where none is open.
    """

    alive: int
    ended: list[Stray] = field(default_factory=list)
    billed: list[str] = field(default_factory=list)
    lease_left_s: float | None = None

    def pause_s(self, every_s: float) -> float:
        """Until the next look: sooner while something ends, and at the moment a lease does."""
        pause_s = min(every_s, HURRY_S) if self.ended else every_s
        return pause_s if self.lease_left_s is None else min(pause_s, self.lease_left_s + 1.0)

    def to_json(self) -> dict[str, Any]:
        ended = [{"pod": s.lot.lot_id, "name": s.lot.name, "why": s.why} for s in self.ended]
        return {"schema_version": 1, "alive": self.alive, "ended": ended, "billed": self.billed}


class Reaper:
    """Looks at pods, and ends those that nobody needs.

    Args:
        config: All settings.
        clock: Time.
    """

    def __init__(self, config: FoundryConfig, clock: Clock) -> None:
        if not config.home.is_dir():
            raise OperatorError(f"{config.home}: no home here", remedy="Run `scf init` first.")
        self._home = config.home
        self._clock = clock
        self._client = open_client(account_of(config))
        self._book = PodFiles(config.home / "runpod")
        self._prefix = name_prefix(config.home)
        self._bills_at = 0.0
        self._rents_clusters = config.runpod.nodes > 1

    def look(self) -> Look:
        """One look. Twice is once.

        Raises:
            DoorError: The provider does not say, or does not do.
        """
        has_clusters = self._rents_clusters or any(row.is_cluster for row in self._book.all())
        # The list first: what is in it was in the book before it was ordered.
        lots = shown(self._client, has_clusters=has_clusters)
        records, now = self._book.all(), self._clock.now()
        found = strays(
            lots,
            records,
            prefix=self._prefix,
            now=now,
            is_locked=EmergencyLock(self._home).is_set,
        )
        told = sweep(self._client, found)
        alive = sum(lot.name.startswith(self._prefix) for lot in lots)
        return Look(alive, told, self._bills(), lease_left_s(records, now))

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _bills(self) -> list[str]:
        if self._clock.monotonic() < self._bills_at:
            return []
        self._bills_at = self._clock.monotonic() + BILLS_EVERY_S
        purse = Allowance(self._home, self._clock)
        return reconcile(self._client, self._book, purse, self._clock.now())


def run_reaper(
    config: FoundryConfig,
    *,
    every_s: float = EVERY_S,
    stop: threading.Event | None = None,
    clock: Clock | None = None,
    talk: Callable[[str], None] = lambda _: None,
) -> None:
    """Look every `every_s` seconds until `stop`; a look that fails is made again."""
    stop = stop or threading.Event()
    reaper = Reaper(config, clock or SystemClock())
    manager = Manager.of(os.environ)
    try:
        while not stop.is_set():
            pause_s = min(every_s, HURRY_S)
            try:
                look = reaper.look()
            except (DoorError, OperatorError) as error:
                status = f"the provider does not answer: {error}"
                talk(status)
            else:
                status = f"{look.alive} pods"
                pause_s = look.pause_s(every_s)
                for stray in look.ended:
                    talk(f"{stray.lot.name} ({stray.lot.lot_id}): told to end: {stray.why}")
                for job_id in look.billed:
                    talk(f"{job_id}: its bill is in")
            manager.ready(status)
            stop.wait(pause_s)
    finally:
        reaper.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m scf.daemon.reaper`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scf.daemon.reaper", description=__doc__)
    parser.add_argument("--home", type=Path, default=None, help="the home (default: SCF_HOME)")
    parser.add_argument("--root", type=Path, default=None, help="not used; as for the daemon")
    parser.add_argument("--once", action="store_true", help="one look, then return")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def talk(line: str) -> None:
        sys.stderr.write(f"reaper: {line}\n")

    try:
        home = find_home(options.home, os.environ)
        config = load_config(home, environment=os.environ)
        if options.once:
            for stray in Reaper(config, SystemClock()).look().ended:
                talk(f"{stray.lot.name}: told to end: {stray.why}")
        else:
            run_reaper(config, stop=stop, talk=talk)
    except ScfError as error:
        talk(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
