"""What the conductor does besides taking runs further: ingest, plan, log, release.

Each is one bounded thing that can be done again. A file that cannot be ingested, or a release that
cannot be packed, is put off and keeps nothing else waiting.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scf.control.emergency_lock import EmergencyLock
from scf.core.errors import (
    BudgetExceeded,
    DriveError,
    EmergencyLocked,
    InputError,
)
from scf.core.units import format_duration
from scf.daemon.advance import BACKOFF_FIRST_S, backoff_s
from scf.daemon.commands import RUN_NOW
from scf.daemon.holding import Held, Holding
from scf.daemon.novelty import Strangeness
from scf.daemon.orient import describe, may_plan, orient
from scf.daemon.pulse import Dropped, Pulse, Signs
from scf.daemon.retention import CLEAN_EVERY_S, clean
from scf.daemon.rooms import week_of
from scf.daemon.stage import Bench
from scf.daemon.survey import PRESSED_FROM, Survey, read_usage
from scf.daemon.triggers import Because
from scf.runs.record import Origin, Run
from scf.runs.state import State
from scf.storage.failpoint import failpoint

AUDIT_PER_TICK_MAX = 64
INGEST_TELLS_EVERY_S = 5.0

RELEASED_WEEK = "release.week"


@dataclass
class Errands:
    """The errands of one daemon, with what they need, and which of them wait after a failure.

    Attributes:
        full: Set where the last round found a disk without room.
        held: What held the run back that was due in the last round.
    """

    bench: Bench
    pulse: Pulse
    survey: Survey
    lock: EmergencyLock
    log: Any
    talk: Callable[[str], None]
    still_alive: Callable[[], None] = lambda: None
    full: BudgetExceeded | None = None
    held: Held | None = field(default=None, init=False)
    _holding: Holding = field(init=False)
    _held_told: Held | None = None
    _clean_at: float = 0.0
    _tries: dict[str, int] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rooms = self.bench.rooms
        self._holding = Holding(rooms, self.bench.store, rooms.seen_looks)

    def run_all(self, signs: Signs, because: Because, *, auto_release: bool) -> bool:
        """One round: at most one file, one intent, one release. Whether anything was done."""
        self.full = self.held = None
        did = self._try("audit", self.log_transitions)
        dropped = next((d for d in signs.dropped if self._is_due(f"ingest {d.name}")), None)
        if dropped is not None:
            did |= self._try(f"ingest {dropped.name}", lambda: self.ingest(dropped))
        elif self.is_asked_to_run and may_plan(self.bench.store):
            did |= self._try("plan", lambda: self.plan_on_request(because.reason))
        elif signs.is_settled and because.is_time and may_plan(self.bench.store):
            did |= self._try("plan", lambda: self.plan(because.reason))
        if auto_release:
            did |= self._try("release", self.release)
        if self.survey.is_due:
            self._try("survey", self.measure_room)
        if self.bench.rooms.clock.monotonic() >= self._clean_at:
            did |= self._try("clean", self.clean)
        return did

    def ask(self, strangeness: Strangeness | None, signs: Signs) -> bool:
        """Whether what is fresh is strange to the champion: ask, or take the answer in."""
        if strangeness is None:
            return False
        return self._try("novelty", lambda: strangeness.look(signs, self.pulse.prefix))

    @property
    def is_asked_to_run(self) -> bool:
        """Whether the operator asked for a run and has not had an answer."""
        return self.bench.store.get(RUN_NOW) is not None

    def waiting(self, *, tries_max: int) -> list[str]:
        """Errands that failed, fewer than `tries_max` times: worth waiting for."""
        return [name for name, tries in self._tries.items() if tries < tries_max]

    def pending(self, signs: Signs, *, tries_max: int) -> bool:
        """Whether there are files that will be ingested, now or once they are still."""
        given_up = set(self.given_up(tries_max=tries_max))
        left = [d for d in signs.dropped if f"ingest {d.name}" not in given_up]
        # The look was before the round: what was ingested since is not left.
        waiting = [d for d in left if d in self.pulse.dropped]
        return bool(signs.unsettled or waiting or self.pulse.is_looking)

    def given_up(self, *, tries_max: int) -> list[str]:
        """Errands that failed so often that nobody should wait for them."""
        return [name for name, tries in self._tries.items() if tries >= tries_max]

    def log_transitions(self) -> bool:
        """Enter what is not in the audit log yet, in order. A key makes twice once."""
        waiting = self.bench.store.unaudited(limit=AUDIT_PER_TICK_MAX)
        for transition in waiting:
            index = self.bench.rooms.audit.append(
                f"run.{transition.to_state}",
                transition.run_id,
                {
                    "from": str(transition.from_state) if transition.from_state else None,
                    "to": str(transition.to_state),
                    "reason": transition.reason,
                    "at": transition.at,
                    "details": dict(transition.details),
                },
                key=f"run/{transition.run_id}/{transition.seq}/{transition.at}",
            )
            failpoint("pipeline.effect_done")
            self.bench.store.mark_audited(transition.seq, index)
        return bool(waiting)

    def ingest(self, dropped: Dropped) -> bool:
        """Take one dropped file in, unless the very same bytes were taken in before."""
        store = self.bench.store
        try:
            sha256 = dropped.sha256()
            known = store.origin_with_digest(sha256)
            outcome = {"same_as": known.path} if known is not None else self._ingest(dropped)
        except (InputError, FileNotFoundError, PermissionError) as error:
            sha256, outcome = "", {"error": str(error)}
            self.log.warning("ingest.refused", origin=dropped.name, error=str(error))
            self.talk(f"{dropped.name}: not ingested: {error}")
        failpoint("pipeline.effect_done")
        if dropped.is_unchanged():
            store.remember_origin(
                Origin(dropped.name, dropped.size_bytes, dropped.mtime_ns, sha256, outcome)
            )
        self.pulse.ingested(dropped)
        return True

    def measure_room(self) -> bool:
        """Look at a few more folders; a partition that is pressed is cleaned at once."""
        if self.survey.step():
            drive = self.bench.rooms.drive
            for name, used in read_usage(drive.root).used_bytes.items():
                if used > PRESSED_FROM * drive.budgets_bytes[name]:
                    self.log.warning("partition.nearly_full", partition=name, used_bytes=used)
                    self._clean_at = 0.0
        return False

    def clean(self) -> bool:
        """Take away what may go."""
        self._clean_at = self.bench.rooms.clock.monotonic() + CLEAN_EVERY_S
        removed = clean(self.bench.rooms, self.bench.store)
        for removal in removed:
            self.log.info("retention.removed", name=removal.name, reason=removal.reason)
        if removed:
            self.talk(f"removed {len(removed)} that nobody needs: {removed[0].name} ...")
            self.survey.ask()
        return bool(removed)

    def look_what_holds(self) -> Held | None:
        """What holds a run back that would be noted now."""
        return self._holding.look(self.pulse.prefix)

    def plan(self, because: str) -> bool:
        """Note an intent about what the vault holds, unless it is known to come to nothing."""
        self.held = held = self.look_what_holds()
        if held is None:
            return self._note(because)
        if held != self._held_told:
            self._held_told = held
            self.log.info("run.held_back", because=because, **held.to_json())
            self.talk(f"no run yet, {because}: {held.reason}")
        return False

    def _note(self, because: str) -> bool:
        prefix = self.pulse.prefix
        run, is_new = orient(self.bench.rooms, self.bench.store, prefix, because)
        self.pulse.planned(prefix)
        if is_new:
            self.log.info("run.discovered", run=run.run_id, because=because, **run.facts)
            self.talk(f"{run.run_id}: {run.state}: {because}; {describe(run)}")
        return is_new

    def plan_on_request(self, because: str) -> bool:
        """The operator asked for a run now: on what is there, however little is fresh."""
        held = self.look_what_holds()
        if not self.pulse.prefix.shards:
            self.talk("run-now: not possible: the vault holds no fossils; `scf ingest PATH`")
        elif held is not None and held.is_impossible:
            self.log.warning("run.not_possible", reason=held.reason)
            self.talk(f"run-now: not possible: {held.reason}")
        elif not self._note(f"{because}; but {held.reason}" if held is not None else because):
            self.talk("run-now: a run on just this was made before; see `scf runs`")
        self.bench.store.set(RUN_NOW, None)
        return True

    def release(self) -> bool:
        """Pack this week's release, once; mark the run that is in it."""
        from scf.release.weekly import AlreadyReleased

        store, rooms = self.bench.store, self.bench.rooms
        week = week_of(rooms.clock).isoformat()
        if store.get(RELEASED_WEEK) == week or rooms.champion() is None:
            return False
        self.lock.require_clear(f"the release of week {week}")
        try:
            made = rooms.make_release()
        except AlreadyReleased as already:
            release, generation = already.path, rooms.generation_in(already.path)
        else:
            assert made.path is not None
            release, generation = made.path, made.generation
            self.log.info("release.made", **made.to_json())
            self.talk(f"{made.name}: released with {generation}, {made.num_files} files: {release}")
        failpoint("pipeline.effect_done")
        for run in store.runs({State.PROMOTED}):
            if run.facts["generation"] == generation:
                self._mark_released(run, release.name)
        store.set(RELEASED_WEEK, week)
        return True

    def _mark_released(self, run: Run, name: str) -> None:
        self.bench.store.move(run, State.RELEASED, f"it is in {name}", facts={"release": name})
        self.log.info("run.moved", run=run.run_id, end=str(State.RELEASED), release=name)
        self.talk(f"{run.run_id}: {State.RELEASED}: it is in {name}")

    def _ingest(self, dropped: Dropped) -> dict[str, Any]:
        clock = self.bench.rooms.clock
        started, tell_at = clock.monotonic(), clock.monotonic() + INGEST_TELLS_EVERY_S

        def on_progress(read: int) -> None:
            nonlocal tell_at
            self.lock.require_clear(f"the rest of {dropped.name}")
            self.still_alive()
            if clock.monotonic() >= tell_at:
                tell_at = clock.monotonic() + INGEST_TELLS_EVERY_S
                self.talk(f"{dropped.name}: {read} records so far")

        rooms = self.bench.rooms
        rooms.drive.admit(rooms.vault_folder, dropped.size_bytes)
        report = rooms.ingest(dropped.path, on_progress).to_json()
        self.survey.ask()
        took = format_duration(clock.monotonic() - started)
        self.log.info("ingest.done", seconds=clock.monotonic() - started, **report)
        self.talk(
            f"{dropped.name}: {report['accepted']} fossils in, {report['duplicates']} known, "
            f"{report['quarantined']} quarantined, {took}"
        )
        return report

    def _try(self, name: str, errand: Callable[[], bool]) -> bool:
        """Do an errand unless it waits after a failure; one that fails keeps no other waiting."""
        if not self._is_due(name):
            return False
        clock = self.bench.rooms.clock
        self.lock.require_clear(name)
        try:
            did = errand()
        except (EmergencyLocked, DriveError):
            raise
        except BudgetExceeded as error:
            self.full = error
            self._not_before[name] = clock.monotonic() + BACKOFF_FIRST_S
            return False
        except Exception as error:
            # As around a stage: look whether the drive was pulled, before blaming the errand.
            self.bench.rooms.drive.check()
            self._tries[name] = self._tries.get(name, 0) + 1
            pause_s = backoff_s(self._tries[name])
            self._not_before[name] = clock.monotonic() + pause_s
            self.log.exception("errand.failed", errand=name, pause_s=pause_s)
            self.talk(f"{name}: {type(error).__name__}: {error}; again in {pause_s:g} s")
            return True
        self._tries.pop(name, None)
        self._not_before.pop(name, None)
        return did

    def _is_due(self, name: str) -> bool:
        return self._not_before.get(name, 0.0) <= self.bench.rooms.clock.monotonic()
