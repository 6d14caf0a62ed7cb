"""Where a fossil came from: which bytes, read by what, as which record."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.core.errors import InputError
from scf.core.identity import cid_digest, is_sha256_hex

# Where no family is known, this many neighbours in the origin form one (DESIGN section 5).
FAMILY_BLOCK = 64


class ProvenanceInvalid(InputError):
    """The provenance is missing something that a reader of the fossil needs to find its origin."""

    kind = "provenance"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of one fossil.

    Attributes:
        origin: Path of the file, relative to what was ingested, with `/`.
        origin_sha256: Digest of that file's bytes.
        reader: Which reader understood it; None where the source does not say.
        index: Place of the record in the origin, from 0; None where the source does not say.
        licence: Terms of the source, None when unknown.
        parents: CIDs of the fossils from which this one was made.
        family: The unit that is held out as a whole (trajectory, simulation, station-week).
        flags: What the source itself says about the quality of its numbers.
    """

    origin: str
    origin_sha256: str
    reader: str | None = None
    index: int | None = None
    licence: str | None = None
    parents: tuple[str, ...] = ()
    family: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> "Provenance":
        """Read the JSON form. Keys beyond those above are left alone.

        Raises:
            ProvenanceInvalid: Origin or its digest is missing, or a key has the wrong form.
        """
        if not isinstance(value, Mapping):
            raise ProvenanceInvalid("'provenance' must be an object")
        origin = value.get("origin")
        if not isinstance(origin, str) or not origin:
            raise ProvenanceInvalid("provenance: 'origin' is missing")
        if not is_sha256_hex(value.get("origin_sha256")):
            raise ProvenanceInvalid(
                "provenance: 'origin_sha256' must be 64 lower-case hexadecimal digits"
            )
        index = value.get("index")
        if index is not None and (type(index) is not int or index < 0):
            raise ProvenanceInvalid("provenance: 'index' must be an integer from 0 up")
        flags = value.get("flags")
        if flags is not None and not isinstance(flags, Mapping):
            raise ProvenanceInvalid("provenance: 'flags' must be an object")
        return cls(
            origin=origin,
            origin_sha256=value["origin_sha256"],
            reader=_text_or_none(value, "reader"),
            index=index,
            licence=_text_or_none(value, "licence"),
            parents=_parents(value.get("parents")),
            family=_text_or_none(value, "family"),
            flags=flags or {},
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON form; `family` and `flags` only where there are any."""
        value: dict[str, Any] = {
            "origin": self.origin,
            "origin_sha256": self.origin_sha256,
            "reader": self.reader,
            "index": self.index,
            "licence": self.licence,
            "parents": list(self.parents),
        }
        if self.family is not None:
            value["family"] = self.family
        if self.flags:
            value["flags"] = dict(self.flags)
        return value

    def family_at(self, position: int) -> str:
        """The family: as stated, else blocks of 64 neighbours in the origin.

        Args:
            position: The line's place in the file that is being read, from 0; used where the
                provenance states no index.
        """
        if self.family is not None:
            return self.family
        index = position if self.index is None else self.index
        return f"{self.origin}#{index // FAMILY_BLOCK}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, streaming. Raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _text_or_none(value: Mapping[str, Any], key: str) -> str | None:
    text = value.get(key)
    if text is None:
        return None
    if not isinstance(text, str) or not text:
        raise ProvenanceInvalid(f"provenance: {key!r} must be text")
    return text


def _parents(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(cid, str) for cid in value):
        raise ProvenanceInvalid("provenance: 'parents' must be a list of CIDs")
    for cid in value:
        try:
            cid_digest(cid)
        except InputError as error:
            raise ProvenanceInvalid(f"provenance: parent {error}") from error
    return tuple(value)
