"""Where does the foundry stand? Read from the files it keeps, without asking the daemon.

Works with the daemon stopped or hanging, and says so when the drive is not there.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scf.config import FoundryConfig
from scf.control.budget import LIMITS
from scf.control.control_file import AUTO_GEAR
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, SystemClock
from scf.core.errors import DriveError, InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.core.units import format_bytes
from scf.daemon.allowance import Allowance
from scf.daemon.commands import GEAR, IS_PAUSED, limit_of
from scf.daemon.gears import GEARS
from scf.daemon.heartbeat import DaemonState, read_state
from scf.daemon.survey import PRESSED_FROM, storage_facts
from scf.runs.store import DATABASE_NAME, RunStore
from scf.storage import durable
from scf.storage.partitions import Drive

# A partition that will be full later than this is not worth a line.
FORESEEN_DAYS = 120.0


@contextlib.contextmanager
def reading_store(home: Path) -> Iterator[RunStore | None]:
    """The run store for reading; None where there is none yet (and none is made)."""
    if not (home / DATABASE_NAME).is_file():
        yield None
        return
    store = RunStore.open(home, SystemClock())
    try:
        yield store
    finally:
        store.close()


def standing(config: FoundryConfig) -> dict[str, Any]:
    """What `scf status --json` prints."""
    shown = read_state(config.home)
    lock_fault = EmergencyLock(config.home, token=config.token).fault()
    is_locked = lock_fault is not None
    drive = _drive(config)
    state = DaemonState.EMERGENCY_LOCKED if is_locked else shown.get("state")
    if drive is None and not is_locked and config.root is not None:
        state = DaemonState.DRIVE_MISSING
    with reading_store(config.home) as store:
        counts = store.counts() if store is not None else {}
        gear = store.get(GEAR, config.daemon.gear) if store else config.daemon.gear
        is_auto = gear == AUTO_GEAR
        if is_auto:
            gear = shown.get("gear", GEARS[0])
        is_paused = bool(store.get(IS_PAUSED, default=False)) if store else False
        generation = _champion(drive)
        release = _newest_release(drive)
        return {
            "schema_version": 1,
            "state": str(state),
            "trouble": shown.get("trouble"),
            "gear": str(gear),
            "gear_is_auto": is_auto,
            "is_paused": is_paused,
            "emergency_lock": is_locked,
            "emergency_lock_fault": lock_fault,
            "home": str(config.home),
            "root": str(config.root) if config.root else None,
            "generation": generation["generation"] if generation else None,
            "proposal": _proposal(drive),
            "release": release["name"] if release else None,
            "plan": _plan_facts(generation),
            "chain": _chain(generation, release),
            "runs": counts,
            "held": shown.get("held"),
            "storage": storage_facts(drive) if drive is not None else [],
            "daemon": shown,
        }


def standing_text(found: dict[str, Any]) -> str:
    """The same for people."""
    if not Path(found["home"]).is_dir():
        return (
            f"There is no foundry at {found['home']}: nothing runs and nothing may start.\n"
            "`scf quickstart` or `scf init --root DRIVE` makes one; `--home DIR` shows another."
        )
    lines = [
        f"state       {found['state']}" + (f" ({found['trouble']})" if found["trouble"] else ""),
        f"gear        {found['gear']}"
        + (" (automatic)" if found["gear_is_auto"] else "")
        + (" (paused)" if found["is_paused"] else ""),
        f"lock        {found['emergency_lock_fault'] or 'clear'}",
        f"home        {found['home']}",
        f"root        {found['root'] or '-'}",
        f"generation  {found['generation'] or '-'}",
        f"release     {found['release'] or '-'}",
    ]
    if found["proposal"] is not None:
        lines.append(f"proposed    {found['proposal']['sentence']}")
    plan = found["plan"]
    if plan is not None:
        lines.append(f"plan        {plan['fossils']} fossils, root {plan['merkle_root'][:16]}")
    counts = ", ".join(f"{n} {state}" for state, n in sorted(found["runs"].items()))
    lines.append(f"runs        {counts or 'none'}")
    if found["held"] is not None:
        lines.append(f"held back   the next run: {found['held']['reason']}")
    lines += [
        f"room        {storage_text(fact)}" for fact in found["storage"] if worth_saying(fact)
    ]
    return "\n".join(lines)


def limits(config: FoundryConfig, clock: Clock) -> dict[str, Any]:
    """What `scf budget --json` prints."""
    drive = _drive(config)
    configured = {
        "generations_kept": float(config.keep.generations),
        "jobs_kept": float(config.keep.jobs),
    }
    with reading_store(config.home) as kept:
        store = kept or RunStore.in_memory(clock)
        others = {
            name: {"limit": limit_of(store, name, configured.get(name)), "what": limit.what}
            for name, limit in LIMITS.items()
            if not limit.is_partition
        }
        spent = Allowance(config.home, clock).spent_usd()
        if kept is None:
            store.close()
    return {
        "schema_version": 1,
        "storage": storage_facts(drive) if drive is not None else [],
        "free_bytes": shutil.disk_usage(drive.root).free if drive is not None else None,
        "limits": others,
        "spent_usd_month": spent,
    }


def limits_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [storage_text(fact) for fact in found["storage"]] or ["the drive is not there"]
    if found["free_bytes"] is not None:
        lines.append(f"free on the disk: {format_bytes(found['free_bytes'])}")
    for name, row in found["limits"].items():
        spent = f" ({found['spent_usd_month']:.2f} spent)" if name == "usd_month" else ""
        lines.append(f"{name}: {LIMITS[name].show(row['limit'])}{spent}: {row['what']}")
    return "\n".join(lines)


def worth_saying(fact: dict[str, Any]) -> bool:
    """A partition that is nearly full, or will be within the season."""
    if fact["used_bytes"] is None:
        return False
    is_pressed = fact["used_bytes"] > PRESSED_FROM * fact["budget_bytes"]
    return is_pressed or (fact["full_in_days"] is not None and fact["full_in_days"] < FORESEEN_DAYS)


def storage_text(fact: dict[str, Any]) -> str:
    """`fossil_vault: 1.2 TB of 1.5 TB, full in 41 days`."""
    used, days = fact["used_bytes"], fact["full_in_days"]
    held = "not measured yet" if used is None else format_bytes(used)
    text = f"{fact['partition']}: {held} of {format_bytes(fact['budget_bytes'])}"
    if used is not None and used >= fact["budget_bytes"]:
        return f"{text}, FULL"
    return text if days is None else f"{text}, full in {days:.0f} days"


def _drive(config: FoundryConfig) -> Drive | None:
    if config.root is None:
        return None
    try:
        return Drive.open(config.root)
    except DriveError:
        return None


def _champion(drive: Drive | None) -> dict[str, Any] | None:
    """The champion's entry, read without opening the zoo for writing."""
    if drive is None:
        return None
    zoo = drive.root / "model_zoo"
    try:
        name = durable.read_json(zoo / "champion.json")["generation"]
        entry = durable.read_json(zoo / name / "entry.json")
    except (InputError, KeyError, TypeError):
        return None
    return entry if isinstance(entry, dict) else None


