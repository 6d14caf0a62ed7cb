"""How releases hang together: which is the last, and which one carries a generation's weights.

RELEASE.json files are read here, not verified; `scf release verify` does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.clock import parse_utc
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.release.archive import (
    ENVELOPE_NAME,
    PAYLOAD_TYPE,
    RELEASE_NAME,
    ReleaseDamaged,
    read_release,
    releases_of,
)
from scf.release.verify_release import Verification, verify_release
from scf.signing.envelope import Envelope
from scf.signing.verify import PublicKey, verify_envelope
from scf.storage import durable
from scf.storage.partitions import Folder


@dataclass(frozen=True)
class Released:
    """A release on the drive.

    Attributes:
        path: Its folder.
        about: Its RELEASE.json.
        sha256: Of that file: how other releases name this one.
    """

    path: Path
    about: Mapping[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """`week-YYYY-MM-DD`."""
        return str(self.about["name"])

    @property
    def carried_by(self) -> Mapping[str, Any] | None:
        """Which earlier release has the weights of this one; None where it has them itself."""
        found: Mapping[str, Any] | None = self.about.get("carried_by")
        return found

    def reference(self) -> dict[str, str]:
        """How another release names this one."""
        return {"name": self.name, "release_sha256": self.sha256}


def all_released(releases: Folder) -> list[Released]:
    """Every release, by week.

    Raises:
        ReleaseDamaged: One cannot be read.
    """
    return [read_released(path) for path in releases_of(releases)]


def read_released(path: Path) -> Released:
    """One release. Raises ReleaseDamaged."""
    about = read_release(path)
    return Released(path, about, sha256_hex((path / RELEASE_NAME).read_bytes()))


def last_made(released: list[Released]) -> Released | None:
    """The end of the chain: the one that no other follows.

    Weeks may be released in any order, so the end is not the last by name. Where several have no
    follower (one was taken out of the middle), the one made last is the end.
    """
    followed = {r.about["previous"]["release_sha256"] for r in released if r.about["previous"]}
    ends = [r for r in released if r.sha256 not in followed]
    if released and not ends:
        raise ReleaseDamaged(
            f"{released[0].path.parent}: every release is followed by another: a circle",
            remedy="Restore release_history from a backup or a copy.",
        )
    return max(ends, key=lambda r: parse_utc(r.about["made_at"]), default=None)


def carrier_of(released: list[Released], checkpoint_digest: str, statement: str) -> Released | None:
    """The release that has these weights in full with this statement, if one has."""
    for one in released:
        weights = one.about["generation"]["checkpoint_digest"], one.about["statement_sha256"]
        if one.carried_by is None and weights == (checkpoint_digest, statement):
            return one
    return None


def require_signed(released: Released, key: PublicKey) -> None:
    """Raise ReleaseDamaged unless RELEASE.json is still what the foundry's key signed."""
    try:
        envelope = Envelope.from_json(durable.read_json(released.path / ENVELOPE_NAME))
        payload = verify_envelope(envelope, [key], payload_type=PAYLOAD_TYPE)
    except (InputError, VerificationFailed) as error:
        raise _damaged(released, f"its signature does not hold: {error}") from error
    if sha256_hex(payload) != released.sha256:
        raise _damaged(released, f"{RELEASE_NAME} is not what was signed: it was changed by hand")


def _damaged(released: Released, what: str) -> ReleaseDamaged:
    return ReleaseDamaged(
        f"{released.path}: {what}",
        remedy="Restore it from a backup or a copy; the next release names it by digest.",
    )


def verify_trusted(folder: Path, key: PublicKey) -> Verification:
    """Verify a release with a foundry's key, or with the predecessor of it that signed then."""
    try:
        own = (folder / "keys" / "foundry.pub").read_bytes()
    except OSError:
        own = b""
    pems = [one.to_pem() for one in key.lineage]
    return verify_release(folder, own if own in pems else pems[0])
