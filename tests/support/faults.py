"""The fault table: what is done to a foundry, and what must hold afterwards.

Each fault makes a small foundry take two drops of fossils to two released or promoted generations,
does its harm on the way, starts again without it, and asks `losses`: nothing lost, nothing twice,
nothing proven that was not verified. The harm is real where it can be: a forked process that kills
itself with SIGKILL, a file system that is full, read-only or gone. Tests run a few points of each,
`python -m benchmarks faults` all of them.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scf.audit.check import check_log
from scf.audit.log import AuditLog
from scf.core.errors import BudgetExceeded, DriveError, ScfError
from scf.daemon.conductor import Conductor
from scf.daemon.heartbeat import DaemonState
from scf.daemon.rebuild import rebuild_state
from scf.runs.state import State
from scf.runs.store import RunStore, StateDamaged
from scf.signing.keys import public_keys
from scf.storage import failpoint
from scf.storage.instance_lock import AlreadyRunning
from scf.storage.partitions import Folder
from scf.vault.journal_file import read_journal
from support.clocks import ManualClock
from support.conducting import Works
from support.file_door import FileDoor

FOSSILS = 72
DONE = {State.PROMOTED, State.RELEASED}
TICKS_MAX = 600
IS_ROOT = os.name == "posix" and os.geteuid() == 0


@dataclass
class Line:
    """One line of the table.

    Attributes:
        fault: What was done.
        points: How often.
        struck: How often the harm was really met.
        lost: What was wrong afterwards, with how to see it.
    """

    fault: str
    points: int = 0
    struck: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.fault:34} {self.points:6} {self.struck:6} {len(self.lost):6}"


# --- one foundry ---


def foundry(base: Path, *, num_drops: int = 2) -> Works:
    """An empty foundry with files of fossils dropped in."""
    works = Works(base, {"settle_s": 0.0, "min_fresh_fossils": FOSSILS, "job_deadline_s": 3600.0})
    for number in range(num_drops):
        works.drop(f"{number}.ndjson", range(number * FOSSILS, (number + 1) * FOSSILS))
    return works


def work(works: Works, clock: ManualClock, *, fault: str = "") -> DaemonState:
    """A conductor until nothing is left to do, or nothing can be done; returns its last state."""
    conductor = Conductor(
        works.config, clock=clock, open_door=lambda jobs, home: FileDoor(jobs, home, fault),
        is_hasty=True,
    )  # fmt: skip
    try:
        for _ in range(TICKS_MAX):
            tick = conductor.tick()
            if tick.is_idle or tick.trouble is not None:
                return tick.state
            if not tick.did:
                clock.advance(30.0)
        raise AssertionError(f"not idle after {TICKS_MAX} ticks")
    finally:
        conductor.close()


def losses(works: Works, *, num_drops: int = 2, wanted: set[State] = DONE) -> list[str]:
    """What does not hold; empty when all does."""
    found = []
    runs = works.runs()
    fossils = sum(entry.count for entry, _ in read_journal(works.root / "fossil_vault"))
    if fossils != num_drops * FOSSILS:
        found.append(f"{fossils} fossils of {num_drops * FOSSILS}")
    states = Counter(str(run.state) for run in runs)
    if not runs or any(run.state not in wanted for run in runs):
        found.append(f"runs ended as {dict(states)}")
    covered = max((run.facts.get("fossils", 0) for run in runs), default=0)
    if covered != num_drops * FOSSILS:
        found.append(f"an intent was lost: runs are about {covered} fossils")
    promoted = [run for run in runs if run.state in DONE]
    moves = Counter(move["run"] for move in works.history()) if works.generations() else Counter()
    if moves != Counter(run.run_id for run in promoted):
        found.append(f"promotions {dict(moves)} of {[run.run_id for run in promoted]}")
    if len(works.generations()) != len(promoted):
        found.append(f"generations {works.generations()}")
    verified = {t.run_id for t in works.transitions() if t.to_state is State.VERIFIED}
    for proof in (works.root / "zk_proofs").glob("proof-*.json"):
        if proof.stem.removeprefix("proof-") not in verified:
            found.append(f"{proof.name} for a run that was not verified")
    starts = FileDoor(Folder.at(works.root / "system_cache"), works.home).starts()
    found += [f"{job} was started {n} times" for job, n in starts.items() if n > 1]
    key = public_keys(works.home / "keys")["foundry"]
    if not check_log(works.root / "zk_proofs" / "audit", key).ok:
        found.append("the audit log does not hold")
    log = AuditLog.open(Folder.at(works.root / "zk_proofs" / "audit"), works.home)
    keys = Counter(e.entry.key for e in log.entries() if e.entry.key is not None)
    found += [f"{name} is in the log {n} times" for name, n in keys.items() if n > 1]
    if None in [t.audit_index for t in works.transitions()]:
        found.append("a transition is not in the log")
    return found


# --- faults at every boundary ---


def num_passages(pattern: str) -> int:
    """How many failpoints of `pattern` one whole foundry passes."""
    with scratch() as base:
        works = foundry(base)
        failpoint._passages.clear()
        with _failing(f"{pattern}:kill:{10**9}"):
            work(works, ManualClock(datetime.now(UTC)))
        return failpoint._passages.get(pattern, 0)


def kill_at(passage: int) -> tuple[bool, list[str]]:
    """SIGKILL at a passage of any failpoint, in a process of its own; then a whole second start."""
    with scratch() as base:
        works = foundry(base)
        code = _in_child(works, f"*:kill:{passage}")
        began = time.monotonic()
        work(works, ManualClock(datetime.now(UTC)))
        late = time.monotonic() - began > 60
        return code == -signal.SIGKILL, losses(works) + (["slow"] if late else [])


def fail_write_at(passage: int, how: str) -> tuple[bool, list[str]]:
    """A full disk (`enospc`) or a failing one (`error`: EIO) at a passage of a durable write."""
    with scratch() as base:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        failpoint._passages.clear()
        with _failing(f"durable.*:{how}:{passage}"), contextlib.suppress(ScfError, OSError):
            work(works, clock)
        struck = failpoint._passages.get("durable.*", 0) >= passage
        clock.advance(3600.0)
        work(works, clock)
        return struck, losses(works)


def _in_child(works: Works, plan: str) -> int:
    """A conductor in a forked process, under a failpoint; its exit code, minus the signal's."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        try:
            failpoint._passages.clear()
            os.environ["SCF_FAIL"] = plan
            work(works, ManualClock(datetime.now(UTC)))
        except BaseException:  # noqa: BLE001 - nothing may reach what the parent has open
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- doors, clocks, states ---


