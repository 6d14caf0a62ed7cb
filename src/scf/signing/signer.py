"""Something that can sign. How it holds its key is its own matter; `keys.load_signer` makes one."""

from collections.abc import Callable
from dataclasses import dataclass, field

from scf.signing.envelope import Envelope, Signature, pae
from scf.signing.verify import PublicKey


@dataclass(frozen=True)
class Signer:
    """Signs for one role.

    Attributes:
        role: What the key is for: `vault` or `foundry`.
        public_key: Whose signatures these are.
    """

    role: str
    public_key: PublicKey
    _sign: Callable[[bytes], bytes] = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 over `message`: 64 bytes, the same each time."""
        return self._sign(message)

    def sign_envelope(self, payload_type: str, payload: bytes) -> Envelope:
        """A DSSE envelope with this one signature."""
        value = self.sign(pae(payload_type, payload))
        return Envelope(payload_type, payload, (Signature(self.public_key.key_id, value),))
