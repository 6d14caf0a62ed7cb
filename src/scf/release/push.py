"""Publish a release that lies on the drive: verified first, then handed to each outlet.

What does not verify is published nowhere. An outlet that fails keeps no other from being tried; it
is told at the end, and the next call goes on with what it left. Each success is logged once.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scf.audit.log import AuditLog
from scf.core.errors import NothingToDo, ScfError
from scf.dispatch.outlets.outlet import AlreadyPublished, Outlet, OutletFailed, Shipment
from scf.release.archive import ReleaseDamaged
from scf.release.chain import verify_trusted
from scf.signing.verify import PublicKey

EVENT = "release.published"
PUBLISHED, THERE, FAILED = "published", "was there", "failed"


@dataclass(frozen=True)
class Pushed:
    """How it went at one outlet.

    Attributes:
        address: Of the outlet.
        result: `published`, `was there` or `failed`.
        detail: Where it is seen, or what went wrong.
        sent_bytes, kept_bytes: What went over the line, and what was there from an earlier try.
    """

    address: str
    result: str
    detail: str
    sent_bytes: int = 0
    kept_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class NotAllPublished(OutletFailed):
    """At least one outlet did not take the release."""


def push(
    release: Path, outlets: Sequence[Outlet], *, key: PublicKey, audit: AuditLog
) -> list[Pushed]:
    """Publish `release` at every outlet.

    Raises:
        ReleaseDamaged: It does not verify with the foundry's key; nothing was published.
    """
    checked = verify_trusted(release, key)
    if not checked.ok:
        problem = checked.problems[0]
        raise ReleaseDamaged(
            f"{release.name} does not verify, so it is not published: {problem.file}: "
            f"{problem.what}",
            remedy=f"`scf release verify {release}` says more; restore it from a backup or a copy.",
        )
    shipment = Shipment.of(release)
    return [_push(shipment, outlet, audit) for outlet in outlets]


def _push(shipment: Shipment, outlet: Outlet, audit: AuditLog) -> Pushed:
    try:
        done = outlet.publish(shipment)
        pushed = Pushed(outlet.address, PUBLISHED, done.where, done.sent_bytes, done.kept_bytes)
    except AlreadyPublished as there:
        pushed = Pushed(outlet.address, THERE, str(there))
    except ScfError as error:
        remedy = f" {error.remedy}" if error.remedy else ""
        return Pushed(outlet.address, FAILED, f"{error}.{remedy}")
    # Also where it was there: a crash may have come between the upload and this entry.
    audit.append(
        EVENT,
        shipment.name,
        {"outlet": outlet.address, "release_sha256": shipment.release.sha256},
        key=f"{EVENT}/{shipment.name}/{outlet.address}",
    )
    return pushed


def require_published(results: Sequence[Pushed], name: str) -> None:
    """Raise NotAllPublished (8) if one failed, NothingToDo (3) if there was nothing to publish."""
    failed = [pushed for pushed in results if pushed.result == FAILED]
    if failed:
        raise NotAllPublished(
            f"{name} is not published at {', '.join(pushed.address for pushed in failed)}",
            remedy=f"Run `scf release push {name}` again: it goes on where it stopped.",
        )
    if all(pushed.result == THERE for pushed in results):
        raise NothingToDo(f"{name} was published everywhere already")
