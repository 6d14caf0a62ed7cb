"""Decide: which door? The operator's order, minus what a door or a budget rules out. Pure.

Doors are weighed in the operator's order and the first that fits is taken, so that nobody needs to
guess what the conductor prefers; every door is given its reason, taken or not. A door fits when it
can be opened, when the job at its price, power and speed stays within the run's budget, and when
the job would be done in time, the sending of its data included. A door that fits and is busy is
waited for only where no other fits. Where none fits, the fallback (this machine) is taken if time
alone speaks against it: a slow run is better than none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scf.core.units import format_bytes, format_duration

FALLBACK = "local"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a door says of itself now.

    Attributes:
        door: Its name.
        fault: Why it cannot be used now; None when it can.
        busy_with: The attempt that it works on, where it takes no other beside it.
        usd_per_h: Its price, all its machines together; 0 for one's own.
        power_w: What it draws under load; None where nobody knows.
        speed: How much faster than this machine it works.
        bytes_per_s: How fast data gets there; None where the data is there already.
        nodes: Machines that work together; each is sent all the data.
    """

    door: str
    fault: str | None = None
    busy_with: str | None = None
    usd_per_h: float = 0.0
    power_w: float | None = None
    speed: float = 1.0
    bytes_per_s: float | None = None
    nodes: int = 1


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a job needs, and what it may take; None is no limit.

    Attributes:
        seconds: How long it takes on this machine, at most.
        data_bytes: What must be where it runs.
        usd_max: Money.
        joules_max: Electrical work.
        within_s: From now until it should be done.
    """

    seconds: float
    data_bytes: int = 0
    usd_max: float | None = None
    joules_max: float | None = None
    within_s: float | None = None


@dataclass(frozen=True)
class Weighed:
    """One door, weighed for one job.

    Attributes:
        door: Its name.
        fits: Whether nothing speaks against it.
        is_free: Whether it could begin now.
        is_only_late: Whether time alone speaks against it.
        why: The reason, for people.
        seconds: Until it would be done: sending and working.
        usd: What that would cost at most.
        joules: Electrical work; None where the door's power is unknown.
    """

    door: str
    fits: bool
    is_free: bool
    is_only_late: bool
    why: str
    seconds: float
    usd: float
    joules: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "door": self.door,
            "fits": self.fits,
            "is_free": self.is_free,
            "why": self.why,
            "seconds": round(self.seconds, 3),
            "usd": round(self.usd, 4),
            "joules": None if self.joules is None else round(self.joules, 1),
        }


@dataclass(frozen=True)
class Decision:
    """Where a job goes.

    Attributes:
        door: The door; None where none can be used now.
        reason: Why this one, in one line.
        weighed: Every door in the order of preference, each with its own reason.
    """

    door: str | None
    reason: str
    weighed: tuple[Weighed, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "door": self.door,
            "reason": self.reason,
            "weighed": [one.to_json() for one in self.weighed],
        }


def decide(order: Sequence[str], offers: Mapping[str, Offer], need: Need) -> Decision:
    """The door for a job.

    Args:
        order: Names of doors, the preferred one first.
        offers: By name; a door of `order` without an offer is not configured.
        need: The job.
    """
    names = [*order, *([FALLBACK] if FALLBACK in offers and FALLBACK not in order else [])]
    weighed = tuple(
        _weigh(offers.get(name) or Offer(door=name, fault="not configured"), need) for name in names
    )
    fitting = [one for one in weighed if one.fits]
    chosen = next((one for one in fitting if one.is_free), fitting[0] if fitting else None)
    if chosen is not None:
        passed = [f"{one.door} not: {one.why}" for one in weighed[: weighed.index(chosen)]]
        return Decision(chosen.door, "; ".join([f"{chosen.door}: {chosen.why}", *passed]), weighed)
    against = "; ".join(f"{one.door} not: {one.why}" for one in weighed)
    late = next((one for one in weighed if one.door == FALLBACK and one.is_only_late), None)
    if late is not None:
        return Decision(FALLBACK, f"{FALLBACK}: nothing else is left; {against}", weighed)
    return Decision(None, f"no door can take it; {against or 'none is configured'}", weighed)


def _weigh(offer: Offer, need: Need) -> Weighed:
    data_bytes = offer.nodes * need.data_bytes
    sending_s = data_bytes / offer.bytes_per_s if offer.bytes_per_s else 0.0
    seconds = sending_s + need.seconds / offer.speed
    usd = offer.usd_per_h * seconds / 3600.0
    joules = None if offer.power_w is None else offer.power_w * seconds
    against = offer.fault or _over_budget(usd, joules, need)
    is_late = need.within_s is not None and seconds > need.within_s
    is_only_late = is_late and against is None
    if is_only_late:
        wanted = format_duration(need.within_s or 0.0)
        against = f"done in {format_duration(seconds)}, wanted in {wanted}"
    why = against or _praise(offer, need, seconds, usd)
    is_free = offer.busy_with is None
    return Weighed(offer.door, against is None, is_free, is_only_late, why, seconds, usd, joules)


def _over_budget(usd: float, joules: float | None, need: Need) -> str | None:
    if need.usd_max is not None and usd > need.usd_max:
        return f"{usd:.2f} USD, the run has {need.usd_max:.2f}"
    if need.joules_max is not None and joules is None:
        return "its power is unknown, and the work of a run is limited"
    if need.joules_max is not None and joules is not None and joules > need.joules_max:
        return f"{joules:.3g} J, the run has {need.joules_max:.3g}"
    return None


def _praise(offer: Offer, need: Need, seconds: float, usd: float) -> str:
    why = f"{f'{usd:.2f} USD' if usd else 'free of charge'}, done within {format_duration(seconds)}"
    if offer.nodes > 1:
        why += f" on {offer.nodes} machines together"
    if offer.bytes_per_s and need.data_bytes:
        why += f" with {format_bytes(offer.nodes * need.data_bytes)} to send"
    return f"{why}, busy with {offer.busy_with}" if offer.busy_with else why