def bad_door(fault: str) -> tuple[bool, list[str]]:
    """A door with a fault; each run takes another try and comes through."""
    with scratch() as base:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        for _ in range(50):
            state = work(works, clock, fault=fault)
            if state is DaemonState.IDLE and works.runs() and not _active(works):
                break
            clock.advance(1000.0)
        tries = [a for run in works.runs() for a in _attempts(works, run.run_id)]
        struck = fault in {"answer", "flaps"} or len(tries) > 2 * len(works.runs())
        return struck, losses(works)


def clock_jump(seed: int) -> tuple[bool, list[str]]:
    """The wall clock jumps by up to ten days, there and back, between any two ticks."""
    dice = random.Random(seed)
    with scratch() as base:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        conductor = Conductor(works.config, clock=clock, open_door=FileDoor, is_hasty=True)
        idle = 0
        try:
            for _ in range(TICKS_MAX):
                tick = conductor.tick()
                idle = idle + 1 if tick.is_idle else 0
                if idle > 3:
                    break
                if dice.random() < 0.3:
                    clock.jump(dice.uniform(-10, 10) * 86_400)
                if not tick.did:
                    clock.advance(30.0)
        finally:
            conductor.close()
        return True, losses(works)


def damaged_state(seed: int) -> tuple[bool, list[str]]:
    """Garbage over the state database: refused with the way out, and made again from the log."""
    dice = random.Random(seed)
    with scratch() as base:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        work(works, clock)
        before = [(run.run_id, run.state) for run in works.runs()]
        path = works.home / "runs.db"
        data = bytearray(path.read_bytes())
        start = dice.choice([0, dice.randrange(len(data))])
        length = dice.choice([100, 5000, 50_000])
        garbage = dice.randbytes(len(data[start : start + length]))
        data[start : start + length] = garbage
        path.write_bytes(data if dice.random() < 0.7 else data[: max(100, start)])
        refused = False
        try:
            work(works, clock)
        except StateDamaged:
            refused = True
        except ScfError as error:
            refused = "rebuild-state" in str(error.remedy)
        if refused:
            rebuild_state(works.config, clock)
            work(works, clock)
        after = [(run.run_id, run.state) for run in works.runs()]
        wrong = [] if before == after else [f"{before} became {after}"]
        return refused, wrong + losses(works)


# --- drives (root only: file systems in memory) ---


def full_drive(room_kib: int) -> tuple[bool, list[str]]:
    """A drive with room for so much more than the dropped files; then room is made."""
    with scratch() as base, _mounted(base / "root") as root:
        works = foundry(base)
        used_kib = shutil.disk_usage(root).used // 1024
        _remount(root, f"size={used_kib + room_kib}k")
        clock = ManualClock(datetime.now(UTC))
        struck = False
        with contextlib.suppress(ScfError, OSError):
            struck = work(works, clock) is DaemonState.DISK_FULL
        _remount(root, "size=64m")
        clock.advance(3600.0)
        work(works, clock)
        return struck, losses(works)


def read_only_drive(ticks: int) -> tuple[bool, list[str]]:
    """The same drive is read-only after so many ticks, as after errors; then writable again."""

    def harm(root: Path) -> None:
        # A second view of it in its place: the kernel refuses to turn one that is being written to.
        subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
        _remount(root, "bind,ro")

    def mend(root: Path) -> None:
        subprocess.run(["umount", "-l", str(root)], check=True)

    return _harmed_drive(ticks, harm, mend)


