"""Make the release of a week: the champion, what it rests on, and the proof of both.

A release is write-once. It is packed in staging, verified there by the same file that strangers
use, and appears under its name whole or not at all. Making it again finds it there. Each release
names the one before by digest, so that none can be taken out or changed unseen. A week in which
nothing passed the gate is released too: it names the earlier release of the champion by digest
instead of carrying its weights again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from scf.audit.entry import Entry
from scf.core.canonical import canonical_json
from scf.core.clock import monday_of, parse_utc, utc_text
from scf.core.errors import BudgetExceeded, NothingToDo, OperatorError, UsageError
from scf.core.units import format_bytes
from scf.proofs.verify_proof import verify_record
from scf.release.archive import ReleaseDamaged, drop, pack, seal
from scf.release.chain import (
    Released,
    all_released,
    carrier_of,
    last_made,
    read_released,
    require_signed,
)
from scf.release.contents import ABSENT, Contents, Tainted, gather
from scf.release.costs import costs_of
from scf.release.foundry import Foundry
from scf.release.improvement import Step, improvement
from scf.release.notes import release_notes, verify_text
from scf.release.sbom import bill_of_materials, constraints
from scf.release.verify_release import verify_release
from scf.release.week import PROMOTION, Week, count_events, kind_of, outcomes_of
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.partitions import Folder
from scf.zoo.registry import PROMOTED, Generation
from scf.zoo.taint import find_taints, propose, read_taints

EVENT = "release.made"


class AlreadyReleased(NothingToDo):
    """The week has its release; releases are never made twice or changed."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} is released already: {path}")
        self.path = path


class NothingToRelease(NothingToDo):
    """No generation was ever promoted."""


class ClockBehind(OperatorError):
    """The clock says that it is earlier than when the last release was made."""


class ReleaseTooLarge(BudgetExceeded):
    """A release would take more room than one release may."""

    def __init__(self, name: str, *, size_bytes: int, size_max_bytes: int, largest: str) -> None:
        super().__init__(
            f"{name} would take {format_bytes(size_bytes)}, a release may take "
            f"{format_bytes(size_max_bytes)}; the largest file is {largest}",
            remedy="Nothing was written. Raise the cap with `scf release make --size-max 8GB`, or "
            "give release_history a larger budget on the drive.",
        )
        self.size_bytes, self.size_max_bytes = size_bytes, size_max_bytes


@dataclass(frozen=True)
class ReleaseResult:
    """What was made, or with `dry_run` would be.

    Attributes:
        path: The release; None if nothing was written.
        release_sha256: Of its RELEASE.json; None if nothing was written.
        kind: `promotion`, `no_promotion` or `rollback`.
        carried_by: The earlier release that has the weights; None where this one has them.
        previous: The release before, None for the first.
    """

    name: str
    path: Path | None
    release_sha256: str | None
    generation: str
    kind: str
    carried_by: str | None
    previous: str | None
    fossils: int
    num_files: int
    size_bytes: int

    @property
    def promotion(self) -> bool:
        """Whether a new model was promoted since the release before."""
        return self.kind == PROMOTION

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "release": self.name,
            "path": None if self.path is None else str(self.path),
            "release_sha256": self.release_sha256,
            "generation": self.generation,
            "promotion": self.promotion,
            "kind": self.kind,
            "carried_by": self.carried_by,
            "previous": self.previous,
            "fossils": self.fossils,
            "num_files": self.num_files,
            "size_bytes": self.size_bytes,
        }


