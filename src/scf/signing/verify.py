"""Check signatures with public keys alone. Safe to import anywhere, rented machines included."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scf.core.errors import InputError, VerificationFailed
from scf.signing.envelope import Envelope, pae


class SignatureInvalid(VerificationFailed):
    """No signature of a trusted key fits."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key (RFC 8032).

    Attributes:
        raw: Its 32 bytes.
        predecessors: Keys that it replaced, latest first, each rotation verified
            (`signing.rotation`). What they signed counts as signed by a key that this one trusts.
    """

    raw: bytes
    predecessors: tuple["PublicKey", ...] = field(default=(), compare=False, repr=False)

    @property
    def lineage(self) -> tuple["PublicKey", ...]:
        """Itself, then its predecessors."""
        return (self, *self.predecessors)

    @property
    def key_id(self) -> str:
        """SHA-256 of the raw key, lower-case hexadecimal."""
        return hashlib.sha256(self.raw).hexdigest()

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, as openssl reads it."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @classmethod
    def from_pem(cls, pem: bytes) -> "PublicKey":
        """Read SubjectPublicKeyInfo. Raises InputError for anything but an Ed25519 public key."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InputError(f"not a public key in PEM: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"expected an Ed25519 public key, found {type(key).__name__}")
        return cls(key.public_bytes_raw())


def verify_signature(key: PublicKey, message: bytes, signature: bytes) -> None:
    """Raise SignatureInvalid unless `signature` is `key`'s over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureInvalid(f"the signature of key {key.key_id[:16]} does not fit") from error


def verify_envelope(envelope: Envelope, keys: Iterable[PublicKey], *, payload_type: str) -> bytes:
    """The payload, once a signature of one of `keys` over it and `payload_type` fits.

    A key's predecessors count as well.

    Raises:
        SignatureInvalid: Wrong type, no signature of these keys, or one that does not fit.
    """
    if envelope.payload_type != payload_type:
        raise SignatureInvalid(
            f"the envelope holds {envelope.payload_type!r}, expected {payload_type!r}"
        )
    message = pae(envelope.payload_type, envelope.payload)
    trusted = {key.key_id: key for trusted in keys for key in trusted.lineage}
    named = [s for s in envelope.signatures if s.key_id in trusted]
    if not named:
        found = ", ".join(s.key_id[:16] for s in envelope.signatures) or "none"
        raise SignatureInvalid(
            f"no signature by a trusted key (signed by {found}; "
            f"trusted {', '.join(key_id[:16] for key_id in trusted) or 'none'})"
        )
    for signature in named:
        verify_signature(trusted[signature.key_id], message, signature.value)
    return envelope.payload