def unplugged_drive(ticks: int) -> tuple[bool, list[str]]:
    """Lazily unmounted: what is open stays open, and the mount point is a folder of this disk."""
    kept: list[Path] = []

    def harm(root: Path) -> None:
        aside = root.with_name("kept")
        aside.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(root), str(aside)], check=True)
        subprocess.run(["umount", "-l", str(root)], check=True)
        kept.append(aside)

    def mend(root: Path) -> None:
        landed = [str(path) for path in root.rglob("*")]
        assert landed == [], f"landed on the root disk: {landed}"
        subprocess.run(["mount", "--bind", str(kept[0]), str(root)], check=True)

    try:
        return _harmed_drive(ticks, harm, mend)
    finally:
        for aside in kept:
            _umount(aside)


def _harmed_drive(
    ticks: int, harm: Callable[[Path], None], mend: Callable[[Path], None]
) -> tuple[bool, list[str]]:
    with scratch() as base, _mounted(base / "root") as root:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        conductor = Conductor(works.config, clock=clock, open_door=FileDoor, is_hasty=True)
        try:
            for _ in range(ticks):
                conductor.tick()
                clock.advance(1.0)
            harm(root)
            troubles = 0
            for _ in range(5):
                with contextlib.suppress(DriveError, BudgetExceeded):
                    tick = conductor.tick()
                    troubles += tick.trouble is not None or not tick.is_idle
                clock.advance(60.0)
            mend(root)
        finally:
            conductor.close()
        clock.advance(3600.0)
        work(works, clock)
        return troubles > 0, losses(works)


@contextlib.contextmanager
def _mounted(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(root)], check=True)
    try:
        yield root
    finally:
        while _umount(root):
            pass


def _umount(place: Path) -> bool:
    command = ["umount", "-l", str(place)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _remount(root: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(root)], check=True)


# --- processes ---


def two_daemons() -> tuple[bool, list[str]]:
    """The second one is refused, by home and by drive, and the first goes on."""
    with scratch() as base:
        works = foundry(base)
        clock = ManualClock(datetime.now(UTC))
        first = Conductor(works.config, clock=clock, open_door=FileDoor, is_hasty=True)
        first.open()
        refused = 0
        try:
            second = Conductor(works.config, clock=clock, open_door=FileDoor, is_hasty=True)
            with contextlib.suppress(AlreadyRunning):
                second.open()
                refused -= 1
            refused += 1
            second.close()
            for _ in range(TICKS_MAX):
                if first.tick().is_idle:
                    break
                clock.advance(1.0)
        finally:
            first.close()
        return refused == 1, losses(works)


def stopped(seconds: float) -> tuple[bool, list[str]]:
    """SIGSTOP in the middle for so long, as a machine that sleeps; then SIGCONT."""
    with scratch() as base:
        works = foundry(base)
        child = subprocess.Popen(
            [sys.executable, "-c", _WORK, str(base)], env={**os.environ, "PYTHONPATH": _paths()}
        )
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not _some_run(works):
                time.sleep(0.01)
            child.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            child.send_signal(signal.SIGCONT)
            code = child.wait(timeout=120)
        finally:
            child.kill()
            child.wait()
        return True, losses(works) + ([] if code == 0 else [f"exit code {code}"])


_WORK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from support.clocks import ManualClock
from support.conducting import Works
from support.faults import work

works = Works.__new__(Works)
works.base, works.settings = Path(sys.argv[1]), {}
work(works, ManualClock(datetime.now(UTC)))
"""


def _paths() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def _some_run(works: Works) -> bool:
    return (works.home / "runs.db").exists() and bool(works.runs())


def _active(works: Works) -> bool:
    from scf.runs.state import ACTIVE

    return any(run.state in ACTIVE for run in works.runs())


def _attempts(works: Works, run_id: str) -> list[object]:
    store = RunStore.open(works.home, ManualClock(datetime.now(UTC) + timedelta(0)))
    try:
        return list(store.attempts(run_id))
    finally:
        store.close()


@contextlib.contextmanager
def _failing(plan: str) -> Iterator[None]:
    os.environ["SCF_FAIL"] = plan
    try:
        yield
    finally:
        os.environ.pop("SCF_FAIL", None)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: flushing costs nothing there."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        yield base / "works"
    finally:
        shutil.rmtree(base, ignore_errors=True)


def line(fault: str, points: Iterator[Callable[[], tuple[bool, list[str]]]]) -> Line:
    """Run all points of a fault."""
    made = Line(fault)
    for point in points:
        made.points += 1
        try:
            struck, wrong = point()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
            struck, wrong = True, [f"{type(error).__name__}: {error}"]
        made.struck += struck
        if wrong:
            made.lost.append(f"{fault}, point {made.points}: {'; '.join(wrong)}")
    return made
