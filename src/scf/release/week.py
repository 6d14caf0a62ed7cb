"""What happened in a week, from the audit log and the zoo: who was promoted, who came to nothing.

Runs are read from the conductor's entries (`run.REJECTED` and so on), whose details hold what the
gate decided in words and numbers. What an entry does not hold is None, never a guess.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scf.audit.entry import Entry
from scf.proofs.verify_proof import VerifiedStatement
from scf.release.costs import Cost
from scf.zoo.registry import PROMOTED, Generation, Move

# Last states of runs that made no generation, as the conductor logs them (`run.REJECTED`).
CAME_TO_NOTHING = frozenset({"REJECTED", "FAILED", "QUARANTINED"})

PROMOTION, NO_PROMOTION, ROLLBACK = "promotion", "no_promotion", "rollback"

RULE = (
    "the champion is released: every generation had to beat, at the gate, the one that stood "
    "before it, so the last one standing is the best of the week"
)


@dataclass(frozen=True)
class Outcome:
    """A run that made no generation.

    Attributes:
        at: When that was logged.
        run_id: The run.
        state: `rejected`, `failed` or `quarantined`.
        reason: Why, in words.
        measured_against: The champion it was held against; None for none, or where unknown.
        dsm_loss: Its mean held-out loss, where it was measured.
        gate: The gate's decision as JSON, where it came that far.
    """

    at: str
    run_id: str
    state: str
    reason: str
    measured_against: str | None
    dsm_loss: float | None
    gate: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """For metrics.json; the whole trace lies in `gate/`."""
        trace = (self.gate or {}).get("trace", {})
        return {
            "run": self.run_id,
            "at": self.at,
            "state": self.state,
            "reason": self.reason,
            "measured_against": self.measured_against,
            "dsm_loss": self.dsm_loss,
            "comparison": trace.get("comparison"),
        }


@dataclass(frozen=True)
class Week:
    """Everything between two releases.

    Attributes:
        kind: `promotion`, `no_promotion` or `rollback`.
        events: How often each kind of event was logged.
        outcomes: Runs that came to nothing, oldest first.
        promoted: Generations that became champion, oldest first, each with its statement.
        moves: How the champion's pointer moved.
        costs: What the jobs took.
    """

    kind: str
    events: Mapping[str, int]
    outcomes: Sequence[Outcome]
    promoted: Sequence[tuple[Generation, VerifiedStatement]]
    moves: Sequence[Move]
    costs: Sequence[Cost] = ()

    def to_json(self, champion: Generation) -> dict[str, Any]:
        """For metrics.json: what was there to choose from, and what was chosen."""
        return {
            "kind": self.kind,
            "chosen": champion.name,
            "rule": RULE,
            "promoted": [
                {
                    "generation": generation.name,
                    "run": generation.run_id,
                    "promoted_at": generation.promoted_at,
                    "dsm_loss": loss.mean if (loss := record.statement.report.dsm_loss) else None,
                    "ci95": list(loss.ci95) if loss and loss.ci95 else None,
                    "reasons": list(record.statement.gate.get("reasons", [])),
                    "is_standing": generation.name == champion.name,
                }
                for generation, record in self.promoted
            ],
            "not_promoted": [outcome.to_json() for outcome in self.outcomes],
            "costs": [cost.to_json() for cost in self.costs],
        }


def kind_of(champion: Generation, moves: Sequence[Move], previous: Mapping[str, Any] | None) -> str:
    """What kind of week it is, seen from the release before."""
    if previous is None:
        return PROMOTION
    if previous["generation"]["name"] == champion.name:
        return NO_PROMOTION
    promoted = {move.generation for move in moves if move.action == PROMOTED}
    return PROMOTION if champion.name in promoted else ROLLBACK


def outcomes_of(entries: Iterable[Entry]) -> list[Outcome]:
    """The runs that came to nothing, in the order of the log."""
    found = []
    for entry in entries:
        room, _, state = entry.event.partition(".")
        if room != "run" or state not in CAME_TO_NOTHING:
            continue
        details = entry.details.get("details")
        facts = details if isinstance(details, Mapping) else {}
        gate, loss = facts.get("gate"), facts.get("dsm_loss")
        found.append(
            Outcome(
                at=entry.at,
                run_id=entry.subject,
                state=state.lower(),
                reason=str(entry.details.get("reason")),
                measured_against=facts.get("measured_against"),
                dsm_loss=float(loss) if isinstance(loss, int | float) else None,
                gate=gate if isinstance(gate, Mapping) else None,
            )
        )
    return found


def count_events(entries: Iterable[Entry]) -> Mapping[str, int]:
    """How often each kind of event stands in these entries."""
    return dict(sorted(Counter(entry.event for entry in entries).items()))
