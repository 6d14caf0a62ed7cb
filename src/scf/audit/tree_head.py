"""Signed tree heads: checkpoints of C2SP tlog-checkpoint, inside C2SP signed notes (Ed25519).

    scf.dev/audit/<UUID of the drive>
    <number of entries>
    <root, base64>
    <empty line>
    (em dash) <origin> <base64 of: 4 bytes of key hash, 64 bytes of signature>

Whoever holds such a note can tell for ever whether the log still has what it had then.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from scf.core.errors import VerificationFailed
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, SignatureInvalid, verify_signature

_ED25519 = b"\x01"  # signature type of the signed-note specification
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class TreeHeadInvalid(VerificationFailed):
    """Bytes are not a checkpoint note."""


@dataclass(frozen=True)
class TreeHead:
    """The whole log in two numbers.

    Attributes:
        origin: Which log; bound to its key.
        size: Number of entries.
        root: RFC 6962 root over them, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, signer: Signer) -> bytes:
        """The checkpoint note. Ed25519 is deterministic: the same head gives the same note."""
        text = self.text()
        signature = key_hash(self.origin, signer.public_key) + signer.sign(text.encode())
        line = f"\u2014 {self.origin} {base64.b64encode(signature).decode()}\n"
        return f"{text}\n{line}".encode()


def origin_of(log_id: str) -> str:
    """The name of a log. One key may sign several logs, each on its own drive."""
    return f"scf.dev/audit/{log_id}"


def key_hash(name: str, key: PublicKey) -> bytes:
    """The 4-byte key id of the signed-note specification."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:4]


def parse_note(note: bytes) -> tuple[TreeHead, list[tuple[str, bytes]]]:
    """Head and (name, key hash + signature) lines of a note. The signatures are NOT verified.

    Raises:
        TreeHeadInvalid: Not a note, not a checkpoint, or one with extension lines.
    """
    try:
        text, separator, tail = note.decode().rpartition("\n\n")
        origin, size, root, end = f"{text}\n".split("\n")
        if not separator or end or not origin or not _SIZE.fullmatch(size):
            raise TreeHeadInvalid("not a checkpoint: expected origin, size and root, one a line")
        head = TreeHead(origin, int(size), base64.b64decode(root, validate=True))
        if head.text() != f"{text}\n" or len(head.root) != 32:
            raise TreeHeadInvalid("not a checkpoint in its one written form")
        signatures = []
        for line in tail.splitlines(keepends=True):
            dash, name, value = line.removesuffix("\n").split(" ")
            if dash != "\u2014" or not line.endswith("\n"):
                raise TreeHeadInvalid("not a signature line of a note")
            signature = base64.b64decode(value, validate=True)
            if base64.b64encode(signature).decode() != value:
                raise TreeHeadInvalid("a signature is not in its one written form")
            signatures.append((name, signature))
    except (ValueError, binascii.Error) as error:
        raise TreeHeadInvalid(f"not a checkpoint note: {error}") from error
    return head, signatures


def verify_note(note: bytes, key: PublicKey, *, origin: str | None = None) -> TreeHead:
    """The head, once `key` (or a predecessor) is seen to have signed it; others are passed over.

    Args:
        note: The whole note.
        key: Whose signature is asked for.
        origin: Which log it must be about; None accepts any log of this key.

    Raises:
        TreeHeadInvalid: Not a note.
        SignatureInvalid: Another log's head, not signed by `key`, or the signature does not fit.
    """
    head, signatures = parse_note(note)
    if origin is not None and head.origin != origin:
        raise SignatureInvalid(f"tree head of log {head.origin!r}, expected {origin!r}")
    marks = {key_hash(head.origin, known): known for known in key.lineage}
    ours = [s for name, s in signatures if name == head.origin and s[:4] in marks]
    if not ours:
        raise SignatureInvalid(
            f"the tree head of {head.origin} has no signature by {key.key_id[:16]}"
        )
    for signature in ours:
        verify_signature(marks[signature[:4]], head.text().encode(), signature[4:])
    return head
