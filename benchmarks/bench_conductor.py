"""How fast, how cheap and how robust is the conductor? (issue 5)

Latency from a fossil in the journal to a committed intent; idle CPU, memory and start with a
journal of a million shards; a soak; recovery; and months of operation with scripted faults.
`SCF_SIM_SEEDS=1000` runs so many months (default: as many as fit 30 s), `SCF_SOAK_PULSES=600000`
soaks for seven days' worth (default 60000).
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from scf.config import load_config
from scf.core.clock import SystemClock
from scf.core.merkle import TreeHasher
from scf.daemon import planning
from scf.daemon.conductor import Conductor
from scf.daemon.heartbeat import read_state
from scf.daemon.pulse import PLANNED
from scf.daemon.scf_daemon import run_daemon
from scf.runs.store import RunStore
from scf.storage.partitions import Drive
from scf.vault.watcher import JournalPrefix
from support.clocks import ManualClock
from support.conducting import Works
from support.simulation import fast_folder, simulate

SIM_BUDGET_S = 30.0
INTENTS = 100
SHARDS = 1_000_000
IDLE_S = 10.0


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CONFIG_HOME"] = scratch
        base = Path(scratch)
        figures: dict[str, Any] = {}
        for gear in ("HYPER", "SINGULARITY"):
            figures |= _latency(base / gear, gear)
        figures |= _idle(base / "idle")
        figures |= _soak(base / "soak")
        figures |= _recovery(base / "recovery")
    figures |= _months()
    return figures


def _fill(works: Works) -> None:
    """A journal of a million shards, all planned on; the shards themselves are not there."""
    journal = works.root / "fossil_vault" / "journal.log"
    tree = TreeHasher()
    with journal.open("w") as file:
        for start in range(0, SHARDS, 10_000):
            names = range(start, start + 10_000)
            file.writelines(_line(n) for n in names)
            for n in names:
                tree.add(b"%064x" % n)
    peaks = tuple(peak.hex() for peak in tree.peaks)
    prefix = JournalPrefix(journal.stat().st_size, SHARDS, 9000 * SHARDS, peaks)
    store = RunStore.open(works.home, SystemClock())
    store.set(PLANNED, prefix.to_json())
    store.close()


def _line(number: int) -> str:
    return (
        f'{{"path": "shards/{number % 256:02x}/{number:016x}.ndjson", "sha256": "{number:064x}", '
        f'"size_bytes": 256000000, "count": 9000, "merkle_root": "{number:064x}", '
        '"committed_at": "2026-11-23T06:00:00Z", "origin": "a"}\n'
    )


def _latency(base: Path, gear: str) -> dict[str, Any]:
    """From the return of a shard's commit to the journal to the moment the intent was noted.

    The shard is not there, so the run's first stage quarantines it, and the next can be noted.
    """
    works = Works(base, {"settle_s": 0.0, "min_fresh_fossils": 1, "auto_release": False})
    _fill(works)
    child = subprocess.Popen([sys.executable, __file__, str(works.home), gear])
    _wait(lambda: read_state(works.home).get("state") in {"IDLE", "WORKING"})
    time.sleep(2.0)
    folder = Drive.open(works.root).folder("fossil_vault")
    delays_ms, cpu = [], psutil.Process(child.pid).cpu_times()
    for n in range(INTENTS):
        _wait(lambda: read_state(works.home).get("state") == "IDLE")
        time.sleep(0.05 + 0.013 * (n % 8))
        folder.append_line("journal.log", _line(SHARDS + n).strip().encode())
        committed = datetime.now(UTC).timestamp()
        runs = _wait(lambda want=n + 1: _runs(works, want))
        delays_ms.append(1e3 * (datetime.fromisoformat(runs[-1]).timestamp() - committed))
    used = psutil.Process(child.pid).cpu_times()
    cpu_ms = 1e3 * (used.user + used.system - cpu.user - cpu.system) / INTENTS
    rss_mb = psutil.Process(child.pid).memory_info().rss / 1e6
    child.terminate()
    child.wait()
    delays_ms.sort()
    name = f"intent_{gear.lower()}"
    return {
        f"{name}_p50_ms (<= 15, vault of {SHARDS} shards)": round(statistics.median(delays_ms), 1),
        f"{name}_p99_ms (<= 60, of {INTENTS})": round(delays_ms[math.ceil(0.99 * INTENTS) - 1], 1),
        f"{name}_max_ms": round(delays_ms[-1], 1),
        f"{name}_and_its_quarantine_cpu_ms": round(cpu_ms, 1),
        f"{name}_rss_mb (<= 60)": round(rss_mb, 1),
    }


def _runs(works: Works, want: int) -> list[str] | None:
    store = RunStore.open(works.home, SystemClock())
    try:
        found = [run.created_at for run in store.runs()]
    finally:
        store.close()
    return found if len(found) >= want else None


def _wait(look: Any, limit_s: float = 30.0) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise TimeoutError


def _idle(base: Path) -> dict[str, Any]:
    """The real daemon beside a journal of a million shards that were planned on."""
    works = Works(base, {"auto_release": False})
    _fill(works)
    figures: dict[str, Any] = {}
    for gear, limit in (("STANDARD", 0.1), ("SINGULARITY", 0.8)):
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "scf.daemon.scf_daemon", "--home", str(works.home),
             "--gear", gear],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _wait(lambda: read_state(works.home).get("state") == "IDLE")
        ready_s = time.monotonic() - began
        process = psutil.Process(child.pid)
        time.sleep(2.0)
        before = process.cpu_times()
        time.sleep(IDLE_S)
        after = process.cpu_times()
        cpu = (after.user + after.system - before.user - before.system) / IDLE_S
        figures[f"idle_{gear.lower()}_cpu_percent (<= {limit})"] = round(100 * cpu, 2)
        figures["rss_mb (<= 60)"] = round(process.memory_info().rss / 1e6, 1)
        figures["ready_s (<= 1.0, wall)"] = round(ready_s, 2)
        child.terminate()
        child.wait()
        time.sleep(0.2)
    return figures


def _soak(base: Path) -> dict[str, Any]:
    """Idle pulses by a clock moved by hand: nothing may grow."""
    pulses = int(os.environ.get("SCF_SOAK_PULSES", "60000"))
    works = Works(base, {"auto_release": False})
    clock = ManualClock(datetime.now(UTC))
    conductor = Conductor(works.config, clock=clock)
    process = psutil.Process()

    def tick(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            clock.advance(1.0)
            conductor.tick()
        return (time.perf_counter() - began) / number

    tick(2000)
    rss, descriptors = process.memory_info().rss, process.num_fds()
    each_s = tick(pulses)
    figures = {
        f"soak_{pulses}_pulses_rss_growth_mb (<= 2)": round(
            (process.memory_info().rss - rss) / 1e6, 2
        ),
        "soak_descriptor_growth (0)": process.num_fds() - descriptors,
        "idle_tick_us": round(1e6 * each_s, 1),
    }
    conductor.close()
    return figures


def _recovery(base: Path) -> dict[str, Any]:
    """Killed while a job runs: from the start of a new conductor to the end of its first tick."""
    works = Works(base, {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    child = works.start(SCF_TINY=json.dumps({"train_sleep_s": 5}))
    _wait(lambda: any(run.state == "SUBMITTED" for run in _all_runs(works)))
    child.kill()
    child.wait()
    began = time.perf_counter()
    with works.conductor() as (conductor, _):
        conductor.tick()
        took_s = time.perf_counter() - began
        conductor.lock.set("the benchmark is over", now=datetime.now(UTC))
        conductor.tick()
    return {"recovery_s (<= 2)": round(took_s, 3)}


def _all_runs(works: Works) -> list[Any]:
    return works.runs() if (works.home / "runs.db").exists() else []


def _months() -> dict[str, Any]:
    wanted = int(os.environ.get("SCF_SIM_SEEDS", "0"))
    began = time.monotonic()
    months = crashes = faults = ticks = 0
    failed: list[str] = []
    runs: dict[str, int] = {}
    while months < wanted or (not wanted and time.monotonic() - began < SIM_BUDGET_S):
        with fast_folder() as scratch:
            try:
                outcome = simulate(months, Path(scratch) / "works")
            except AssertionError as error:
                failed.append(str(error))
                print(f"  FAILED {error}", flush=True)
            else:
                crashes += outcome.crashes
                faults += outcome.faults
                ticks += outcome.ticks
                for state, count in outcome.runs.items():
                    runs[state] = runs.get(state, 0) + count
        months += 1
    return {
        "simulated_months": months,
        "simulated_crashes": crashes,
        "simulated_faults_armed": faults,
        "simulated_ticks": ticks,
        "simulated_runs": runs,
        "months_with_a_loss_or_a_repetition (0)": len(failed),
        "failing_seeds": failed,
    }


if __name__ == "__main__":
    # No process of its own for a plan that cannot be made: the intents are what is timed.
    planning.FOSSILS_HERE_MAX = planning.SHARDS_HERE_MAX = 10**15
    run_daemon(load_config(Path(sys.argv[1]), environment={}), gear=sys.argv[2])