def make_release(
    foundry: Foundry, *, week: date | None = None, dry_run: bool = False
) -> ReleaseResult:
    """Make the release of `week` (default: the week that it is now, UTC).

    Raises:
        AlreadyReleased: The week has one.
        NothingToRelease: The zoo is empty.
        UsageError: `week` is not a Monday.
        ClockBehind: The clock stands before the last release.
        VerificationFailed: Champion, statement, manifests or an earlier release do not verify.
        ReleaseTooLarge, BudgetExceeded, DriveError: Not written; nothing is left.
    """
    now = foundry.clock.now()
    name = release_name(week or monday_of(now.date()))
    final = foundry.releases.path / name
    if final.exists():
        # A crash may have come between its name and its entry in the log.
        if not dry_run:
            _log(foundry, final)
        raise AlreadyReleased(final)
    released = all_released(foundry.releases)
    previous = last_made(released)
    if previous is not None:
        require_signed(previous, foundry.keys["foundry"])
    _require_clock_ahead(utc_text(now), previous)
    champion = foundry.zoo.champion()
    if champion is None:
        raise NothingToRelease(
            "the zoo is empty: no generation was promoted yet",
            remedy="Let the daemon finish a run (`scf status`), then release.",
        )
    carrier = carrier_of(released, champion.checkpoint_digest, champion.statement_sha256)
    contents = gather(
        champion,
        foundry.vault,
        foundry.keys,
        previous_plan=durable.read_json(previous.path / "plan.json") if previous else None,
        week=_week(foundry, champion, previous),
        carrier=carrier,
        steps=_steps(foundry),
        taints=_tainted(foundry, champion, utc_text(now)),
        rotations=foundry.rotations,
    )
    about = _about(foundry, contents, name, utc_text(now), previous)
    files = {**contents.files, **_texts(foundry, contents, about, previous)}
    size_bytes = _require_small(name, files, foundry.size_max_bytes)
    result = ReleaseResult(
        name=name,
        path=None,
        release_sha256=None,
        generation=champion.name,
        kind=contents.week.kind,
        carried_by=carrier.name if carrier else None,
        previous=previous.name if previous else None,
        fossils=contents.plan.fossils,
        num_files=len(files) + 3,
        size_bytes=size_bytes,
    )
    if dry_run:
        return result
    digest = _publish(foundry, name, files, about)
    _log(foundry, final)
    return ReleaseResult(**{**result.__dict__, "path": final, "release_sha256": digest})


def release_name(week: date) -> str:
    """`week-YYYY-MM-DD` of a Monday.

    Raises:
        UsageError: Another day; the remedy names its Monday.
    """
    if week.weekday() != 0:
        raise UsageError(
            f"{week} is a {week:%A}; a release is named by the Monday of its week",
            remedy=f"Use --week {monday_of(week)} or --week {monday_of(week) + timedelta(7)}.",
        )
    return f"week-{week.isoformat()}"


def list_releases(releases: Folder) -> list[dict[str, Any]]:
    """Name, model and digest of each release, by week. RELEASE.json is read, not verified.

    Raises:
        ReleaseDamaged: One cannot be read.
    """
    return [release_json(released) for released in all_released(releases)]


def release_json(released: Released) -> dict[str, Any]:
    """One release in a line, for lists."""
    about = released.about
    return {
        "release": released.path.name,
        "path": str(released.path),
        "made_at": about["made_at"],
        "generation": about["generation"]["name"],
        "promotion": about["promotion"],
        "kind": about.get("kind"),
        "carried_by": released.carried_by and released.carried_by["name"],
        "fossils": about["plan"]["fossils"],
        "previous": about["previous"] and about["previous"]["name"],
        "release_sha256": released.sha256,
    }


def _week(foundry: Foundry, champion: Generation, previous: Released | None) -> Week:
    """What happened since the release before."""
    start = previous.about["audit"]["size"] if previous else 0
    # The previous release's own entry was appended after it was packed.
    own = (EVENT, previous.name) if previous else None
    entries: list[Entry] = [
        logged.entry
        for logged in foundry.audit.entries(start)
        if (logged.entry.event, logged.entry.subject) != own
    ]
    made_at = parse_utc(previous.about["made_at"]) if previous else None
    moves = [
        move for move in foundry.zoo.history() if made_at is None or parse_utc(move.at) > made_at
    ]
    names = dict.fromkeys(move.generation for move in moves if move.action == PROMOTED)
    promoted = []
    for name in names:
        generation = foundry.zoo.generation(name)
        statement = generation.path / "statement.json"
        promoted.append((generation, verify_record(statement, [foundry.keys["foundry"]])))
    return Week(
        kind=kind_of(champion, moves, previous.about if previous else None),
        events=count_events(entries),
        outcomes=outcomes_of(entries),
        promoted=promoted,
        moves=moves,
        costs=costs_of(foundry.attempts, since=made_at, until=foundry.clock.now()),
    )


def _steps(foundry: Foundry) -> tuple[Step, ...]:
    """Every generation that became champion, from its own statement."""
    promoted = {m.generation: m.previous for m in foundry.zoo.history() if m.action == PROMOTED}
    generations = [g for g in foundry.zoo.generations() if g.name in promoted]
    key = foundry.keys["foundry"]
    records = [(g, verify_record(g.path / "statement.json", [key])) for g in generations]
    return improvement(records, {name: before for name, before in promoted.items() if before})


def _tainted(foundry: Foundry, champion: Generation, at: str) -> Tainted:
    """What was taken back of the fossils that the champion and its ancestors rest on."""
    generations = {generation.name: generation for generation in foundry.zoo.generations()}
    descent: list[Generation] = []
    name: str | None = champion.name
    while name in generations:
        descent.append(generations[name])
        name = generations[name].parent
    noted = read_taints(foundry.zoo.folder)
    known = {(taint.generation, taint.cid) for taint in noted}
    found = find_taints(generations.values(), foundry.vault, at=at)
    noted += [taint for taint in found if (taint.generation, taint.cid) not in known]
    names = {generation.name for generation in descent}
    ours = tuple(taint for taint in noted if taint.generation in names)
    return Tainted(ours, propose(foundry.zoo, noted))


