"""DSSE envelopes (Dead Simple Signing Envelope, v1.0.2): what is signed, and by which key."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from scf.core.errors import InputError

IN_TOTO_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Signature:
    """One signature over an envelope; `key_id` is a hint, never a proof."""

    key_id: str
    value: bytes


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, and signatures over both."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON form of the protocol."""
        return {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [
                {"keyid": s.key_id, "sig": base64.b64encode(s.value).decode()}
                for s in self.signatures
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> "Envelope":
        """Read the JSON form. Raises InputError if it is not one."""
        try:
            return cls(
                payload_type=_text(value["payloadType"]),
                payload=base64.b64decode(_text(value["payload"]), validate=True),
                signatures=tuple(
                    Signature(_text(s["keyid"]), base64.b64decode(_text(s["sig"]), validate=True))
                    for s in value["signatures"]
                ),
            )
        except (KeyError, TypeError, binascii.Error, ValueError) as error:
            raise InputError(f"not a DSSE envelope: {error!r}") from error


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that are really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value
