"""Make the release of a week: the champion, what it rests on, and the proof of both.

A release is write-once. It is packed in staging, verified there by the same file that strangers
use, and appears under its name whole or not at all. Making it again finds it there. Each release
names the one before by digest, so that none can be taken out or changed unseen.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from scf.audit.log import AuditLog
from scf.core.clock import Clock, SystemClock, monday_of, parse_utc, utc_text
from scf.core.errors import NothingToDo, OperatorError, UsageError
from scf.core.identity import sha256_hex
from scf.release.archive import (
    RELEASE_NAME,
    ReleaseDamaged,
    drop,
    pack,
    read_release,
    releases_of,
)
from scf.release.contents import ABSENT, Contents, gather
from scf.release.notes import Incident, is_promotion, release_notes, verify_text
from scf.release.verify_release import verify_release
from scf.signing.keys import load_signer, public_keys
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.partitions import Drive, Folder
from scf.vault.journal import Vault
from scf.zoo.registry import Zoo

EVENT = "release.made"
# Last states of runs that made no generation, as the conductor logs them (`run.REJECTED`).
CAME_TO_NOTHING = frozenset({"REJECTED", "FAILED", "QUARANTINED"})


class AlreadyReleased(NothingToDo):
    """The week has its release; releases are never made twice or changed."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} is released already: {path}")
        self.path = path


class NothingToRelease(NothingToDo):
    """No generation was ever promoted."""


class ClockBehind(OperatorError):
    """The clock says that it is earlier than when the last release was made."""


@dataclass(frozen=True)
class ReleaseResult:
    """What was made, or with `dry_run` would be.

    Attributes:
        path: The release; None if nothing was written.
        release_sha256: Of its RELEASE.json; None if nothing was written.
        promotion: Whether the model is another one than in the release before.
        previous: The release before, None for the first.
    """

    name: str
    path: Path | None
    release_sha256: str | None
    generation: str
    promotion: bool
    previous: str | None
    fossils: int
    num_files: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "release": self.name,
            "path": None if self.path is None else str(self.path),
            "release_sha256": self.release_sha256,
            "generation": self.generation,
            "promotion": self.promotion,
            "previous": self.previous,
            "fossils": self.fossils,
            "num_files": self.num_files,
            "size_bytes": self.size_bytes,
        }


@dataclass(frozen=True)
class Foundry:
    """What a release is made of and with.

    Attributes:
        releases: `release_history` on the drive.
        zoo: Its champion is released.
        vault: Holds the shards that the champion was trained on.
        audit: Where the release is logged.
        signer: The foundry's key.
        keys: Public keys by role.
        clock: Says which week it is.
        code_version: `scf.__version__`.
    """

    releases: Folder
    zoo: Zoo
    vault: Vault
    audit: AuditLog
    signer: Signer
    keys: Mapping[str, PublicKey]
    code_version: str
    clock: Clock = SystemClock()  # noqa: RUF009 - stateless


