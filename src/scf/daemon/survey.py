"""How much each partition holds, and when it will be full.

A survey walks the drive a few folders at a time, so that a tick stays short, and remembers folders
whose files never change by their modification time: a vault of a million shards costs a look at its
256 folders. What it found goes to `system_cache/usage.json`, where `Drive.admit` reads it, with a
history from which the day is forecast on which a partition meets its budget.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scf.core.clock import Clock, parse_utc, utc_text
from scf.core.errors import InputError
from scf.storage import durable
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES, USAGE_PATH, USAGE_SCHEMA, Drive

# A round begins so often; each look takes about so many names.
ROUND_EVERY_S = 3600.0
# Asked for or not, no oftener than this.
ROUND_PAUSE_S = 60.0
NAMES_PER_STEP = 1000
# Names in these trees are written once: the time of a folder says whether it changed.
_WRITE_ONCE = ("fossil_vault/shards", "release_history", "zk_proofs/audit/tile", "model_zoo")
# File systems keep times in steps of up to 2 s: a folder that changed just now may change unseen.
_TIME_STEP_S = 3.0

SAMPLE_EVERY_S = 6 * 3600.0
SAMPLES_KEPT = 240
# A forecast from less than a day of history is a guess.
HISTORY_MIN_S = 86_400.0
DAY_S = 86_400.0
FORECAST_POINTS = 40
# A partition that is fuller than this share of its budget is pressed.
PRESSED_FROM = 0.8


@dataclass(frozen=True)
class _Known:
    mtime_ns: int
    size_bytes: int
    folders: tuple[str, ...]


class Survey:
    """Sizes of one drive's partitions.

    Args:
        drive: The drive.
        clock: Time.
    """

    def __init__(self, drive: Drive, clock: Clock) -> None:
        self._drive = drive
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._left: list[Path] = []
        self._sums: dict[str, int] = {}
        self._next = self._soonest = 0.0

    @property
    def is_due(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._left) or self._clock.monotonic() >= self._next

    def ask(self) -> None:
        """Something changed a lot: begin a round soon."""
        self._next = min(self._next, self._soonest)

    def step(self) -> bool:
        """Look at a few folders, if a round is due; returns whether a round came to its end."""
        if not self._left:
            if self._clock.monotonic() < self._next:
                return False
            self._next = self._clock.monotonic() + ROUND_EVERY_S
            self._soonest = self._clock.monotonic() + ROUND_PAUSE_S
            self._drive.check()
            self._sums = dict.fromkeys(DEFAULT_BUDGETS_BYTES, 0)
            self._left = [self._drive.root / name for name in DEFAULT_BUDGETS_BYTES]
        names = 0
        while self._left and names < NAMES_PER_STEP:
            names += 1 + self._look(self._left.pop())
        if self._left:
            return False
        self._write()
        return True

    def _look(self, folder: Path) -> int:
        """Add up one folder; returns how many names that took."""
        relative = folder.relative_to(self._drive.root).as_posix()
        partition = relative.partition("/")[0]
        try:
            mtime_ns = folder.stat().st_mtime_ns
            known = self._known.get(relative)
            names = 0
            if known is None or known.mtime_ns != mtime_ns:
                known, names = _sum(folder, mtime_ns)
                age_s = self._clock.now().timestamp() - mtime_ns / 1e9
                if relative.startswith(_WRITE_ONCE) and age_s > _TIME_STEP_S:
                    self._known[relative] = known
        except OSError:  # it has gone since it was listed
            self._known.pop(relative, None)
            return 0
        self._sums[partition] += known.size_bytes
        self._left.extend(folder / name for name in known.folders)
        return names

    def _write(self) -> None:
        self._drive.check()
        path = self._drive.root.joinpath(*USAGE_PATH)
        now = self._clock.now()
        samples = read_usage(self._drive.root).samples
        if not samples or not 0 <= (now - samples[-1][0]).total_seconds() < SAMPLE_EVERY_S:
            samples = [*[s for s in samples if s[0] < now], (now, self._sums)][-SAMPLES_KEPT:]
        usage = {
            "schema": USAGE_SCHEMA,
            "at": utc_text(now),
            "used_bytes": self._sums,
            "samples": [{"at": utc_text(at), "used_bytes": used} for at, used in samples],
        }
        # Not through the partition's budget: this is what says that there is room again.
        durable.write_json(path, usage)


def _sum(folder: Path, mtime_ns: int) -> tuple[_Known, int]:
    size_bytes, names, folders = 0, 0, []
    with os.scandir(folder) as found:
        for entry in found:
            names += 1
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            try:
                size_bytes += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return _Known(mtime_ns, size_bytes, tuple(folders)), names


@dataclass(frozen=True)
class Usage:
    """What the last survey found.

    Attributes:
        at: When; None where there was none.
        used_bytes: A partition each; empty where there was none.
        samples: (when, bytes by partition), oldest first.
    """

    at: datetime | None
    used_bytes: Mapping[str, int]
    samples: list[tuple[datetime, Mapping[str, int]]]


def read_usage(root: Path) -> Usage:
    """The last survey of the drive at `root`; an empty one where it cannot be read."""
    try:
        value = durable.read_json(root.joinpath(*USAGE_PATH), size_max_bytes=2**20)
        return Usage(
            parse_utc(value["at"]),
            {name: int(value["used_bytes"][name]) for name in DEFAULT_BUDGETS_BYTES},
            [(parse_utc(row["at"]), row["used_bytes"]) for row in value["samples"]],
        )
    except (InputError, KeyError, TypeError, ValueError):
        return Usage(None, {}, [])


def days_until_full(samples: Sequence[tuple[datetime, float]], budget_bytes: float) -> float | None:
    """Days from the last sample on until a partition meets its budget, growing as it has grown.

    The slope is the median over all pairs of samples (Theil, 1950; Sen, 1968): one large ingest, or
    one clean-up, does not move it.

    Returns:
        None for a partition that does not grow, and where there is less than a day of history.
    """
    if not samples or (samples[-1][0] - samples[0][0]).total_seconds() < HISTORY_MIN_S:
        return None
    # The first, the last, and enough between them: the pairs are the square of their number.
    step = max(1, (len(samples) - 1) // (FORECAST_POINTS - 1))
    chosen = [*samples[:-1:step], samples[-1]]
    points = [((at - samples[0][0]).total_seconds() / DAY_S, size) for at, size in chosen]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
        if later[0] > earlier[0]
    ]
    slope = statistics.median(slopes)
    if slope <= 0:
        return None
    return max(0.0, (budget_bytes - points[-1][1]) / slope)


def storage_facts(drive: Drive) -> list[dict[str, Any]]:
    """For `scf status` and `scf budget`: what each partition holds, may hold, and until when."""
    usage = read_usage(drive.root)
    return [
        {
            "partition": name,
            "used_bytes": usage.used_bytes.get(name),
            "budget_bytes": budget,
            "full_in_days": days_until_full(
                [(at, float(used.get(name, 0))) for at, used in usage.samples], budget
            ),
        }
        for name, budget in drive.budgets_bytes.items()
    ]
