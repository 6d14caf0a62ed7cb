"""What the week's jobs took, from the receipts of attempts: time, CPU time, joules, dollars.

A figure that a machine did not measure is unknown, never zero: `metered` says how many of the jobs
it is the sum of. Electrical energy is what the worker's meters saw; negentropy credits are not
kept by this version (the release names the ledger as absent).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scf.core.clock import SystemClock, parse_utc
from scf.core.units import format_duration
from scf.runs.record import Attempt
from scf.runs.store import DATABASE_NAME, RunStore

_WORDS = {"train_ebdm": "training", "control": "training from nothing, to compare"}


@dataclass(frozen=True)
class Cost:
    """All jobs of one kind.

    Attributes:
        kind: `train_ebdm`, `measure`, ...
        jobs: How many ended.
        seconds: From start to end, together; of those that say both.
        cpu_s: CPU time; None where no worker measured it.
        energy_j: Electrical work; None where no meter was.
        metered: Jobs that `energy_j` is the sum of.
        usd: What was paid for rented machines.
    """

    kind: str
    jobs: int
    seconds: float
    cpu_s: float | None
    energy_j: float | None
    metered: int
    usd: float

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return dict(self.__dict__)


def closed_attempts(home: Path) -> list[Attempt]:
    """Every attempt that ended, from the home's database; none where there is no database."""
    if not (home / DATABASE_NAME).is_file():
        return []
    store = RunStore.open(home, SystemClock())
    try:
        runs = store.runs()
        return [a for run in runs for a in store.attempts(run.run_id) if not a.is_open]
    finally:
        store.close()


def costs_of(
    attempts: Iterable[Attempt], *, since: datetime | None, until: datetime
) -> tuple[Cost, ...]:
    """The costs of attempts that ended in this time, by kind."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for attempt in attempts:
        if attempt.closed_at is None or attempt.receipt is None:
            continue
        ended = parse_utc(attempt.closed_at)
        if (since is None or since < ended) and ended <= until:
            by_kind.setdefault(attempt.kind, []).append(attempt.receipt)
    return tuple(_cost(kind, receipts) for kind, receipts in sorted(by_kind.items()))


def _cost(kind: str, receipts: Sequence[Mapping[str, Any]]) -> Cost:
    seconds = [
        (parse_utc(r["ended_at"]) - parse_utc(r["started_at"])).total_seconds()
        for r in receipts
        if r.get("started_at") and r.get("ended_at")
    ]
    cpu_s = _known(r.get("usage", {}).get("cpu_s") for r in receipts)
    energy_j = _known(_energy_j(r) for r in receipts)
    return Cost(
        kind=kind,
        jobs=len(receipts),
        seconds=round(sum(seconds), 1),
        cpu_s=round(sum(cpu_s), 1) if cpu_s else None,
        energy_j=round(sum(energy_j), 1) if energy_j else None,
        metered=len(energy_j),
        usd=round(sum(_known(r.get("cost_usd") for r in receipts)), 4),
    )


def _energy_j(receipt: Mapping[str, Any]) -> Any:
    own = receipt.get("energy_j")
    return own if own is not None else receipt.get("usage", {}).get("energy_j")


def _known(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float)]


def costs_text(costs: Sequence[Cost]) -> str:
    """A section of the notes; "" where nothing ran."""
    if not costs:
        return ""
    rows = []
    for cost in costs:
        energy = "not metered"
        if cost.energy_j is not None:
            part = "" if cost.metered == cost.jobs else f" ({cost.metered} of {cost.jobs} metered)"
            energy = f"{cost.energy_j:,.0f} J{part}"
        cpu = "unknown" if cost.cpu_s is None else format_duration(cost.cpu_s)
        rows.append(
            f"| {_WORDS.get(cost.kind, cost.kind)} | {cost.jobs} | "
            f"{format_duration(cost.seconds)} | {cpu} | {energy} | {cost.usd:.2f} |"
        )
    return (
        "## What it took\n\n| jobs | how many | time | CPU time | electrical energy | USD |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )
