"""What a stage says, and what it works with.

A stage looks at a run and answers with a step: the run moves, waits, or is tried again later. It
records nothing itself; the conductor does, in one transaction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scf.core.errors import BudgetExceeded
from scf.daemon.planning import Planner
from scf.daemon.rooms import Rooms
from scf.runs.record import AttemptEnd, Run
from scf.runs.state import State
from scf.runs.store import RunStore

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan


@dataclass(frozen=True)
class Move:
    """The run goes to another state."""

    to: State
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    ends: AttemptEnd | None = None
    counts: bool = False
    waits: bool = False
    pause_s: float | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to record: a job runs, or the door is taken.

    `goes_on`: a part of the work is done, and the next part can be done at once.
    """

    reason: str
    attempt_id: str | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Retry:
    """The stage did not get through; it is tried again after a pause."""

    reason: str
    counts: bool = True
    waits: bool = True
    ends: AttemptEnd | None = None
    full: BudgetExceeded | None = None


Step = Move | Wait | Retry


@dataclass
class Bench:
    """What stages work with.

    Attributes:
        rooms: The drive's rooms.
        store: States and attempts.
        max_attempts: Tries before a run is parked.
        seen_running: When each open attempt was first seen running by this daemon (monotonic).
        told_to_end: When each attempt of a cancelled run was told to end, likewise.
        unanswered: How often in a row a door did not say whether it started a job, by run.
        planner: Makes plans.
        checking: The plan whose shards are being checked, and how many were.
    """

    rooms: Rooms
    store: RunStore
    max_attempts: int
    seen_running: dict[str, float] = field(default_factory=dict)
    told_to_end: dict[str, float] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)
    planner: Planner = field(init=False)
    checking: "tuple[str, BatchPlan, int] | None" = None

    def __post_init__(self) -> None:
        self.planner = Planner(self.rooms, self.rooms.clock)


Stage = Callable[[Run, Bench], Step]
