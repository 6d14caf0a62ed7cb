"""A month of operation in seconds: the real conductor, a clock moved by hand, scripted misfortune.

The conductor, its stores, the vault, zoo, log and releases are real; jobs are played by
`ScriptedDoor`, which makes small real checkpoints and reports. A seed decides everything: what is
dropped in and when, what the operator does, what fails. A crash is an exception out of a failpoint
that nothing catches, after which the conductor is thrown away; kills of real processes are the
matter of tests/daemon/test_crash.py. `simulate(seed, base)` raises AssertionError with what is
wrong; `python -m support.simulation SEED` in tests/ shows one seed.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from scf.audit.check import check_log
from scf.audit.log import AuditLog
from scf.control.emergency_lock import EmergencyLock
from scf.core.canonical import canonical_json
from scf.core.clock import utc_text
from scf.core.errors import DoorUnavailable, ScfError, SubmissionUnknown
from scf.core.identity import sha256_hex
from scf.daemon import errands, survey
from scf.daemon.conductor import Conductor, Tick
from scf.daemon.heartbeat import DaemonState
from scf.daemon.rebuild import rebuild_state
from scf.dispatch.bundle import Bundle, list_outputs, make_bundle
from scf.dispatch.job import ExitReason, Job, JobExit, JobPhase, JobSpec, JobStatus
from scf.runs.state import RESTING, State
from scf.runs.store import RunStore
from scf.signing.keys import public_keys
from scf.storage import durable
from scf.storage.partitions import Folder
from scf.vault.journal_file import read_journal
from scf.verification.verify_checkpoint import verify_checkpoint
from support.checkpoints import write_checkpoint
from support.clocks import ManualClock
from support.conducting import Works
from support.fossils import write_fossils
from support.reports import report_json
from support.runs import PNG

START = datetime(2026, 11, 2, 6, 0, tzinfo=UTC)
DAY_S = 86_400.0
MONTH_S = 30 * DAY_S
# After the month nothing fails any more, and so long may pass until all is done.
AFTERWARDS_S = 10 * DAY_S
FOSSILS_A_DROP = 64
# While jobs run, and while nothing is left to do or can be done, a look at least so often.
WORK_STEP_S = 1200.0
IDLE_STEP_S = 8 * 3600.0
CRASH_POINTS = (
    "runs.before_commit", "runs.after_commit", "pipeline.effect_done", "zoo.generation_written",
    "release.packed", "audit.staged", "audit.committed", "vault.shard_written",
    "vault.manifest_written", "vault.journalled", "durable.before_write", "durable.before_rename",
    "durable.after_rename", "durable.append.before", "durable.append.after",
    "durable.folder.before_rename", "durable.folder.after_rename",
)  # fmt: skip


class SimulatedCrash(BaseException):
    """The process is gone."""


class ScriptedDoor:
    """Plays jobs: they take simulated time, and end as the dice say. Outlives conductors."""

    name = "scripted"

    def __init__(self, clock: ManualClock, dice: random.Random) -> None:
        self._clock = clock
        self._dice = dice
        self.jobs: Folder | None = None
        self.starts: Counter[str] = Counter()
        self.started_at: list[tuple[str, float]] = []
        self.ends: dict[str, tuple[float, JobExit | None]] = {}
        self.cancelled: set[str] = set()
        self.out_until = 0.0
        self.is_kind = False

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        self._answer()
        if spec.job_id not in self.ends and spec.job_id not in self.cancelled:
            assert self.jobs is not None
            make_bundle(self.jobs, spec, files, resume=resume)
            self.starts[spec.job_id] += 1
            self.started_at.append((spec.job_id, self._clock.monotonic()))
            takes_s = self._dice.uniform(60, 7200)
            self.ends[spec.job_id] = (self._clock.monotonic() + takes_s, None)
            if not self.is_kind and self._dice.random() < 0.1:
                raise SubmissionUnknown("the answer was lost")
        return Job(spec.job_id, {"door": self.name})

    def poll(self, job_id: str) -> JobStatus:
        self._answer()
        if job_id not in self.ends:
            if job_id in self.cancelled:
                return JobStatus(JobPhase.ENDED, JobExit(ExitReason.CANCELLED))
            return JobStatus(JobPhase.ABSENT)
        at, ended = self.ends[job_id]
        if ended is None and job_id in self.cancelled:
            ended = JobExit(ExitReason.CANCELLED)
        elif ended is None and self._clock.monotonic() >= at:
            ended = self._end(job_id)
        if ended is None:
            return JobStatus(JobPhase.RUNNING)
        self.ends[job_id] = (at, ended)
        return JobStatus(JobPhase.ENDED, ended)

    def collect(self, job_id: str) -> Path:
        self._answer()
        assert self.jobs is not None
        bundle = Bundle(self.jobs.path / job_id)
        bundle.verify_outputs()
        return bundle.path

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        self._answer()
        if job_id not in self.ends or self.ends[job_id][1] is None:
            self.cancelled.add(job_id)

    def _answer(self) -> None:
        if self._clock.monotonic() < self.out_until:
            raise DoorUnavailable("no answer")

    def _end(self, job_id: str) -> JobExit:
        assert self.jobs is not None
        bundle = self.jobs.path / job_id
        fate = self._dice.random()
        if not self.is_kind and fate < 0.3:
            return JobExit(self._dice.choice([r for r in ExitReason if r != "completed"]))
        spec = Bundle(bundle).spec()
        plan = json.loads((bundle / "inputs" / "plan.json").read_text())
        if spec.kind == "train_ebdm":
            write_checkpoint(bundle / "outputs" / "checkpoint", seed=plan["fossils"])
        else:
            self._measure(spec, bundle, plan)
        ended = JobExit(ExitReason.COMPLETED, returncode=0, outputs=tuple(list_outputs(bundle)))
        durable.write_json(bundle / "exit.json", ended.to_json())
        return ended

    def _measure(self, spec: JobSpec, bundle: Path, plan: dict[str, object]) -> None:
        checkpoint, champion = spec.input("checkpoint"), spec.input("champion")
        assert checkpoint is not None
        gain = 0.2 if self.is_kind or self._dice.random() < 0.8 else -0.2
        folder = bundle / "outputs" / "report"
        folder.mkdir(exist_ok=True)
        value = report_json(
            checkpoint_digest=verify_checkpoint(Path(checkpoint.path)).digest,
            plan_id=sha256_hex(canonical_json(plan)),
            gain=gain,
            champion_gain=0.4 if champion else None,
            seed=int(str(plan["fossils"])),
        )
        (folder / "report.json").write_text(json.dumps(value))
        for name in value["files"]:
            (folder / name).write_bytes(PNG)


@dataclasses.dataclass
class Outcome:
    """What a month came to."""

    seed: int
    ticks: int = 0
    crashes: int = 0
    faults: int = 0
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    releases: int = 0


class Month:
    """One seed's month."""

    def __init__(self, seed: int, base: Path) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock(START)
        self.works = Works(base, {"settle_s": 2.0, "min_fresh_fossils": FOSSILS_A_DROP})
        self.door = ScriptedDoor(self.clock, self.dice)
        self.lock = EmergencyLock(self.works.home)
        self.outcome = Outcome(seed)
        self.conductor: Conductor | None = None
        self.dropped = 0
        self.pulled = base / "pulled"
        self.begin = self.clock.monotonic()
        # Spans of monotonic time in which nothing may be started.
        self.barred: list[list[float]] = []
        self.events = sorted(self._script(), key=lambda event: event[0])

    # --- the script ---

    def _script(self) -> Iterator[tuple[float, Callable[[], None]]]:
        at = lambda end=MONTH_S: self.dice.uniform(0, end)  # noqa: E731
        for _ in range(self.dice.randint(6, 10)):
            yield at(), self.drop
        for _ in range(self.dice.randint(6, 14)):
            yield at(), self.arm
        for _ in range(2):
            yield from self._span(at(), self.pull, self.plug_in)
            yield from self._span(at(), self.set_lock, self.release_lock)
        for _ in range(3):
            yield at(), self.door_out
        yield at(), lambda: self.clock.jump(self.dice.uniform(-3, 3) * DAY_S)
        yield from self._span(at(), lambda: self.order("PAUSE"), lambda: self.order("RESUME"))
        for _ in range(4):
            yield at(), self.operate
        if self.dice.random() < 0.3:
            yield at(), self.lose_state

    def _span(
        self, start: float, begin: Callable[[], None], end: Callable[[], None]
    ) -> Iterator[tuple[float, Callable[[], None]]]:
        yield start, begin
        yield start + self.dice.uniform(60, DAY_S), end

    def drop(self) -> None:
        if self.works.root.exists():
            start = self.dropped * FOSSILS_A_DROP
            name = f"fossil_vault/drop/{self.dropped}.ndjson"
            path = write_fossils(self.works.root / name, range(start, start + FOSSILS_A_DROP))
            self.dropped += 1
            then = self.clock.now().timestamp() - 60
            os.utime(path, (then, then))

    def arm(self) -> None:
        point, how = self.dice.choice(CRASH_POINTS), self.dice.choice(["kill", "kill", "enospc"])
        # An error at a failpoint outside of a file's write is not one that a disk can make.
        how = how if point.startswith("durable.") else "kill"
        from scf.storage import failpoint

        failpoint._passages.clear()
        os.environ["SCF_FAIL"] = f"{point}:{how}:{self.dice.randint(1, 6)}"
        self.outcome.faults += 1

    def pull(self) -> None:
        if self.works.root.exists():
            self.works.root.rename(self.pulled)
            self.barred.append([self.clock.monotonic(), float("inf")])

    def plug_in(self) -> None:
        if self.pulled.exists() and not self.works.root.exists():
            self.pulled.rename(self.works.root)
            self.barred[-1][1] = self.clock.monotonic()

    def set_lock(self) -> None:
        self.lock.set("simulated", now=self.clock.now())

    def release_lock(self) -> None:
        with contextlib.suppress(ScfError):
            self.lock.release()

    def door_out(self) -> None:
        self.door.out_until = self.clock.monotonic() + self.dice.uniform(60, DAY_S / 2)

    def order(self, name: str, **arguments: str) -> None:
        command = {"id": f"{name}-{self.dice.random()}", "command": name, **arguments}
        (self.works.home / "control.json").write_text(json.dumps(command))

    def operate(self) -> None:
        runs = self.store_runs()
        choice = self.dice.randrange(5)
        if choice == 0 and runs:
            self.order("CANCEL", run=self.dice.choice(runs))
        elif choice == 1:
            self.order("RUN_NOW")
        elif choice == 2:
            self.order("SHIFT_GEAR", gear=self.dice.choice(["AUTO", "HYPER", "WARP"]))
        else:
            (self.works.home / "control.json").write_text('{"id": "x", "comm')

    def lose_state(self) -> None:
        """The state database is lost, and made again, as an operator would."""
        self.throw_away()
        if not self.works.root.exists() or self.lock.is_set:
            return
        os.environ.pop("SCF_FAIL", None)
        for path in self.works.home.glob("runs.db*"):
            path.unlink()
        rebuild_state(self.works.config, self.clock)

    # --- running it ---

    def run(self) -> Outcome:
        while self.events or self.now() < MONTH_S:
            due = self.events[0][0] if self.events else MONTH_S
            self.work_until(due)
            if self.events:
                self.events.pop(0)[1]()
        self.calm_down()
        tick = self.work_until(MONTH_S + AFTERWARDS_S, stops_when_idle=True)
        self.check(tick)
        return self.outcome

    def work_until(self, end: float, *, stops_when_idle: bool = False) -> Tick | None:
        tick = None
        while self.now() < end:
            tick = self.tick()
            if tick is None or tick.did:
                self.clock.advance(1.0)
                continue
            if stops_when_idle and tick.is_idle and tick.state is DaemonState.IDLE:
                return tick
            step_s = WORK_STEP_S if tick.state is DaemonState.WORKING else IDLE_STEP_S
            self.clock.advance(min(end - self.now() + 1e-3, step_s))
        return tick

    def tick(self) -> Tick | None:
        self.outcome.ticks += 1
        try:
            if self.conductor is None:
                self.conductor = Conductor(
                    self.works.config, clock=self.clock, open_door=self._open_door
                )
            tick = self.conductor.tick()
        except SimulatedCrash:
            os.environ.pop("SCF_FAIL", None)
            self.outcome.crashes += 1
            self.throw_away()
            return None
        if tick.state is DaemonState.DISK_FULL:
            os.environ.pop("SCF_FAIL", None)
        return tick

    def _open_door(self, jobs: Folder, home: Path) -> ScriptedDoor:
        self.door.jobs = jobs
        return self.door

    def throw_away(self) -> None:
        """What the kernel does when a process dies: locks and descriptors go, nothing is said."""
        if self.conductor is not None:
            self.conductor._holding.close()
            self.conductor.store.close()
            self.conductor.waker.close()
            self.conductor._logbook.close()
            self.conductor = None

    def calm_down(self) -> None:
        os.environ.pop("SCF_FAIL", None)
        self.plug_in()
        self.release_lock()
        self.door.out_until, self.door.is_kind = 0.0, True
        self.order("RESUME")

    def now(self) -> float:
        return self.clock.monotonic() - self.begin

    # --- what must hold ---

    def store_runs(self) -> list[str]:
        if not (self.works.home / "runs.db").exists():
            return []
        store = RunStore.open(self.works.home, self.clock)
        try:
            return [run.run_id for run in store.runs()]
        finally:
            store.close()

    def check(self, tick: Tick | None) -> None:
        works = self.works
        assert tick is not None, "the last tick crashed"
        assert tick.is_idle, f"not idle in the end: {tick}"
        assert self.conductor is not None
        signs = self.conductor._errands.pulse.look(is_hasty=True)
        assert signs.fresh_fossils < FOSSILS_A_DROP, "fresh fossils were left without a run"
        runs = self.conductor.store.runs()
        self.throw_away()
        self.outcome.runs = dict(Counter(str(run.state) for run in runs))
        assert all(run.state in RESTING for run in runs), self.outcome.runs
        assert set(self.door.starts.values()) <= {1}, "a job was started twice"
        for job_id, at in self.door.started_at:
            assert not any(a <= at < b for a, b in self.barred), f"{job_id} without the drive"
        self._check_evidence(runs)
        fossils = sum(e.count for e, _ in read_journal(works.root / "fossil_vault"))
        assert fossils == self.dropped * FOSSILS_A_DROP, (
            f"{fossils} fossils of {self.dropped} drops"
        )
        releases = list((works.root / "release_history").glob("week-*"))
        self.outcome.releases = len(releases)
        assert releases or not works.generations(), "a champion, and no release"

    def _check_evidence(self, runs: list) -> None:
        works = self.works
        promoted = [r for r in runs if r.state in {State.PROMOTED, State.RELEASED}]
        moves = works.history() if works.generations() else []
        assert Counter(m["run"] for m in moves) == Counter(r.run_id for r in promoted)
        generations = [str(run.facts["generation"]) for run in promoted]
        assert len(set(generations)) == len(generations), "two runs, one generation"
        assert set(works.generations()) <= set(generations)
        transitions = works.transitions()
        verified = {t.run_id for t in transitions if t.to_state is State.VERIFIED}
        for proof in (works.root / "zk_proofs").glob("proof-*.json"):
            assert proof.stem.removeprefix("proof-") in verified, f"{proof.name} is not verified"
        key = public_keys(works.home / "keys")["foundry"]
        assert check_log(works.root / "zk_proofs" / "audit", key).ok, "the audit log does not hold"
        log = AuditLog.open(Folder.at(works.root / "zk_proofs" / "audit"), works.home)
        keys = Counter(e.entry.key for e in log.entries() if e.entry.key is not None)
        assert max(keys.values(), default=1) == 1, "an event is in the log twice"
        assert None not in [t.audit_index for t in transitions], "a transition is not in the log"