def _require_small(name: str, files: Mapping[str, Path | bytes], size_max_bytes: int) -> int:
    """The size of all files together. Raises ReleaseTooLarge."""
    sizes = {
        path: len(source) if isinstance(source, bytes) else source.stat().st_size
        for path, source in files.items()
    }
    total = sum(sizes.values())
    if total > size_max_bytes:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ReleaseTooLarge(
            name, size_bytes=total, size_max_bytes=size_max_bytes, largest=largest
        )
    return total


def _require_clock_ahead(made_at: str, previous: Released | None) -> None:
    if previous is None:
        return
    last = previous.about["made_at"]
    if parse_utc(made_at) < parse_utc(last):
        raise ClockBehind(
            f"the clock says {made_at}, but {previous.name} was made at {last}",
            remedy="Set the clock right (or wait); a release must not claim to be older than the "
            "one it follows.",
        )


def _about(
    foundry: Foundry,
    contents: Contents,
    name: str,
    made_at: str,
    previous: Released | None,
) -> dict[str, Any]:
    """RELEASE.json without its schema and files."""
    generation = contents.generation
    head = foundry.audit.tree_head()
    assert head is not None  # the champion's statement stands in the log
    return {
        "name": name,
        "week": name.removeprefix("week-"),
        "made_at": made_at,
        "code": {"scf": foundry.code_version},
        "promotion": contents.week.kind == PROMOTION,
        "kind": contents.week.kind,
        "generation": {
            "name": generation.name,
            "run": generation.run_id,
            "checkpoint_digest": generation.checkpoint_digest,
            "num_parameters": generation.num_parameters,
            "parent": generation.parent,
            "promoted_at": generation.promoted_at,
        },
        "plan": {
            "plan_id": generation.plan_id,
            "fossils": generation.fossils,
            "merkle_root": generation.merkle_root,
        },
        "statement_sha256": generation.statement_sha256,
        "carried_by": contents.carrier and contents.carrier.reference(),
        "previous": previous and previous.reference(),
        "audit": {"origin": head.origin, "size": head.size, "root": head.root.hex()},
        "keys": {
            role: {"path": f"keys/{role}.pub", "key_id": key.key_id}
            for role, key in foundry.keys.items()
        },
        "absent": dict(ABSENT),
    }


def _texts(
    foundry: Foundry,
    contents: Contents,
    about: Mapping[str, Any],
    previous: Released | None,
) -> dict[str, bytes]:
    """What is written for this release: notes, how to verify, and what it was made with."""
    notes = release_notes(
        contents,
        name=about["name"],
        made_at=about["made_at"],
        previous=previous.about if previous else None,
        absent=about["absent"],
        code_version=foundry.code_version,
    )
    texts = {
        "NOTES.md": notes.encode(),
        "VERIFY.md": verify_text(about["name"], foundry.signer.public_key.key_id).encode(),
        "sbom.cdx.json": bill_of_materials(foundry.code_version, about["made_at"]),
        "config/constraints.txt": constraints(),
    }
    if foundry.settings is not None:
        texts["config/foundry.json"] = canonical_json(dict(foundry.settings))
    return texts


def _publish(
    foundry: Foundry, name: str, files: Mapping[str, Path | bytes], about: Mapping[str, Any]
) -> str:
    durable.sweep(foundry.releases.path)
    staged = foundry.releases.new_staging(name)
    try:
        digest = pack(staged, files, about, foundry.signer)
        checked = verify_release(staged, foundry.signer.public_key.to_pem())
        # Staged beside its predecessor, so the chain is checked as well.
        if not checked.ok:
            raise ReleaseDamaged(
                f"{name} was packed, but does not verify: {checked.problems[0]}",
                remedy="Nothing was released. Run the command again; if it fails again, "
                "`scf audit check` and `scf doctor` say more.",
            )
        with durable.os_errors(staged):
            failpoint("release.packed")
        seal(foundry.releases.publish_folder(staged, name))
    except BaseException:
        drop(staged)
        raise
    return digest


def _log(foundry: Foundry, path: Path) -> None:
    made = read_released(path)
    foundry.audit.append(
        EVENT,
        path.name,
        {
            "release_sha256": made.sha256,
            "generation": made.about["generation"]["name"],
            "promotion": made.about["promotion"],
        },
        key=f"{EVENT}/{path.name}",
    )
