"""Is it time for a run? Each rule says yes with its reason, or what it still waits for. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from scf.config import StartSettings
from scf.config.schedule import Schedule
from scf.core.units import format_duration


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """What a job said about fresh fossils under the champion.

    Attributes:
        asked: Fossils that were scored.
        strange: Of these, stranger than 95 of 100 fossils that the champion was measured on.
        champion: Whose energies.
    """

    asked: int
    strange: int
    champion: str

    @property
    def share(self) -> float:
        return self.strange / self.asked if self.asked else 0.0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the rules look at.

    Attributes:
        now: The wall clock.
        fresh_fossils: In the vault, and in no run.
        fresh_since: When the oldest of them was committed.
        last_run_at: When the last run was noted; None before the first.
        novelty: Of the fresh fossils, where they were asked about.
        is_asked: The operator has asked for a run.
    """

    now: datetime
    fresh_fossils: int
    fresh_since: datetime | None
    last_run_at: datetime | None
    novelty: Novelty | None
    is_asked: bool


@dataclass(frozen=True)
class Because:
    """Whether a run is to be noted, and the reasons on either side."""

    is_time: bool
    reason: str


def is_it_time(moment: Moment, *, min_fresh: int, start: StartSettings) -> Because:
    """Ask every rule. The reason names all that say yes; else what each waits for."""
    if moment.is_asked:
        return Because(is_time=True, reason=f"the operator asked, {_fresh(moment)}")
    if not moment.fresh_fossils:
        return Because(is_time=False, reason="nothing is fresh")
    rules = [_enough(moment, min_fresh), _old(moment, start), _novel(moment, start),
             _scheduled(moment, start)]  # fmt: skip
    asked = [rule for rule in rules if rule is not None]
    yes = [reason for holds, reason in asked if holds]
    reasons = yes or [reason for _, reason in asked]
    return Because(is_time=bool(yes), reason="; ".join(reasons))


def _fresh(moment: Moment) -> str:
    return f"{moment.fresh_fossils} fresh fossils"


def _enough(moment: Moment, min_fresh: int) -> tuple[bool, str]:
    return moment.fresh_fossils >= min_fresh, f"{_fresh(moment)}, a run starts at {min_fresh}"


def _old(moment: Moment, start: StartSettings) -> tuple[bool, str] | None:
    if not start.fresh_age_h or moment.fresh_since is None:
        return None
    limit = timedelta(hours=start.fresh_age_h)
    age_s = max(0.0, (moment.now - moment.fresh_since).total_seconds())
    text = f"the oldest has waited {format_duration(age_s)} of {_hours(limit)}"
    return age_s >= limit.total_seconds(), text


def _novel(moment: Moment, start: StartSettings) -> tuple[bool, str] | None:
    if not start.novel_share:
        return None
    found = moment.novelty
    if found is None:
        return False, "their novelty is not known"
    text = (
        f"{found.strange} of {found.asked} are stranger to {found.champion} than 95 of 100 "
        f"fossils it was measured on, a run starts at {100 * start.novel_share:g} %"
    )
    return found.share >= start.novel_share, text


def _scheduled(moment: Moment, start: StartSettings) -> tuple[bool, str] | None:
    schedule = Schedule.parse(start.schedule)
    if schedule is None:
        return None
    last = moment.last_run_at
    since = f"the last run was noted {last:%Y-%m-%d %H:%M} UTC" if last else "no run was noted yet"
    return schedule.is_due(moment.now, last), f"schedule {start.schedule!r}, {since}"


def _hours(limit: timedelta) -> str:
    return format_duration(limit.total_seconds())