@contextlib.contextmanager
def open_foundry(
    drive: Drive, home: Path, *, code_version: str, clock: Clock | None = None
) -> Iterator[Foundry]:
    """Everything that a release needs, opened on one drive and home.

    Raises:
        KeyMissing: The home has no keys, or one cannot be trusted to be private.
        AuditLogRolledBack, AuditLogDamaged: The log is not what was signed.
    """
    clock = clock or SystemClock()
    signer = load_signer(home / "keys", "foundry")
    audit = AuditLog.open(drive.folder("zk_proofs", "audit"), home, signer, clock=clock)
    with Vault.open(drive, home) as vault:
        yield Foundry(
            releases=drive.folder("release_history"),
            zoo=Zoo.open(drive.folder("model_zoo"), clock=clock),
            vault=vault,
            audit=audit,
            signer=signer,
            keys=public_keys(home / "keys"),
            code_version=code_version,
            clock=clock,
        )


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
        BudgetExceeded, DriveError: Not written; nothing is left.
    """
    now = foundry.clock.now()
    name = release_name(week or monday_of(now.date()))
    final = foundry.releases.path / name
    if final.exists():
        # A crash may have come between its name and its entry in the log.
        if not dry_run:
            _log(foundry, final)
        raise AlreadyReleased(final)
    previous = _last_release(foundry.releases)
    _require_clock_ahead(utc_text(now), previous)
    champion = foundry.zoo.champion()
    if champion is None:
        raise NothingToRelease(
            "the zoo is empty: no generation was promoted yet",
            remedy="Let the daemon finish a run (`scf status`), then release.",
        )
    contents = gather(
        champion,
        foundry.vault,
        foundry.keys,
        previous_plan=previous and durable.read_json(previous[0] / "plan.json"),
        fresh_moves=tuple(
            move
            for move in foundry.zoo.history()
            if previous is None or parse_utc(move.at) > parse_utc(previous[1]["made_at"])
        ),
    )
    about = _about(foundry, contents, name, utc_text(now), previous)
    files = {**contents.files, **_texts(foundry, contents, about, previous)}
    result = ReleaseResult(
        name=name,
        path=None,
        release_sha256=None,
        generation=champion.name,
        promotion=about["promotion"],
        previous=previous[1]["name"] if previous else None,
        fossils=contents.plan.fossils,
        num_files=len(files) + 3,
        size_bytes=contents.size_bytes,
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
    listed = []
    for path in releases_of(releases):
        about = read_release(path)
        listed.append(
            {
                "release": path.name,
                "path": str(path),
                "made_at": about["made_at"],
                "generation": about["generation"]["name"],
                "promotion": about["promotion"],
                "fossils": about["plan"]["fossils"],
                "previous": about["previous"] and about["previous"]["name"],
                "release_sha256": sha256_hex((path / RELEASE_NAME).read_bytes()),
            }
        )
    return listed


def _last_release(releases: Folder) -> tuple[Path, dict[str, Any]] | None:
    """The release that was made last, with its RELEASE.json: the end of the chain."""
    made = [(path, read_release(path)) for path in releases_of(releases)]
    return max(made, key=lambda release: parse_utc(release[1]["made_at"]), default=None)


def _require_clock_ahead(made_at: str, previous: tuple[Path, Mapping[str, Any]] | None) -> None:
    if previous is None:
        return
    last = previous[1]["made_at"]
    if parse_utc(made_at) < parse_utc(last):
        raise ClockBehind(
            f"the clock says {made_at}, but {previous[1]['name']} was made at {last}",
            remedy="Set the clock right (or wait); a release must not claim to be older than the "
            "one it follows.",
        )


def _about(
    foundry: Foundry,
    contents: Contents,
    name: str,
    made_at: str,
    previous: tuple[Path, Mapping[str, Any]] | None,
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
        "promotion": is_promotion(contents, previous[1] if previous else None),
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
        "previous": previous
        and {
            "name": previous[1]["name"],
            "release_sha256": sha256_hex((previous[0] / RELEASE_NAME).read_bytes()),
        },
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
    previous: tuple[Path, Mapping[str, Any]] | None,
) -> dict[str, bytes]:
    start = previous[1]["audit"]["size"] if previous else 0
    # The previous release's own entry was appended after it was packed.
    own = previous[1]["name"] if previous else None
    entries = [
        logged.entry
        for logged in foundry.audit.entries(start)
        if (logged.entry.event, logged.entry.subject) != (EVENT, own)
    ]
    notes = release_notes(
        contents,
        name=about["name"],
        made_at=about["made_at"],
        previous=previous[1] if previous else None,
        events=Counter(entry.event for entry in entries),
        incidents=[
            Incident(entry.at, entry.subject, state.lower(), str(entry.details.get("reason")))
            for entry in entries
            for room, _, state in [entry.event.partition(".")]
            if room == "run" and state in CAME_TO_NOTHING
        ],
        absent=about["absent"],
        code_version=foundry.code_version,
    )
    verify = verify_text(about["name"], foundry.signer.public_key.key_id)
    return {"NOTES.md": notes.encode(), "VERIFY.md": verify.encode()}


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
        foundry.releases.publish_folder(staged, name)
    except BaseException:
        drop(staged)
        raise
    return digest


def _log(foundry: Foundry, path: Path) -> None:
    about = read_release(path)
    foundry.audit.append(
        EVENT,
        path.name,
        {
            "release_sha256": sha256_hex((path / RELEASE_NAME).read_bytes()),
            "generation": about["generation"]["name"],
            "promotion": about["promotion"],
        },
        key=f"{EVENT}/{path.name}",
    )
