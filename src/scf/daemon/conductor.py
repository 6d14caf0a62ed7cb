"""`Conductor.tick`: a bounded amount of what is to be done now.

Each tick: read the operator's commands, look at the emergency lock and at the drive, see what
changed (Pulse), plan (Orient), and take each run one stage further (`pipeline`). Restart after a
crash is a tick like any other: what was to be done is in `runs.db`, and every stage can be done
twice.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from scf.config import FoundryConfig
from scf.control.control_file import CONTROL_NAME
from scf.control.emergency_lock import LOCK_NAME as LOCK_FILE_NAME
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, SystemClock
from scf.core.errors import (
    BudgetExceeded,
    DoorError,
    DriveError,
    EmergencyLocked,
    InputError,
    OperatorError,
    ScfError,
)
from scf.daemon.advance import advance, is_due
from scf.daemon.commands import CANCELS, ROOM_CONFIGURED, ROOM_PENDING, Operator
from scf.daemon.doors import Doors, open_doors
from scf.daemon.errands import Errands
from scf.daemon.heartbeat import LOCK_NAME, DaemonState, Heartbeat, Teller
from scf.daemon.logbook import Logbook
from scf.daemon.novelty import Strangeness
from scf.daemon.orient import moment_of
from scf.daemon.pipeline import RECORDING
from scf.daemon.pulse import Pulse, Signs
from scf.daemon.rebuild import require_history
from scf.daemon.rooms import OpenDoor, Rooms, open_local_door, own_drive
from scf.daemon.stage import Bench
from scf.daemon.survey import Survey
from scf.daemon.triggers import Because, is_it_time
from scf.daemon.wakeful import Wakeful
from scf.daemon.waker import open_waker
from scf.dispatch.bundle import Bundle
from scf.dispatch.job import JobPhase
from scf.dispatch.registry import RUNPOD
from scf.runs.state import ACTIVE
from scf.runs.store import DATABASE_NAME, RunStore, StateDamaged
from scf.storage import durable
from scf.storage.database import is_busy
from scf.storage.instance_lock import instance_lock
from scf.storage.ndjson import is_shard_name
from scf.storage.partitions import Drive, Folder
from scf.vault.journal_file import JOURNAL

# A tick takes at most so many runs one stage further.
RUNS_PER_TICK_MAX = 16
# Another process may look at our lock for an instant (`scf status`).
START_WAIT_S = 1.0


@dataclass(frozen=True)
class Tick:
    """What a tick came to.

    Attributes:
        state: What the conductor is at.
        did: Whether something was done; then there may be more to do at once.
        is_idle: Nothing is left to do, and nothing is waited for.
        trouble: Why it cannot work, where it cannot.
    """

    state: DaemonState
    did: bool = False
    is_idle: bool = False
    trouble: ScfError | None = None


class Conductor:
    """Takes runs through their stages, one bounded tick at a time.

    Args:
        config: All settings.
        clock: Time.
        open_door: How to open the door for jobs on a drive.
        talk: Gets lines for people.
        is_hasty: Somebody waits for the end: plan without letting the vault settle.
    """

    def __init__(
        self,
        config: FoundryConfig,
        *,
        clock: Clock,
        open_door: OpenDoor = open_local_door,
        talk: Callable[[str], None] = lambda _: None,
        is_hasty: bool = False,
    ) -> None:
        self._config = config
        self._clock = clock
        self._open_door = open_door
        self._talk = talk
        self._is_hasty = is_hasty
        self._logbook = Logbook(config.home)
        self._log = self._logbook.log
        self.lock = EmergencyLock(config.home, token=config.token)
        self.store = RunStore.open(config.home, clock)
        self.store.check()
        self.operator = Operator(
            config.home,
            self.store,
            clock,
            default_gear=config.daemon.gear,
            log=self._log,
            talk=talk,
        )
        self._wakeful = Wakeful()
        self._heartbeat = Heartbeat(config.home, clock)
        self._teller = Teller(talk, clock)
        self._rooms: Rooms | None = None
        self._doors: Doors | None = None
        self._errands: Errands | None = None
        self._strangeness: Strangeness | None = None
        self._holding = ExitStack()
        self._is_stop_passed_on = False
        self._told_of = ""
        self._full: BudgetExceeded | None = None
        self._num_due = 0
        # As texts, since they are looked at many times a second.
        self._watched = [str(config.home / CONTROL_NAME), str(self.lock.path)]
        if config.root is not None:
            self._watched.append(str(config.root / "fossil_vault" / JOURNAL))
        if config.token is not None:
            self._watched.append(str(config.token))
        self._mark = self._look()
        # Called within long errands, so that whoever watches the process does not lose patience.
        self.still_alive: Callable[[], None] = lambda: None
        self.waker = open_waker(clock, is_real_time=isinstance(clock, SystemClock))
        self.waker.watch(config.home, {CONTROL_NAME, LOCK_FILE_NAME}.__contains__)

    def open(self) -> None:
        """Open the drive's rooms now: a wrong root or a second daemon is noticed at once."""
        if self._rooms is not None:
            return
        with ExitStack() as holding:
            # Two homes must not work on one drive either. The folder is found through the drive, so
            # that no lock file is made where the drive is not.
            cache = own_drive(self._config).folder("system_cache")
            holder = f"scf daemon of home {self._config.home}"
            with durable.os_errors(cache.path):
                holding.enter_context(
                    instance_lock(cache.path / LOCK_NAME, holder=holder, wait_s=START_WAIT_S)
                )
            rooms = Rooms.open(self._config, self._clock, self._open_door)
            require_history(rooms.drive, has_runs=bool(self.store.counts()))
            self._holding = holding.pop_all()
        settings = self._config.daemon
        bench = Bench(rooms, self.store, settings.max_attempts)
        self.waker.watch(rooms.vault_folder, lambda name: name == JOURNAL or is_shard_name(name))
        pulse = Pulse(rooms.vault_folder, self.store, self._clock, settle_s=settings.settle_s)
        self._close_doors()  # those of a drive that had gone; the new ones find their jobs again
        self._doors = rooms.doors
        self._doors.resume()
        self._rooms = rooms
        self._strangeness = Strangeness(rooms, self.store, self._config.start, self._log)
        survey = Survey(rooms.drive, self._clock)
        self.operator.hurdle = self._hurdle
        self._errands = Errands(bench, pulse, survey, self.lock, self._log, self._talk, self._alive)

    def close(self) -> None:
        """Let go of everything. Running jobs go on, and are found again."""
        self._wakeful.keep(is_needed=False)
        self._drop_rooms()
        self._close_doors()
        self.waker.close()
        with suppress(sqlite3.DatabaseError, BudgetExceeded):
            self._heartbeat.show(DaemonState.STOPPED, **self._asked())
        self.store.close()
        self._logbook.close()

    def tick(self) -> Tick:
        """Do a bounded amount of what is to be done now."""
        self._mark = self._look()
        try:
            self.operator.obey()
            tick = self._work()
        except EmergencyLocked as locked:
            self._latch()
            self._end_jobs(at_once=True)
            tick = Tick(DaemonState.EMERGENCY_LOCKED, trouble=locked)
        except DriveError as missing:
            self._end_jobs(at_once=True)
            self._drop_rooms()
            tick = Tick(DaemonState.DRIVE_MISSING, trouble=missing)
        except sqlite3.DatabaseError as error:
            if is_busy(error):
                raise OperatorError(
                    f"{self._config.home / DATABASE_NAME} was held by another process for too long",
                    remedy="End what holds it (`fuser` names it), then start the daemon again.",
                ) from error
            raise StateDamaged(self._config.home / DATABASE_NAME, str(error)) from error
        except BudgetExceeded as full:
            tick = Tick(DaemonState.DISK_FULL, trouble=full)
        self._wakeful.keep(is_needed=self._is_paid_for())
        self._show(tick)
        return tick

    def hint(self) -> None:
        """Something may have happened on the drive."""
        if self._errands is not None:
            self._errands.pulse.hint()

    def has_news(self) -> bool:
        """Whether the commands, the emergency lock or the journal changed since the last tick."""
        return self._look() != self._mark

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in self._watched:
            try:
                stat = os.lstat(path)
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found

    def has_running_jobs(self) -> bool:
        """Whether a job that we started is running."""
        doors = self._any_doors()
        for attempt in self.store.open_attempts():
            with suppress(DoorError):
                if doors.get(attempt.door).poll(attempt.attempt_id).phase is JobPhase.RUNNING:
                    return True
        return False

    def raise_given_up(self) -> None:
        """Raise OperatorError when something failed so often that nobody should wait for it."""
        tries_max = self._config.daemon.max_attempts
        names = self._errands.given_up(tries_max=tries_max) if self._errands is not None else []
        if names:
            raise OperatorError(
                f"not done after {tries_max} tries: {', '.join(names)}",
                remedy=f"The reason is in {self._config.home / 'logs'}.",
            )

    def _alive(self) -> None:
        self.still_alive()

    def _work(self) -> Tick:
        self.lock.require_clear("the conductor's work")
        if self._rooms is None:
            self.open()
        assert self._rooms is not None
        assert self._errands is not None
        self._rooms.drive.check()
        self._give_room(self._rooms.drive)
        if self.operator.stopping is not None:
            return self._stop()
        if self.operator.is_paused:
            # Paused is as far as it gets: whoever waits for the end does not wait for `resume`.
            did, is_quiet = self._record_ends()
            return Tick(DaemonState.PAUSED, did, is_idle=is_quiet)
        signs = self._errands.pulse.look(is_hasty=self._is_hasty)
        settings = self._config.daemon
        did = signs.is_reading | self._errands.ask(self._strangeness, signs)
        because = self._is_it_time(signs)
        did |= self._errands.run_all(signs, because, auto_release=settings.auto_release)
        did |= self._advance_runs(only_recording=False)
        full = self._full or self._errands.full
        if full is not None:
            raise full
        tries_max = settings.max_attempts
        given_up = self._errands.given_up(tries_max=tries_max)
        is_plan_due = because.is_time and self._errands.held is None and "plan" not in given_up
        self.operator.feel(len(signs.dropped) + signs.unsettled + is_plan_due + self._num_due)
        is_idle = not (
            did
            or is_plan_due
            or self._errands.pending(signs, tries_max=tries_max)
            or self._errands.waiting(tries_max=tries_max)
            or self.store.runs(ACTIVE)
            or self._rooms.doors.is_giving_back
            or (self._strangeness is not None and self._strangeness.is_asking)
        )
        return Tick(DaemonState.IDLE if is_idle else DaemonState.WORKING, did, is_idle)

    def _is_it_time(self, signs: Signs) -> Because:
        assert self._errands is not None
        found = self._strangeness.found() if self._strangeness is not None else None
        moment = moment_of(self.store, signs, self._clock.now(), novelty=found)
        settings = self._config
        return is_it_time(moment, min_fresh=settings.daemon.min_fresh_fossils, start=settings.start)

    def _hurdle(self) -> str | None:
        """What would hold back a run that the operator asks for, as far as it can be said."""
        with suppress(ScfError):
            held = self._errands.look_what_holds() if self._errands is not None else None
            return held.reason if held is not None else None
        return None

    def _latch(self) -> None:
        """A pulled token sets the lock itself, which jobs see and only `scf unlock` releases."""
        pulled = self.lock.token_fault()
        if pulled is not None and self.lock.set(pulled, now=self._clock.now()):
            self._log.warning("emergency.token_pulled", fault=pulled)
            self._talk(f"EMERGENCY: {pulled}")

    def _give_room(self, drive: Drive) -> None:
        """Write the budgets that were set to the drive that they are about.

        Those of scf.toml when they have changed there, then those of `scf budget set`, which stay
        until one of the two changes.
        """
        wanted = self._config.keep.room()
        if wanted != self.store.get(ROOM_CONFIGURED, {}):
            drive.set_budgets(wanted)
            self.store.set(ROOM_CONFIGURED, wanted)
        pending = self.store.get(ROOM_PENDING)
        if pending:
            drive.set_budgets({name: int(size) for name, size in pending.items()})
            self.store.set(ROOM_PENDING, {})

    def _advance_runs(self, *, only_recording: bool) -> bool:
        assert self._errands is not None
        did = False
        self._full = None
        states = RECORDING if only_recording else ACTIVE
        now = self._clock.now()
        cancels = self.store.get(CANCELS, {})
        due = [
            run
            for run in self.store.runs(ACTIVE if cancels else states)
            if run.run_id in cancels or (run.state in states and is_due(run, now))
        ]
        self._num_due = len(due)
        for run in due[:RUNS_PER_TICK_MAX]:
            self.lock.require_clear(f"the next stage of {run.run_id}")
            progress = advance(run, self._errands.bench, log=self._log, talk=self._talk)
            did |= progress.moved
            self._full = self._full or progress.full
            if progress.attempt_id is not None:
                self._tell_progress(progress.attempt_id, progress.waiting or "")
        return did

    def _is_paid_for(self) -> bool:
        """Whether a rented machine works for us, or may still be there."""
        if self._doors is not None and self._doors.is_giving_back:
            return True
        return any(attempt.door == RUNPOD for attempt in self.store.open_attempts())

    def _stop(self) -> Tick:
        """Start nothing more; let jobs end (drain), or ask them to save and end (now)."""
        if self.operator.stopping == "now" and not self._is_stop_passed_on:
            self._is_stop_passed_on = self._end_jobs(at_once=False)
        did, is_quiet = self._record_ends()
        is_idle = is_quiet and not self._any_doors().is_giving_back
        return Tick(DaemonState.STOPPING, did, is_idle)

    def _record_ends(self) -> tuple[bool, bool]:
        """Note how jobs ended: (whether anything was, whether none runs and each end is noted).

        Asked in this order: a job that ends between the two looks is running in the first.
        """
        are_running = self.has_running_jobs()
        did = self._advance_runs(only_recording=True)
        return did, not did and not are_running

    def _end_jobs(self, *, at_once: bool) -> bool:
        """Tell every running job to end; returns whether each door has taken it."""
        doors, are_all_told = self._any_doors(), True
        for attempt in self.store.open_attempts():
            about = {"run": attempt.run_id, "attempt": attempt.attempt_id}
            try:
                door = doors.get(attempt.door)
                if door.poll(attempt.attempt_id).phase is JobPhase.RUNNING:
                    door.cancel(attempt.attempt_id, at_once=at_once)
                    self._log.warning("job.cancelled", **about)
                    self._talk(f"{attempt.attempt_id}: told to end")
            except (DoorError, InputError, OSError) as error:
                # Whatever one door does, the jobs of the others are told.
                are_all_told = False
                self._log.warning("job.not_told", error=str(error), **about)
        return are_all_told

    def _any_doors(self) -> Doors:
        """The doors, with or without the drive: a job can be found and ended when it has gone."""
        if self._doors is None:
            jobs = Folder(self._config.need_root() / "system_cache" / "jobs")
            self._doors = open_doors(self._config, jobs, self._clock, open_local=self._open_door)
        return self._doors

    def _drop_rooms(self) -> None:
        # The doors stay open: when the drive has gone, pods are still to be given back.
        if self._errands is not None:
            self._errands.bench.planner.close()
        self._holding.close()
        self._rooms = self._errands = self._strangeness = None

    def _close_doors(self) -> None:
        if self._doors is not None:
            self._doors.close()
            self._doors = None

    def _tell_progress(self, attempt_id: str, doing: str) -> None:
        assert self._rooms is not None
        if attempt_id != self._told_of:
            self._told_of = attempt_id
            self._talk(f"{attempt_id}: {doing}")
        note = Bundle(self._rooms.jobs.path / attempt_id).last_progress()
        self._teller.tell(attempt_id, note)

    def _asked(self) -> dict[str, Any]:
        """What the operator asked for, to be shown, and to be found again if the state is lost."""
        operator = self.operator
        return {
            "gear": operator.gear,
            "gear_is_auto": operator.is_auto,
            "is_paused": operator.is_paused,
        }

    def _show(self, tick: Tick) -> None:
        trouble = str(tick.trouble) if tick.trouble is not None else None
        held = self._errands.held if self._errands is not None else None
        about = {
            "gear": self.operator.gear,
            "gear_is_auto": self.operator.is_auto,
            "trouble": trouble,
            "held": held.to_json() if held is not None else None,
        }
        if self._heartbeat.show(tick.state, **about):
            self._log.info("daemon.state", state=str(tick.state), trouble=trouble)
            if tick.trouble is not None:
                self._talk(f"{tick.state}: {tick.trouble}")
