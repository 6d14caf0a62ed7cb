"""Orient: make an intent out of what the vault holds. The same situation gives the same intent.

An intent says what is to be made and out of what: a beginning of the vault's journal, settings,
parent, budget. Its hash names the run, so a conductor that crashed between seeing and noting, or
that sees twice, makes one run. The vault is named by how many shards and the root over them, not by
a list: noting an intent costs the same whatever the vault holds, and the batch plan, which lists
every shard, is made as the first stage of the run (`planning`).
"""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scf.config import RunSettings, TrainingSettings
from scf.daemon.commands import RUN_NOW
from scf.daemon.pulse import PLANNED, Signs
from scf.daemon.rooms import Rooms, Shelves
from scf.daemon.triggers import Moment, Novelty
from scf.daemon.tuning import past_attempts, propose
from scf.runs.record import Run
from scf.runs.state import ACTIVE
from scf.runs.store import RunStore, run_id_of
from scf.vault.watcher import JournalPrefix

INTENT_SCHEMA = "scf.intent/2"
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
        facts: For people and for the stages.
    """

    intent: dict[str, Any]
    facts: dict[str, Any]

    @property
    def run_id(self) -> str:
        """The run that this is, or would be."""
        return run_id_of(self.intent)


def situation(shelves: Shelves, prefix: JournalPrefix, store: RunStore) -> Situation:
    """What a run about `prefix` would be. Changes nothing.

    Raises:
        GenerationDamaged: The champion cannot be read.
        MissingTool: Settings are to be proposed, and Optuna is not installed.
    """
    config, champion = shelves.config, shelves.champion()
    start = shelves.start_of(champion)
    parent = (
        {"generation": start.name, "checkpoint_digest": start.checkpoint_digest}
        if start is not None
        else None
    )
    intent: dict[str, Any] = {
        "schema": INTENT_SCHEMA,
        "kind": KIND,
        "vault": {"shards": prefix.shards, "root": prefix.root},
        "retracted": shelves.retracted_digest(),
        "split": {
            "seed": config.training.seed,
            "held_out_fraction": config.training.held_out_fraction,
            "fresh_share": config.training.fresh_share,
            "parent_plan": champion.plan_id if champion is not None else None,
        },
        "parent": parent["checkpoint_digest"] if parent is not None else None,
        "budget": budget(config.run, config.daemon.job_deadline_s),
    }
    settings = train_config(config.training)
    if config.tune.enabled:
        settings = propose(past_attempts(store.runs()), settings, config.tune, intent)
    intent["config"] = settings
    facts: dict[str, Any] = {
        "journal_bytes": prefix.offset,
        "shards": prefix.shards,
        "vault_fossils": prefix.fossils,
        "parent": parent,
        "split_of": champion.name if champion is not None else None,
    }
    return Situation(intent, facts)


def orient(rooms: Rooms, store: RunStore, prefix: JournalPrefix, because: str) -> tuple[Run, bool]:
    """Note an intent about `prefix`: (run, whether it is new).

    Together with the run, in one transaction, it is noted that nothing in `prefix` is fresh.
    """
    found = situation(rooms, prefix, store)
    return store.add_run(
        found.intent, facts=found.facts, reason=because, sets={PLANNED: prefix.to_json()}
    )


def moment_of(store: RunStore, signs: Signs, now: datetime, *, novelty: Novelty | None) -> Moment:
    """What the rules that start a run look at."""
    return Moment(
        now=now,
        fresh_fossils=signs.fresh_fossils,
        fresh_since=signs.fresh_since,
        last_run_at=store.last_run_at(),
        novelty=novelty,
        is_asked=store.get(RUN_NOW) is not None,
    )


def budget(settings: RunSettings, job_deadline_s: float) -> dict[str, float]:
    """What a run may take: money, time and work; 0 is no limit."""
    seconds = min(settings.seconds_max, job_deadline_s) if settings.seconds_max else job_deadline_s
    return {"usd": settings.usd_max, "seconds": seconds, "joules": settings.joules_max}


def train_config(settings: TrainingSettings) -> dict[str, Any]:
    """The training program's settings. What is held out, and mixed how, is the plan's matter."""
    values = dataclasses.asdict(settings)
    del values["held_out_fraction"], values["fresh_share"]
    return values


def describe(run: Run) -> str:
    """A new run in one line."""
    facts = run.facts
    parent = facts["parent"]["generation"] if facts.get("parent") else "random weights"
    return f"{facts['vault_fossils']} fossils, begins from {parent}"
