"""What becomes of a foundry to which bad things happen? The fault table (issue 5), zero losses.

Every failpoint and every rename and flush of a foundry that makes two generations is a point for
SIGKILL; every durable write is one for a full and for a failing disk. `SCF_FAULT_REPEATS=3` runs
each kill three times, `SCF_FAULT_STOP_S=60` stops a daemon for a minute (default 3 s).
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import faults

STATES = 30
CLOCKS = 20
DRIVE_TICKS = range(1, 25, 2)


def run() -> dict[str, Any]:
    repeats = int(os.environ.get("SCF_FAULT_REPEATS", "1"))
    stop_s = float(os.environ.get("SCF_FAULT_STOP_S", "3"))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CONFIG_HOME"] = scratch
        anywhere, writes = faults.num_passages("*"), faults.num_passages("durable.*")
        plan = {
            f"SIGKILL at every boundary x {repeats}": [
                partial(faults.kill_at, n) for _ in range(repeats) for n in range(1, anywhere + 1)
            ],
            "disk full at every write": _writes(writes, "enospc"),
            "EIO at every write": _writes(writes, "error"),
            "a door that lies": [partial(faults.bad_door, "lies")],
            "a door that stalls": [partial(faults.bad_door, "stalls")],
            "a door that answers twice": [partial(faults.bad_door, "flaps")],
            "a door that loses files": [partial(faults.bad_door, "loses")],
            "a door whose answer is lost": [partial(faults.bad_door, "answer")],
            "clock jumps of days": [partial(faults.clock_jump, n) for n in range(CLOCKS)],
            "damaged state database": [partial(faults.damaged_state, n) for n in range(STATES)],
            "two daemons": [faults.two_daemons],
            f"SIGSTOP for {stop_s:g} s": [partial(faults.stopped, stop_s)],
        }
        if faults.IS_ROOT:
            plan |= {
                "a full drive": [partial(faults.full_drive, n) for n in range(5, 300, 20)],
                "read-only remount": [partial(faults.read_only_drive, n) for n in DRIVE_TICKS],
                "lazy unmount": [partial(faults.unplugged_drive, n) for n in DRIVE_TICKS],
            }
        print(f"  {'fault':34} {'points':>6} {'struck':>6} {'losses':>6}")
        table = []
        for name, points in plan.items():
            table.append(faults.line(name, iter(points)))
            print(f"  {table[-1]}", flush=True)
    return {
        "table": {
            row.fault: {"points": row.points, "struck": row.struck, "losses": len(row.lost)}
            for row in table
        },
        "points": sum(row.points for row in table),
        "losses (0)": sum(len(row.lost) for row in table),
        "what was lost": [what for row in table for what in row.lost],
    }


def _writes(number: int, how: str) -> "list[partial[tuple[bool, list[str]]]]":
    return [partial(faults.fail_write_at, n, how) for n in range(1, number + 1)]
