"""What may go: bundles of runs that came to their end, and generations that nobody needs.

Never anything of a run that is under way, never a release, never a proof, never a fossil. A folder
is taken away by renaming it to a temporary name first, so that a crash leaves it whole or gone, and
`durable.sweep` removes what is left.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scf.core.errors import InputError, ScfError
from scf.daemon.commands import limit_of
from scf.daemon.rooms import Rooms
from scf.daemon.survey import PRESSED_FROM, read_usage
from scf.dispatch.process import HeldFile
from scf.runs.record import Run
from scf.runs.state import RESTING, State
from scf.runs.store import RunStore
from scf.storage import durable
from scf.storage.partitions import Folder

if TYPE_CHECKING:
    from scf.zoo.registry import Generation

CLEAN_EVERY_S = 3600.0
# A cache that is pressed is emptied, oldest first, down to this share of its budget.
PRESSED_TO = 0.6

_ATTEMPT = re.compile(r"(run-[0-9a-f]{12})-(train-ebdm|measure)-[0-9]+")


@dataclass(frozen=True)
class Removal:
    """Something that was taken away: what, and why it could go."""

    name: str
    reason: str


def clean(rooms: Rooms, store: RunStore) -> list[Removal]:
    """Take away what may go. Twice is once.

    Raises:
        DriveMissing: Nothing more was touched.
    """
    durable.sweep(rooms.jobs.path)
    return [
        *_clean_jobs(rooms, store),
        *_clean_local_jobs(rooms, store),
        *_clean_zoo(
            rooms, keep=int(limit_of(store, "generations_kept", rooms.config.keep.generations))
        ),
    ]


def _clean_jobs(rooms: Rooms, store: RunStore) -> list[Removal]:
    """Bundles of runs at rest, least recently used first, beyond `jobs_kept` or under pressure."""
    runs = {run.run_id: run for run in store.runs()}
    idle = [
        (runs[run_id].updated_at, path)
        for path, run_id, kind in _bundles(rooms.jobs.path)
        if _may_go(runs.get(run_id), kind, HeldFile(_lock_of(rooms, path.name)))
    ]
    idle.sort()
    extra = len(idle) - int(limit_of(store, "jobs_kept", rooms.config.keep.jobs))
    removed = []
    excess_bytes = _excess_bytes(rooms)
    for index, (_, path) in enumerate(idle):
        if index >= extra and excess_bytes <= 0:
            break
        reason = "newer ones are kept" if index < extra else "system_cache is nearly full"
        excess_bytes -= _tree_bytes(path)
        _take_away(rooms.jobs, path)
        removed.append(Removal(f"jobs/{path.name}", reason))
    return removed


def _may_go(run: Run | None, kind: str, held: HeldFile) -> bool:
    """A run that the database does not know may be one that it has lost: left alone."""
    if run is None or run.state not in RESTING or held.is_held:
        return False
    # A rejected checkpoint keeps its report.
    return not (run.state is State.REJECTED and kind == "measure")


def _clean_local_jobs(rooms: Rooms, store: RunStore) -> list[Removal]:
    """The small files of jobs whose bundles are gone and whose runs are at rest."""
    removed = []
    for path in sorted((rooms.config.home / "local_jobs").glob("run-*")):
        match = _ATTEMPT.fullmatch(path.stem)
        if match is None or (rooms.jobs.path / path.stem).exists():
            continue
        run = next(iter(r for r in store.runs() if r.run_id == match[1]), None)
        if run is None or run.state not in RESTING or HeldFile(path.with_suffix(".lock")).is_held:
            continue
        path.unlink(missing_ok=True)
        removed.append(Removal(f"local_jobs/{path.name}", "its bundle is gone"))
    return removed


def _clean_zoo(rooms: Rooms, *, keep: int) -> list[Removal]:
    """Generations beyond the last `keep`, but for released ones, the champion and the best."""
    folder = rooms.drive.folder("model_zoo")
    if len(list(folder.path.glob("ebdm_gen*"))) <= keep:
        return []  # most often so: the zoo's libraries are not even loaded
    generations = rooms.zoo().generations()
    try:
        kept = _released(rooms)
    except ScfError:
        return []  # a release that cannot be read may name any of them
    kept |= {generation.name for generation in generations[-keep:]}
    kept |= {move.generation for move in rooms.zoo().history()[-2:]}
    kept |= {best.name for best in [_best(generations)] if best is not None}
    removed = []
    for generation in generations:
        if generation.name not in kept:
            _log_before(rooms, generation)
            _take_away(folder, generation.path)
            removed.append(Removal(generation.name, "neither released, recent, best nor champion"))
    return removed


def _log_before(rooms: Rooms, generation: "Generation") -> None:
    """What goes is in the audit log first, with what it was."""
    details: Mapping[str, Any] = {
        "run": generation.run_id,
        "checkpoint_digest": generation.checkpoint_digest,
        "reason": "retention",
    }
    rooms.audit.append(
        "zoo.retired", generation.name, details, key=f"zoo.retired/{generation.name}"
    )


def _released(rooms: Rooms) -> set[str]:
    folders = (rooms.drive.root / "release_history").glob("week-*")
    return {rooms.generation_in(folder) for folder in folders}


def _best(generations: "list[Generation]") -> "Generation | None":
    """The one with the lowest held-out loss, among those whose report can be read."""
    from scf.verification.report import read_report

    losses: list[tuple[float, int]] = []
    for index, generation in enumerate(generations):
        with contextlib.suppress(InputError):
            loss = read_report(generation.path / "report.json").dsm_loss
            if loss is not None:
                losses.append((loss.mean, index))
    return generations[min(losses)[1]] if losses else None


def _excess_bytes(rooms: Rooms) -> float:
    """How much the cache must lose; nothing unless it is pressed."""
    used = read_usage(rooms.drive.root).used_bytes.get("system_cache", 0)
    budget = rooms.drive.budgets_bytes["system_cache"]
    return used - PRESSED_TO * budget if used > PRESSED_FROM * budget else 0.0


def _bundles(jobs: Path) -> list[tuple[Path, str, str]]:
    found = []
    for path in jobs.iterdir():
        match = _ATTEMPT.fullmatch(path.name)
        if match is not None and path.is_dir():
            found.append((path, match[1], match[2]))
    return found


def _lock_of(rooms: Rooms, job_id: str) -> Path:
    return rooms.config.home / "local_jobs" / f"{job_id}.lock"


def _take_away(folder: Folder, path: Path) -> None:
    folder.check()
    # The name that `durable.sweep` knows for what a crash left behind.
    doomed = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    with durable.os_errors(path):
        path.rename(doomed)
        durable.flush_folder(folder.path)
        shutil.rmtree(doomed)


def _tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
