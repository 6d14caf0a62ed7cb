"""The first stage of a run: make the batch plan that its intent names.

The plan lists every shard and has a root over every fossil, so it takes as long as the vault is
large. A plan over a small vault is made at once; a larger one by a process of its own, which the
conductor asks about and does not wait for:

    python -m scf.daemon.planning --home HOME --root DRIVE --run RUN < {"intent": ..., "facts": ...}

It writes `HOME/plans/RUN.json`, the plan or why there can be none, complete or absent. Made twice,
it is the same: a plan is a function of the first shards of the vault, what was retracted, and the
parent's split.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scf.config import load_config
from scf.core.clock import Clock, SystemClock
from scf.core.errors import InputError, NothingToDo, OperatorError, ScfError
from scf.daemon.rooms import Shelves, own_drive
from scf.runs.record import Run
from scf.storage import durable

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan

# More than this is planned by a process of its own: above it the conductor would not answer for
# more than about a second.
FOSSILS_HERE_MAX = 20_000
SHARDS_HERE_MAX = 1_000
# A process that is still at it after this is ended, and the stage tried again.
LIMIT_S = 6 * 3600.0
FOLDER = "plans"


class NoPlan(InputError):
    """What an intent names cannot be planned over; trying again would not help."""

    kind = "plan"


def plan_for(shelves: Shelves, intent: Mapping[str, Any], facts: Mapping[str, Any]) -> "BatchPlan":
    """The batch plan of an intent.

    Raises:
        NoPlan: The vault does not begin with those shards any more, or they cannot be split.
        DriveMissing, GenerationDamaged: Not the intent's fault.
    """
    from scf.vault.watcher import shards_root

    split, wanted = intent["split"], intent["vault"]
    try:
        plan = shelves.make_plan(
            shelves.plan_of(shelves.zoo().generation(facts["split_of"]))
            if split["parent_plan"] is not None
            else None,
            seed=split["seed"],
            held_out_fraction=split["held_out_fraction"],
            fresh_share=split["fresh_share"],
            num_shards=wanted["shards"],
        )
    except (InputError, NothingToDo) as error:
        raise NoPlan(f"no plan can be made: {error}", remedy=error.remedy) from error
    found = shards_root(plan.shards)
    if found != wanted["root"]:
        raise NoPlan(
            f"the first {wanted['shards']} shards of the journal have the root {found[:16]}, the "
            f"intent names {wanted['root'][:16]}: another journal lies there"
        )
    return plan


@dataclass
class Planner:
    """Makes plans, a large one in a process of its own.

    Attributes:
        shelves: What is planned over.
        clock: Time.
    """

    shelves: Shelves
    clock: Clock
    _children: dict[str, tuple["subprocess.Popen[bytes]", float]] = field(default_factory=dict)

    def plan(self, run: Run) -> "BatchPlan | None":
        """The plan of a run; None while it is being made.

        Raises:
            NoPlan: There can be none.
            OperatorError: The process did not get through.
        """
        facts = run.facts
        size = (facts.get("vault_fossils", 0), facts.get("shards", 0))
        if size[0] <= FOSSILS_HERE_MAX and size[1] <= SHARDS_HERE_MAX:
            return plan_for(self.shelves, run.intent, facts)
        path = _path(self.shelves.config.home, run.run_id)
        if path.exists():
            self._forget(run.run_id)
            return _read(path)
        if run.run_id not in self._children:
            self._start(run)
            return None
        child, since = self._children[run.run_id]
        is_late = self.clock.monotonic() - since > LIMIT_S
        if child.poll() is None and not is_late:
            return None
        self._forget(run.run_id)
        raise OperatorError(
            f"planning took longer than {LIMIT_S:g} s" if is_late
            else f"the planning process ended with code {child.returncode} and without a plan",
            remedy=f"What it said is in {path.with_suffix('.log')}.",
        )  # fmt: skip

    def forget(self, run_id: str) -> None:
        """The run has its plan, or its end: nothing of the making is left."""
        self._forget(run_id)
        path = _path(self.shelves.config.home, run_id)
        for left in (path, path.with_suffix(".log")):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """End what is being made; it is made again."""
        for run_id in list(self._children):
            self._forget(run_id)

    def _start(self, run: Run) -> None:
        config = self.shelves.config
        path = _path(config.home, run.run_id)
        path.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "scf.daemon.planning", "--home", str(config.home),
                   "--root", str(config.need_root()), "--run", run.run_id]  # fmt: skip
        with path.with_suffix(".log").open("wb") as log:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._children[run.run_id] = (child, self.clock.monotonic())
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:
            asked = {"intent": dict(run.intent), "facts": dict(run.facts)}
            child.stdin.write(json.dumps(asked).encode())

    def _forget(self, run_id: str) -> None:
        child, _ = self._children.pop(run_id, (None, 0.0))
        if child is not None:
            child.kill()
            child.wait()


def _path(home: Path, run_id: str) -> Path:
    return home / FOLDER / f"{run_id}.json"


def _read(path: Path) -> "BatchPlan":
    from scf.fertilization.batch_plan import BatchPlan

    # Written by us, complete or absent; as large as the vault has shards.
    made = json.loads(path.read_bytes())
    if "no_plan" in made:
        raise NoPlan(str(made["no_plan"]))
    return BatchPlan.from_json(made["plan"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: reads an intent, writes a plan; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scf.daemon.planning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args(arguments)
    try:
        asked = json.load(sys.stdin)
        config = load_config(options.home, root=options.root, environment=os.environ)
        shelves = Shelves(config, own_drive(config), SystemClock())
        made: dict[str, Any]
        try:
            made = {"plan": plan_for(shelves, asked["intent"], asked["facts"]).to_json()}
        except NoPlan as error:
            made = {"no_plan": str(error)}
        durable.write_json(_path(options.home, options.run), made)
    except ScfError as error:
        sys.stderr.write(f"planning: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
