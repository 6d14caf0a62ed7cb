"""What a retracted fossil has touched: plans, and what was made from them.

Retracting removes nothing that was made: it says which runs, generations and releases learned from
the fossil or were measured on it, so that people can decide.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from scf.fertilization.batch_plan import BatchPlan
from scf.vault.index import Location

RUN, GENERATION, RELEASE = "run", "generation", "release"


@dataclass(frozen=True, slots=True)
class Use:
    """Something made from a plan that holds the fossil.

    Attributes:
        kind: `run`, `generation` or `release`.
        name: Its name.
        plan_id: The plan.
        split: `train` or `held_out`.
    """

    kind: str
    name: str
    plan_id: str
    split: str

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def uses_of(location: Location, plans: Iterable[tuple[str, str, BatchPlan]]) -> Iterator[Use]:
    """Which of these (kind, name, plan) hold the fossil at `location`."""
    for kind, name, plan in plans:
        if location.cid in plan.excluded:
            continue
        if any(shard.path == location.shard for shard in plan.shards):
            split = plan.split_of(location.family, location.line)
            yield Use(kind, name, plan.plan_id, split)