def _proposal(drive: Drive | None) -> dict[str, Any] | None:
    """The rollback that is proposed, because fossils were taken back."""
    if drive is None or not (drive.root / "model_zoo" / "taints.log").exists():
        return None
    from scf.zoo.registry import Zoo
    from scf.zoo.taint import propose, read_taints

    zoo = Zoo(drive.folder("model_zoo"), SystemClock())
    try:
        proposal = propose(zoo, read_taints(zoo.folder))
    except (InputError, VerificationFailed, DriveError):
        return None  # a damaged zoo has other lines to be told by
    return None if proposal is None else proposal.to_json()


def _newest_release(drive: Drive | None) -> dict[str, Any] | None:
    """RELEASE.json of the newest week, with its own digest as `release_sha256`."""
    if drive is None:
        return None
    for folder in sorted((drive.root / "release_history").glob("week-*"), reverse=True):
        path = folder / "RELEASE.json"
        try:
            value = durable.read_json(path)
            return {**value, "release_sha256": sha256_hex(path.read_bytes())}
        except (InputError, OSError, TypeError):
            continue
    return None


def _plan_facts(generation: dict[str, Any] | None) -> dict[str, Any] | None:
    if generation is None:
        return None
    return {key: generation.get(key) for key in ("plan_id", "fossils", "merkle_root")}


def _chain(generation: dict[str, Any] | None, release: dict[str, Any] | None) -> dict[str, Any]:
    """From the newest release down to the root of its fossils.

    Before there is a release, from the champion down; null where there is no link yet. The release
    may hold an earlier generation than the champion: the chain is the release's own.
    """
    made, plan = generation or {}, generation or {}
    if release is not None:
        made = {**release["generation"], "generation": release["generation"]["name"]}
        plan = release["plan"]
    return {
        "release": release["name"] if release else None,
        "release_sha256": release["release_sha256"] if release else None,
        "generation": made.get("generation"),
        "checkpoint_digest": made.get("checkpoint_digest"),
        "run": made.get("run"),
        "plan_id": plan.get("plan_id"),
        "merkle_root": plan.get("merkle_root"),
    }
