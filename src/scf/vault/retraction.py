"""Retractions: fossils that were taken back. They stay in their shards and leave every later plan.

One file a fossil, `fossil_vault/retracted/<CID>.json`, a DSSE envelope by the vault's key over its
CID, the reason and the time. It is written once; nothing is ever un-retracted (the same record can
be ingested again under another CID, with what was wrong put right).
Format: docs/formats/retraction.md.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.clock import Clock, utc_text
from scf.core.errors import InputError, OperatorError, UsageError
from scf.core.identity import cid_digest
from scf.signing.envelope import Envelope
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, verify_envelope
from scf.storage import durable
from scf.storage.partitions import Folder

SCHEMA = "scf.retraction/1"
PAYLOAD_TYPE = "application/vnd.scf.retraction+json"
_REASON_MAX = 2000


class RetractionInvalid(InputError):
    """A file among the retractions is not one, or is about another fossil."""

    kind = "retraction"


@dataclass(frozen=True, slots=True)
class Retraction:
    """A fossil that was taken back.

    Attributes:
        cid: Which.
        reason: Why, in words.
        retracted_at: When, RFC 3339 in UTC.
    """

    cid: str
    reason: str
    retracted_at: str


class Retractions:
    """The folder of retractions.

    Args:
        folder: `fossil_vault/retracted`.
        keys: Public keys of the vault; a retraction signed by none of them is refused.
    """

    def __init__(self, folder: Folder, keys: Iterable[PublicKey]) -> None:
        self._folder = folder
        self._keys = list(keys)

    def add(self, cid: str, reason: str, *, signer: Signer, clock: Clock) -> Retraction:
        """Take a fossil back, durably. A second time changes nothing and returns the first.

        Raises:
            UsageError: No reason is given.
            BudgetExceeded, DriveError: It could not be written; the fossil is not retracted.
        """
        known = self.all().get(cid)
        if known is not None:
            return known
        text = reason.strip()
        if not text or len(text) > _REASON_MAX:
            raise UsageError(f"a reason of 1 to {_REASON_MAX} characters is needed")
        retraction = Retraction(cid, text, utc_text(clock.now()))
        payload = canonical_json({"schema": SCHEMA, **asdict(retraction)})
        self._folder.write_json(
            f"{cid}.json", signer.sign_envelope(PAYLOAD_TYPE, payload).to_json()
        )
        return retraction

    def all(self) -> dict[str, Retraction]:
        """Every retraction by CID, its signature verified.

        Raises:
            RetractionInvalid: A file is malformed.
            SignatureInvalid: One was not signed by the vault.
            OperatorError: There are some, and no key to verify them with.
        """
        found: dict[str, Retraction] = {}
        for path in sorted(self._folder.path.glob("b*.json")):
            if not self._keys:
                raise OperatorError(
                    "there are retractions, and no public key of the vault to verify them with",
                    remedy="Restore `keys/vault.pub` in the home from your backup.",
                )
            envelope = Envelope.from_json(durable.read_json(path, size_max_bytes=2**20))
            payload = parse_json(verify_envelope(envelope, self._keys, payload_type=PAYLOAD_TYPE))
            retraction = _read(payload)
            if retraction is None or retraction.cid != path.stem:
                raise RetractionInvalid(f"{path}: not the retraction of this fossil")
            found[retraction.cid] = retraction
        return found


def _read(value: Any) -> Retraction | None:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        return None
    parts = [value.get(key) for key in ("cid", "reason", "retracted_at")]
    if not all(isinstance(part, str) for part in parts):
        return None
    try:
        cid_digest(str(parts[0]))
    except InputError:
        return None
    return Retraction(*map(str, parts))