def simulate(seed: int, base: Path) -> Outcome:
    """Run one seed in the empty folder `base`.

    Raises:
        AssertionError: Something that must hold does not; the message ends with how to see it.
    """
    real_kill = os.kill

    def kill(pid: int, number: int) -> None:
        if pid == os.getpid() and number == signal.SIGKILL:
            raise SimulatedCrash
        real_kill(pid, number)

    os.kill = kill
    month = Month(seed, base)
    try:
        with _once_a_day():
            return month.run()
    except Exception as error:
        line = f"PYTHONPATH=tests python -m support.simulation {seed}"
        at = utc_text(month.clock.now())
        raise AssertionError(f"{type(error).__name__}: {error} [{at}; {line}]") from error
    finally:
        os.kill = real_kill
        os.environ.pop("SCF_FAIL", None)
        month.throw_away()


@contextlib.contextmanager
def _once_a_day() -> Iterator[None]:
    """Surveys and cleaning come by the hour; by the day they leave time for more months."""
    hourly = survey.ROUND_EVERY_S, errands.CLEAN_EVERY_S
    survey.ROUND_EVERY_S = errands.CLEAN_EVERY_S = DAY_S
    try:
        yield
    finally:
        survey.ROUND_EVERY_S, errands.CLEAN_EVERY_S = hourly


def fast_folder() -> tempfile.TemporaryDirectory[str]:
    """A scratch folder in memory where there is one: flushing costs nothing there."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        with fast_folder() as scratch:
            os.environ["XDG_CONFIG_HOME"] = scratch
            print(simulate(int(given), Path(scratch) / "works"))
