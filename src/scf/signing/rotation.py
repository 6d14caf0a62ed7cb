"""Key rotation: a statement, signed by the old key, that names the new one.

`keys/rotations.json` holds them all in order, each a DSSE envelope. Who trusts a key may follow
them to the present one, as `release/verify_release.py` does; and what an old key signed before it
was replaced stays good, since the present key descends from it. A rotation is for a planned change:
whoever stole the old key could write one as well, so after a theft the new key is told by other
ways, and old copies of the old one are not to be trusted. Format: docs/formats/release.md.
"""

from collections.abc import Sequence
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError
from scf.signing.envelope import Envelope
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, verify_envelope

SCHEMA = "scf.key-rotation/1"
PAYLOAD_TYPE = "application/vnd.scf.key-rotation+json"
ROTATIONS_NAME = "rotations.json"


def rotation(old: Signer, new: PublicKey, *, reason: str, at: str) -> Envelope:
    """The statement that `new` replaces the key of `old`."""
    payload = canonical_json(
        {
            "schema": SCHEMA,
            "role": old.role,
            "old_key": old.public_key.to_pem().decode(),
            "new_key": new.to_pem().decode(),
            "reason": reason,
            "at": at,
        }
    )
    return old.sign_envelope(PAYLOAD_TYPE, payload)


def lineage(current: PublicKey, role: str, rotations: Sequence[Any]) -> tuple[PublicKey, ...]:
    """The keys of `role` that `current` descends from, latest first.

    Args:
        current: The present key.
        role: Its role.
        rotations: The content of `rotations.json`: envelopes as JSON, oldest first.

    Raises:
        InputError: One is malformed.
        SignatureInvalid: One is not signed by the key that it says it replaces.
    """
    found: list[PublicKey] = []
    wanted = current
    for value in reversed(rotations):
        envelope = Envelope.from_json(value)
        about = parse_json(envelope.payload)
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise InputError(f"not a key rotation of schema {SCHEMA}")
        new = PublicKey.from_pem(str(about.get("new_key")).encode())
        if about.get("role") == role and new == wanted:
            wanted = PublicKey.from_pem(str(about.get("old_key")).encode())
            verify_envelope(envelope, [wanted], payload_type=PAYLOAD_TYPE)
            found.append(wanted)
    return tuple(found)
