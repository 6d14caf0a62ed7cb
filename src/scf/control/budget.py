"""Limits that the operator sets: room per partition, money per month, what is kept.

A limit is a name and a text that a person can write: `fossil_vault` `1.2 TB`, `usd_month` `40`.
Limits on partitions are written to the drive's marker, since they belong to the drive; the others
are remembered in `runs.db`. Pure: no file is touched here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scf.core.errors import UsageError
from scf.core.units import format_bytes, parse_size_bytes
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES


@dataclass(frozen=True)
class Limit:
    """One thing that can be limited.

    Attributes:
        name: What the operator calls it.
        what: What moves when it moves, for people.
        parse: From the operator's text. Raises UsageError.
        show: Back to a text for people.
        default: In force until one is set; None for partitions, whose limits the drive keeps.
    """

    name: str
    what: str
    parse: Callable[[str], float]
    show: Callable[[float], str]
    default: float | None = None

    @property
    def is_partition(self) -> bool:
        return self.name in DEFAULT_BUDGETS_BYTES


def _room(text: str) -> float:
    size_bytes = parse_size_bytes(text)
    if size_bytes <= 0:
        raise UsageError(f"room {text!r} must be more than nothing")
    return size_bytes


def _count(text: str) -> float:
    if not text.strip().isdecimal() or not 0 < int(text) <= 1_000_000:
        raise UsageError(f"{text!r} must be a whole number from 1 to 1000000")
    return int(text)


def _dollars(text: str) -> float:
    try:
        value = float(text.strip().removeprefix("$"))
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise UsageError(f"{text!r} must be an amount of US dollars, 0 or more")
    return value


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        **{
            name: Limit(name, f"room for {name} on the drive", _room, format_bytes)
            for name in DEFAULT_BUDGETS_BYTES
        },
        **{
            name: Limit(name, what, _dollars, lambda value: f"{value:.2f} USD", default)
            for name, what, default in (
                ("usd_hour", "what all rented machines together may cost by the hour", 8.0),
                ("usd_run", "what all attempts of one run may cost together", 25.0),
                ("usd_day", "nothing more is rented once this is spent in a day (UTC)", 25.0),
                ("usd_month", "nothing more is rented once this is spent in a month (UTC)", 50.0),
            )
        },
        "generations_kept": Limit(
            "generations_kept",
            "newest generations that stay in the zoo, beside released ones, champion and best",
            _count,
            lambda value: f"{value:.0f}",
            5,
        ),
        "jobs_kept": Limit(
            "jobs_kept",
            "bundles of ended runs that stay in system_cache/jobs",
            _count,
            lambda value: f"{value:.0f}",
            40,
        ),
    }
)


def check_limit(name: object, text: object) -> tuple[Limit, float]:
    """The limit called `name`, and the value that `text` means.

    Raises:
        UsageError: No such limit, or a text that is no value of it.
    """
    if not isinstance(name, str) or name not in LIMITS:
        raise UsageError(f"no budget {name!r}", remedy=f"Known: {', '.join(LIMITS)}.")
    if not isinstance(text, str):
        raise UsageError(f"budget {name}: {text!r} is not a text such as '40' or '1.5 TB'")
    return LIMITS[name], LIMITS[name].parse(text)
