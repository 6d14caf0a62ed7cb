"""Orient: make an intent out of what the vault holds. The same situation gives the same intent.

An intent says what is to be made and out of what: plan, settings, parent. Its hash names the run,
so a conductor that crashed between seeing and noting, or that sees twice, makes one run.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scf.config import TrainingSettings
from scf.daemon.rooms import Rooms, Shelves
from scf.runs.record import Run
from scf.runs.state import ACTIVE
from scf.runs.store import RunStore, run_id_of

INTENT_SCHEMA = "scf.intent/1"
KIND = "train_ebdm"


def may_plan(store: RunStore) -> bool:
    """Whether a new run may be thought of: none is under way, but for those that wait for a retry.

    What is under way may become the next parent, so the next run waits for it; a run that failed
    and waits out its backoff keeps nobody waiting.
    """
    return all(run.not_before is not None for run in store.runs(ACTIVE))


@dataclass(frozen=True)
class Situation:
    """What would be made now, and out of what.

    Attributes:
        intent: Its hash names the run.
        plan: The batch plan's JSON.
        facts: For people and for the stages.
    """

    intent: dict[str, Any]
    plan: dict[str, Any]
    facts: dict[str, Any]

    @property
    def run_id(self) -> str:
        """The run that this is, or would be."""
        return run_id_of(self.intent)


def situation(shelves: Shelves) -> Situation:
    """Plan on all that the vault holds. Changes nothing.

    Raises:
        InputError: No plan can be made of it, such as of an empty vault.
    """
    champion = shelves.champion()
    parent_plan = shelves.plan_of(champion) if champion is not None else None
    plan = shelves.make_plan(parent_plan)
    parent = (
        {"generation": champion.name, "checkpoint_digest": champion.checkpoint_digest}
        if champion is not None and shelves.can_go_on_from(champion)
        else None
    )
    facts = {
        "plan_id": plan.plan_id,
        "fossils": plan.fossils,
        "merkle_root": plan.merkle_root,
        "parent": parent,
    }
    intent = make_intent(plan.plan_id, shelves.config.training, parent)
    return Situation(intent, plan.to_json(), facts)


def orient(rooms: Rooms, store: RunStore) -> tuple[Run, bool]:
    """Plan on all that the vault holds, and note the intent: (run, whether it is new)."""
    found = situation(rooms)
    return store.add_run(found.intent, found.plan, facts=found.facts)


def make_intent(
    plan_id: str, settings: TrainingSettings, parent: Mapping[str, str] | None
) -> dict[str, Any]:
    """What is to be made, out of what, within which budget."""
    return {
        "schema": INTENT_SCHEMA,
        "kind": KIND,
        "plan_id": plan_id,
        "config": train_config(settings),
        "parent": parent["checkpoint_digest"] if parent is not None else None,
    }


def train_config(settings: TrainingSettings) -> dict[str, Any]:
    """The training program's settings. What is held out, and mixed how, is the plan's matter."""
    values = dataclasses.asdict(settings)
    del values["held_out_fraction"], values["fresh_share"]
    return values


def describe(run: Run) -> str:
    """A new run in one line."""
    facts = run.facts
    parent = facts["parent"]["generation"] if facts.get("parent") else "random weights"
    return f"{facts['fossils']} fossils, plan {facts['plan_id'][:12]}, begins from {parent}"
