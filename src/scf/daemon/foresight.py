"""What would the conductor do now, and why? Looks at everything and does nothing.

The same eyes as the conductor's (`Pulse`, `situation`, `is_due`), so that what is said here is what
a daemon would do. Works beside a running daemon and without one.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scf.audit.log import AuditLog
from scf.config import FoundryConfig
from scf.control.control_file import ControlFile
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock
from scf.core.errors import (
    DoorUnavailable,
    DriveError,
    InputError,
    MissingTool,
    ScfError,
    VerificationFailed,
)
from scf.daemon.advance import is_due
from scf.daemon.attempts import MEASURE, TRAIN
from scf.daemon.commands import CANCELS, IS_PAUSED
from scf.daemon.doors import access_of, box_of, cluster_of
from scf.daemon.errands import RELEASED_WEEK
from scf.daemon.holding import Held, Holding
from scf.daemon.novelty import novelty_of
from scf.daemon.offers import choose_door
from scf.daemon.orient import may_plan, moment_of, situation
from scf.daemon.pipeline import RECORDING, STAGES
from scf.daemon.pulse import Pulse, Signs
from scf.daemon.rooms import Shelves, own_drive, week_of
from scf.daemon.standing import reading_store
from scf.daemon.triggers import is_it_time
from scf.dispatch.registry import LOCAL, RAY, RUNPOD, SSH
from scf.runs.record import Run
from scf.runs.state import ACTIVE, State
from scf.runs.store import RunStore
from scf.storage.partitions import Folder
from scf.vault.journal_file import JOURNAL, read_journal
from scf.zoo.looks import SeenLooks

FILES_NAMED_MAX = 10

# What the next stage of a run in this state is, in words.
_NEXT = {
    State.DISCOVERED: "make its plan, and check that its shards are as their manifests say",
    State.VALIDATED: "choose a door",
    State.PLANNED: "start its training job",
    State.SUBMITTED: "wait for its training job, and take the checkpoint in",
    State.LOST: "try again, or park it with its reason",
    State.RETURNED: "measure the checkpoint in a process of its own, and ask the gate",
    State.VERIFIED: "sign its statement and enter it in the audit log",
    State.PROVEN: "make it a generation of the zoo, and the champion",
}
assert _NEXT.keys() == STAGES.keys()


@dataclass(frozen=True)
class Intention:
    """One thing that would be done, or is waited with.

    Attributes:
        what: `ingest`, `plan`, `advance`, `release`, `obey`, `nothing`.
        subject: A file, a run, a week.
        now: Whether the next tick would do it.
        why: The reason, for people.
    """

    what: str
    subject: str
    now: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "subject": self.subject, "now": self.now, "why": self.why}


def foresee(config: FoundryConfig, clock: Clock) -> list[Intention]:
    """What the next ticks would do, in order. Nothing is written on the drive nor in `runs.db`."""
    fault = EmergencyLock(config.home, token=config.token).fault()
    if fault is not None:
        return [Intention("nothing", str(config.home), now=True, why=f"emergency lock: {fault}")]
    with reading_store(config.home) as kept:
        store = kept or RunStore.in_memory(clock)
        try:
            drive = own_drive(config)
        except DriveError as missing:
            return [Intention("nothing", str(config.root), now=True, why=str(missing))]
        found = list(_intentions(Shelves(config, drive, clock), store))
        if kept is None:
            store.close()
    quiet = Intention("nothing", str(config.home), now=True, why="nothing is left to do")
    return found or [quiet]


def _intentions(shelves: Shelves, store: RunStore) -> Iterator[Intention]:
    reading = ControlFile(shelves.config.home).read_if_changed()
    for command in reading.commands if reading else ():
        if not store.has_ack(command.id):
            why = command.fault or "asked in control.json"
            yield Intention("obey", f"{command.name} ({command.id})", now=True, why=why)
    is_paused = bool(store.get(IS_PAUSED, default=False))
    settings = shelves.config.daemon
    pulse = Pulse(shelves.vault_folder, store, shelves.clock, settle_s=settings.settle_s)
    signs = pulse.look(is_hasty=False)
    while pulse.is_looking or signs.is_reading:
        signs = pulse.look(is_hasty=False)
    yield from _runs(shelves, store, is_paused=is_paused)
    if is_paused:
        yield Intention("nothing", "anything new", now=True, why="paused; `scf resume` goes on")
        return
    yield from _ingests(signs)
    yield from _planning(shelves, store, pulse, signs)
    if settings.auto_release:
        yield from _release(shelves, store)


def _runs(shelves: Shelves, store: RunStore, *, is_paused: bool) -> Iterator[Intention]:
    now = shelves.clock.now()
    cancels = store.get(CANCELS, {})
    for run in store.runs(ACTIVE):
        if run.run_id in cancels:
            why = "the operator asked for its end: its job ends, then the run"
            yield Intention("advance", run.run_id, now=True, why=why)
            continue
        hurdle = _hurdle(run, store)
        if is_paused and run.state not in RECORDING:
            hurdle = "paused"
        elif not is_due(run, now):
            hurdle = f"it waits until {run.not_before} after: {run.reason}"
        why = f"{run.state}: {_NEXT[run.state]}" + (f"; waits: {hurdle}" if hurdle else "")
        if run.state in {State.VALIDATED, State.PLANNED}:
            why += f"; {_door_told(shelves, store, run, store.plan(run.run_id))}"
        yield Intention("advance", run.run_id, now=hurdle is None, why=why)


def _door_told(shelves: Shelves, store: RunStore, run: Run, plan: Mapping[str, Any]) -> str:
    """Which door a run's training would go through, and why; no door is opened for the answer."""
    decision = choose_door(
        run,
        plan,
        config=shelves.config,
        doors=_Looked(shelves),
        clock=shelves.clock,
        attempts=store.attempts(run.run_id),
        open_attempts=store.open_attempts(),
    )
    return f"door {decision.reason}" if decision.door else decision.reason


