"""Generations that learned from fossils which were taken back, and the rollback that this suggests.

A generation is tainted by a retracted fossil in its plan's training split, or by going on from the
weights of a tainted one; a retracted held-out fossil leaves the weights alone and is only noted.
`model_zoo/taints.log` has a line for each: what was found is kept, whatever happens to the vault.
Nothing is rolled back by itself: while a tainted generation stands, a rollback to the latest one
that is sound is proposed, and the operator accepts (`scf zoo rollback --proposed`) or keeps it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scf.audit.log import AuditLog
from scf.core.canonical import parse_json
from scf.core.clock import Clock, utc_text
from scf.core.errors import InputError, NothingToDo, UsageError
from scf.fertilization.batch_plan import TRAIN, read_plan
from scf.fertilization.taint import GENERATION, uses_of
from scf.storage.partitions import Folder
from scf.vault.journal import Vault
from scf.zoo.entry import Generation
from scf.zoo.registry import Zoo

TAINTS_NAME = "taints.log"
KEPT = "kept"


@dataclass(frozen=True)
class Taint:
    """A generation and a fossil that was taken back.

    Attributes:
        generation: Whose plan holds it.
        cid: The fossil; "" for the operator's word that the generation is kept all the same.
        split: `train`, `held_out`, or `kept`.
        reason: Why it was taken back, or why the generation is kept.
        at: When that was noted.
    """

    generation: str
    cid: str
    split: str
    reason: str
    at: str

    def to_json(self) -> dict[str, str]:
        """A line of the log."""
        return asdict(self)


@dataclass(frozen=True)
class Proposal:
    """A rollback that is suggested.

    Attributes:
        generation: The tainted champion.
        target: The latest sound generation; None where there is none.
        through: The generation that learned from the fossils: itself, or one that it descends from.
        cids: Of these fossils.
    """

    generation: str
    target: str | None
    through: str
    cids: tuple[str, ...]

    def sentence(self) -> str:
        """What is the case, and what to do."""
        num = len(self.cids)
        fossils = "a fossil that was" if num == 1 else f"{num} fossils that were"
        how = "" if self.through == self.generation else f" by going on from {self.through}"
        why = f"{self.generation} learned{how} from {fossils} taken back since"
        if self.target is None:
            return (
                f"{why}; there is no earlier sound generation to go back to: the next run, "
                "which begins from random weights (`scf run-now`), will have to replace it"
            )
        return f"{why}: a rollback to {self.target} is proposed (`scf zoo rollback --proposed`)"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "cids": list(self.cids), "sentence": self.sentence()}


def find_taints(generations: Iterable[Generation], vault: Vault, *, at: str) -> list[Taint]:
    """Every retracted fossil in a generation's plan, by generation."""
    retracted = vault.retracted()
    located = {cid: vault.locate(cid) for cid in retracted}
    if not located:
        return []
    plans = [(GENERATION, g.name, read_plan(g.path / "plan.json")) for g in generations]
    return [
        Taint(use.name, cid, use.split, retracted[cid].reason, at)
        for cid, location in located.items()
        if location is not None
        for use in uses_of(location, plans)
    ]


def mark_tainted(
    zoo: Zoo,
    vault: Vault,
    clock: Clock,
    *,
    audit: AuditLog | None = None,
    among: Sequence[Generation] | None = None,
) -> list[Taint]:
    """Note in the log what is not noted yet; returns that. Twice is once.

    `audit` hears of each before it is noted, and then of the rollback that this suggests; `among`
    are the generations to look at (default: all of the zoo).
    """
    known = {(taint.generation, taint.cid) for taint in read_taints(zoo.folder)}
    generations = zoo.generations() if among is None else among
    found = find_taints(generations, vault, at=utc_text(clock.now()))
    fresh = [taint for taint in found if (taint.generation, taint.cid) not in known]
    for taint in fresh:
        if audit is not None:
            about = {"cid": taint.cid, "split": taint.split, "reason": taint.reason}
            key = f"zoo.tainted/{taint.generation}/{taint.cid}"
            audit.append("zoo.tainted", taint.generation, about, key=key)
        _append(zoo.folder, taint)
    proposal = propose(zoo, read_taints(zoo.folder)) if fresh and audit is not None else None
    if audit is not None and proposal is not None:
        audit.append(
            "zoo.rollback_proposed",
            proposal.generation,
            {"target": proposal.target, "cids": list(proposal.cids)[:100]},
            key=f"zoo.rollback_proposed/{proposal.generation}/{len(proposal.cids)}",
        )
    return fresh


def keep(zoo: Zoo, reason: str, clock: Clock) -> Taint:
    """The operator's word that the tainted champion stays; ends the proposal.

    Raises:
        UsageError: No reason is given.
        NothingToDo: No rollback is proposed.
    """
    if not reason.strip():
        raise UsageError("keeping a tainted generation needs a reason", remedy="Say why.")
    proposal = propose(zoo, read_taints(zoo.folder))
    if proposal is None:
        raise NothingToDo("no rollback is proposed")
    taint = Taint(proposal.generation, "", KEPT, reason.strip(), utc_text(clock.now()))
    _append(zoo.folder, taint)
    return taint


def read_taints(folder: Folder) -> list[Taint]:
    """What was noted, oldest first. Lines that a crash tore are passed over."""
    try:
        lines = (folder.path / TAINTS_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [taint for line in lines if (taint := _parse(line)) is not None]


def learned_from(generations: Iterable[Generation], taints: Iterable[Taint]) -> dict[str, str]:
    """Tainted generations, each with the one in its descent that learned from such fossils."""
    trained = {taint.generation for taint in taints if taint.split == TRAIN}
    found: dict[str, str] = {}
    for generation in sorted(generations, key=lambda one: one.number):
        if generation.name in trained:
            found[generation.name] = generation.name
        elif generation.parent in found:
            found[generation.name] = found[generation.parent]
    return found


def propose(zoo: Zoo, taints: Iterable[Taint]) -> Proposal | None:
    """The rollback to suggest now; None while the champion is sound, or is kept all the same."""
    taints = list(taints)
    history = zoo.history()
    if not taints or not history:
        return None
    generations = zoo.generations()
    tainted = learned_from(generations, taints)
    champion = history[-1].generation
    if champion not in tainted or _is_kept(champion, taints):
        return None
    stood = {move.generation for move in history}
    sound = [g for g in generations if g.name in stood and g.name not in tainted]
    number = {g.name: g.number for g in generations}[champion]
    earlier = [g.name for g in sound if g.number < number]
    through = tainted[champion]
    cids = sorted({t.cid for t in taints if t.generation == through and t.split == TRAIN})
    return Proposal(champion, earlier[-1] if earlier else None, through, tuple(cids))


def _is_kept(champion: str, taints: list[Taint]) -> bool:
    """Whether the operator's word about it is newer than what was found."""
    about = [taint.split for taint in taints if taint.generation == champion]
    return bool(about) and about[-1] == KEPT


def _append(folder: Folder, taint: Taint) -> None:
    line = json.dumps(taint.to_json(), sort_keys=True, ensure_ascii=False)
    folder.append_line(TAINTS_NAME, line.encode())


def _parse(line: bytes) -> Taint | None:
    try:
        value: Mapping[str, Any] = parse_json(line)
        return Taint(**{key: str(value[key]) for key in Taint.__dataclass_fields__})
    except (InputError, KeyError, TypeError):
        return None
