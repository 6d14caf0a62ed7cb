"""What the doors of a home offer for a job now, for `decide`: gathered, not judged.

Prices are those that the operator allows at most, data is what would be sent if none of it were
there, and the time is the job's own limit: so a door that is taken keeps within the budget.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from scf.config import FoundryConfig
from scf.core.clock import Clock
from scf.core.errors import DoorUnavailable
from scf.daemon.allowance import CAPS, Allowance
from scf.daemon.decide import Decision, Need, Offer, decide
from scf.dispatch.registry import LOCAL, RUNPOD
from scf.runs.record import Attempt, Run

# A door works on so many jobs at a time: training takes all of a machine.
JOBS_PER_DOOR = 1
# Beside training itself: starting, loading, the last checkpoint.
OVERHEAD_S = 120.0
# What the receipt of an attempt begins with whose door would not take it.
NOT_TAKEN = "the door did not take it"


class KnownDoors(Protocol):
    """Doors, as far as they are weighed. `doors.Doors` opens them; `foresight` only looks."""

    @property
    def order(self) -> tuple[str, ...]:
        """Names in order of preference."""

    def get(self, name: str) -> object:
        """Raises DoorUnavailable when the door cannot be used, with the reason."""


def choose_door(
    run: Run,
    plan: Mapping[str, Any],
    *,
    config: FoundryConfig,
    doors: KnownDoors,
    clock: Clock,
    attempts: Iterable[Attempt],
    open_attempts: Iterable[Attempt],
) -> Decision:
    """The door for a run's next training job, with the reasons for and against each.

    A door that would not take an earlier attempt of this run comes into question again only where
    no other is left.
    """
    attempts = list(attempts)
    allowance = Allowance(config.home, clock)
    need = need_of(
        run,
        plan,
        config,
        money_left_usd=_money_left(allowance, run.run_id),
        spent_usd=allowance.spent_usd("usd_run", run_id=run.run_id),
        used_j=joules_used(attempts),
    )
    busy: dict[str, str] = {}
    for attempt in open_attempts:
        if attempt.run_id != run.run_id:
            busy.setdefault(attempt.door, attempt.attempt_id)
    offers = {name: _offer(name, config, doors, busy.get(name)) for name in _names(doors)}
    refused = {
        attempt.door: f"{attempt.attempt_id}: {attempt.receipt['detail']}"
        for attempt in attempts
        if attempt.receipt is not None and was_refused(attempt)
    }
    passing = {
        name: Offer(door=name, fault=refused[name]) if name in refused else offer
        for name, offer in offers.items()
    }
    first = decide(doors.order, passing, need)
    return first if first.door is not None else decide(doors.order, offers, need)


def was_refused(attempt: Attempt) -> bool:
    """Whether the attempt ended because its door would not take it."""
    detail = str((attempt.receipt or {}).get("detail", ""))
    return not attempt.is_open and detail.startswith(NOT_TAKEN)


def joules_used(attempts: Iterable[Attempt]) -> float:
    """What the meters counted in these attempts; what had no meter is not in it."""
    return sum(float((attempt.receipt or {}).get("energy_j") or 0.0) for attempt in attempts)


def nodes_of(config: FoundryConfig, door: str) -> int:
    """Machines that a training job through this door asks for."""
    return config.runpod.nodes if door == RUNPOD else 1


def need_of(
    run: Run,
    plan: Mapping[str, Any],
    config: FoundryConfig,
    *,
    money_left_usd: float,
    spent_usd: float,
    used_j: float,
) -> Need:
    """What the run's next training job needs, and what it may take.

    Args:
        run: With its budget, of which its earlier attempts have had their part.
        plan: What it trains on.
        config: All settings.
        money_left_usd: What the caps on money leave.
        spent_usd: What its earlier attempts cost.
        used_j: What the meters counted in them.
    """
    budget = run.intent.get("budget", {})
    limit_s = float(budget.get("seconds") or config.daemon.job_deadline_s)
    training_s = float(run.intent.get("config", {}).get("max_seconds", limit_s)) + OVERHEAD_S
    usd = float(budget.get("usd") or 0.0)
    joules = float(budget.get("joules") or 0.0)
    within_s = 3600.0 * config.run.within_h
    return Need(
        seconds=min(limit_s, training_s),
        data_bytes=sum(int(shard["size_bytes"]) for shard in plan.get("shards", ())),
        usd_max=min(max(0.0, usd - spent_usd), money_left_usd) if usd else money_left_usd,
        joules_max=max(0.0, joules - used_j) if joules else None,
        within_s=within_s or None,
    )


def _names(doors: KnownDoors) -> list[str]:
    return list(dict.fromkeys([*doors.order, LOCAL]))


def _offer(name: str, config: FoundryConfig, doors: KnownDoors, busy_with: str | None) -> Offer:
    try:
        doors.get(name)
        fault = None
    except DoorUnavailable as error:
        fault = str(error)
    power_w = getattr(config.run, f"{name}_power_w", 0.0)
    return Offer(
        door=name,
        fault=fault,
        busy_with=busy_with,
        usd_per_h=config.runpod.max_usd_per_h if name == RUNPOD else 0.0,
        nodes=nodes_of(config, name),
        power_w=power_w or None,
        bytes_per_s=None if name == LOCAL else config.run.upload_bytes_per_s,
    )


def _money_left(allowance: Allowance, run_id: str) -> float:
    """What the caps on money leave for one more job of this run; below 0 is nothing."""
    limits = allowance.limits()
    caps = [cap for cap in CAPS if cap != "usd_hour"]
    return max(0.0, min(limits[cap] - allowance.spent_usd(cap, run_id=run_id) for cap in caps))