class _Looked:
    """The doors as the settings have them: what `Doors` would say before it asks anybody."""

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves
        self.order = shelves.config.doors.order

    def get(self, name: str) -> object:
        config = self._shelves.config
        try:
            if name == SSH:
                return box_of(config)
            if name == RUNPOD:
                return access_of(config, self._shelves.clock)
            if name == RAY:
                return cluster_of(config)
        except ScfError as error:
            raise DoorUnavailable(str(error), remedy=error.remedy) from error
        return name


def _hurdle(run: Run, store: RunStore) -> str | None:
    """The job that keeps the run's next one waiting: its own goes on."""
    kind = {State.PLANNED: TRAIN, State.RETURNED: MEASURE}.get(run.state)
    if kind is None:
        return None
    door = LOCAL if kind == MEASURE else str(run.facts.get("door", LOCAL))
    others = [
        a.attempt_id for a in store.open_attempts() if a.door == door and a.run_id != run.run_id
    ]
    return f"the door {door} is taken by {others[0]}" if others else None


def _ingests(signs: Signs) -> Iterator[Intention]:
    for dropped in signs.dropped[:FILES_NAMED_MAX]:
        why = f"{dropped.size_bytes} bytes, still, and not ingested as it is now"
        yield Intention("ingest", dropped.name, now=True, why=why)
    left = len(signs.dropped) - FILES_NAMED_MAX
    if left > 0:
        yield Intention("ingest", f"{left} more files", now=False, why="one file a tick")
    if signs.unsettled:
        why = "they have changed within `settle_s`"
        yield Intention("ingest", f"{signs.unsettled} files", now=False, why=why)


def _planning(shelves: Shelves, store: RunStore, pulse: Pulse, signs: Signs) -> Iterator[Intention]:
    config = shelves.config
    moment = moment_of(store, signs, shelves.clock.now(), novelty=novelty_of(store))
    because = is_it_time(moment, min_fresh=config.daemon.min_fresh_fossils, start=config.start)
    why = because.reason
    if not because.is_time:
        if signs.fresh_fossils:
            yield Intention("plan", "a run", now=False, why=why)
        return
    if not pulse.prefix.shards:
        yield Intention("plan", "a run", now=False, why=f"{why}; the vault holds no fossils")
        return
    try:
        found = situation(shelves, pulse.prefix, store)
        held = _held_back(shelves, store, pulse)
    except (InputError, MissingTool, VerificationFailed) as error:
        yield Intention("plan", "a run", now=False, why=f"{why}; not possible: {error}")
        return
    known = {run.run_id: run for run in store.runs()}.get(found.run_id)
    if known is not None:
        yield Intention("plan", found.run_id, now=False, why=f"it was made: {known.state}")
        return
    if held is not None and (held.is_impossible or not moment.is_asked):
        yield Intention("plan", "a run", now=False, why=f"{why}; held back: {held.reason}")
        return
    why += f"; but {held.reason}" if held is not None else ""
    parent = found.facts["parent"]
    why += f"; {found.facts['vault_fossils']} fossils, begins from "
    why += parent["generation"] if parent else "random weights"
    hurdles = [
        (not may_plan(store), "a run is under way"),
        (bool(signs.dropped), "files are ingested first"),
        (not (_is_still(shelves) or moment.is_asked), "the vault has changed within `settle_s`"),
    ]
    hurdle = next((text for holds, text in hurdles if holds), None)
    why += f"; waits: {hurdle}" if hurdle else ""
    run = Run(found.run_id, found.intent, State.DISCOVERED, why, 0, None, found.facts, "", "")
    why += f"; {_door_told(shelves, store, run, _shards(shelves, pulse))}"
    yield Intention("plan", found.run_id, now=hurdle is None, why=why)


def _held_back(shelves: Shelves, store: RunStore, pulse: Pulse) -> Held | None:
    log = Folder(shelves.drive.root / "zk_proofs" / "audit", shelves.drive)
    audit = AuditLog.at(log, shelves.config.home, shelves.clock)
    return Holding(shelves, store, SeenLooks(audit)).look(pulse.prefix)


def _shards(shelves: Shelves, pulse: Pulse) -> dict[str, Any]:
    """The sizes that a plan would name."""
    entries = itertools.islice(read_journal(shelves.vault_folder), pulse.prefix.shards)
    return {"shards": [{"size_bytes": entry.size_bytes} for entry, _ in entries]}


def _is_still(shelves: Shelves) -> bool:
    """Whether the journal has not changed lately, by its own time: this is our first look."""
    changed_at = (shelves.vault_folder / JOURNAL).stat().st_mtime
    age_s = shelves.clock.now().timestamp() - changed_at
    return not 0 <= age_s < shelves.config.daemon.settle_s


def _release(shelves: Shelves, store: RunStore) -> Iterator[Intention]:
    week = week_of(shelves.clock).isoformat()
    champion = shelves.champion()
    if champion is None or store.get(RELEASED_WEEK) == week:
        return
    if (shelves.drive.root / "release_history" / f"week-{week}").exists():
        return
    why = f"no release of this week yet; {champion.name} is the champion"
    yield Intention("release", f"week-{week}", now=True, why=why)
