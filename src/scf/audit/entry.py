"""One entry of the audit log: what happened to which thing, and when.

An entry is canonical JSON (RFC 8785), so that anybody who has its values can make its bytes and so
its leaf hash. Format: docs/formats/audit-log.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.clock import parse_utc
from scf.core.errors import InputError, UsageError, VerificationFailed

SCHEMA = "scf.audit/1"

# Entry bundles carry 16-bit lengths (C2SP tlog-tiles): a larger thing is logged by its digest.
SIZE_MAX_BYTES = 65535


class EntryInvalid(VerificationFailed):
    """Bytes in the log are not an entry of scf.audit/1."""


@dataclass(frozen=True)
class Entry:
    """One event.

    Attributes:
        at: When it was appended, RFC 3339 in UTC. The order of entries is the truth, not this.
        event: What happened, as `room.verb`, such as `run.transition` or `release.made`.
        subject: What it happened to: a run, a generation, a release.
        details: A JSON object; digests rather than things.
        key: Names the event itself, so that appending it twice leaves one entry; None for events
            that may well happen twice.
    """

    at: str
    event: str
    subject: str
    details: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None

    def encode(self) -> bytes:
        """The leaf data.

        Raises:
            UsageError: Larger than an entry may be.
            InputError: The details are not JSON.
        """
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "at": self.at,
            "event": self.event,
            "subject": self.subject,
            "details": dict(self.details),
        }
        if self.key is not None:
            value["key"] = self.key
        data = canonical_json(value)
        if len(data) > SIZE_MAX_BYTES:
            raise UsageError(
                f"audit entry {self.event!r} takes {len(data)} bytes, at most {SIZE_MAX_BYTES} fit",
                remedy="Log the digest of what is large, and keep the thing itself elsewhere.",
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """Read leaf data. Raises EntryInvalid if `encode` could not have written it."""
        try:
            value = parse_json(data)
            if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
                raise EntryInvalid(f"not an audit entry of schema {SCHEMA}")
            entry = cls(**value)
            texts = (entry.at, entry.event, entry.subject, "" if entry.key is None else entry.key)
            if not all(isinstance(text, str) for text in texts):
                raise EntryInvalid("at, event, subject and key must be text")
            parse_utc(entry.at)
            if not isinstance(entry.details, dict) or entry.encode() != data:
                raise EntryInvalid("an audit entry is not in canonical form")
        except (TypeError, ValueError, UsageError, InputError) as error:
            raise EntryInvalid(f"not an audit entry: {error}") from error
        return entry
