"""A fossil: one physics record with an identity, as one JSON object a line.

The CID is CIDv1 (base32, dag-cbor, sha2-256) over the DAG-CBOR of the object without `cid` and
`verifier`, where each field carries its bytes as `data` in place of `b64` or `values`. That object
is called the fossil's *block* here. Format and test vectors: docs/formats/fossil.md.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scf.core.canonical import dag_cbor, parse_json
from scf.core.clock import parse_utc
from scf.core.errors import InputError
from scf.core.identity import cid_digest, cid_from_digest
from scf.vault.fields import (
    FieldSpec,
    bytes_of_cut,
    check_block_field,
    read_field,
    to_base64,
)
from scf.vault.line_cuts import Cut, NeedsCare, cut_numbers
from scf.vault.provenance import Provenance

if TYPE_CHECKING:
    from scf.vault.fields import Array

SCHEMA = "scf.fossil/1"
PASS, FAIL = "PASS", "FAIL"
_AS_A_LINE = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode
_REQUIRED = ("cid", "schema", "source", "fields", "provenance", "verifier")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class FossilInvalid(InputError):
    """A line is not a fossil: a key is missing or has the wrong form."""

    kind = "form"


class NotJson(FossilInvalid):
    """A line is not strict JSON: half written, damaged, or with NaN and infinities in its text."""

    kind = "json"


class UnknownSchema(FossilInvalid):
    """A line says that it is of a kind or a version that we do not know."""

    kind = "schema"


class WrongCid(FossilInvalid):
    """The content is not what its CID promises: a bit flipped, or somebody edited it."""

    kind = "cid"

    def __init__(self, stated: str, actual: str) -> None:
        super().__init__(f"the CID says {stated[:64]}, the content has {actual}")
        self.stated, self.actual = stated, actual


@dataclass(frozen=True, slots=True)
class Fossil:
    """A well-formed fossil. Make one with `parse_fossil` or `make_fossil`.

    Attributes:
        cid: Its identity; recomputed from the content unless the reader asked otherwise.
        digest: The 32 bytes inside the CID, which cost 40 us to get out of its text.
        block: What the CID covers: the object without `cid` and `verifier`, each field with `data`.
        verifier: `{name, version, verdict, checks}`: who judged it, and how.
        specs: Name, type, shape and unit of each field, in the order of their names.
        provenance: Where it came from.
        position: Its line in the file that it was read from, from 0.
    """

    cid: str
    digest: bytes
    block: dict[str, Any]
    verifier: dict[str, Any]
    specs: tuple[FieldSpec, ...]
    provenance: Provenance
    position: int = 0

    def arrays(self) -> "dict[str, Array]":
        """Each field's array, without a copy (and therefore read-only)."""
        fields = self.block["fields"]
        return {spec.name: spec.array(fields[spec.name]["data"]) for spec in self.specs}

    def judged(self, verifier: dict[str, Any]) -> "Fossil":
        """The same fossil with this verifier, in a tenth of the time of `dataclasses.replace`."""
        return Fossil(
            self.cid,
            self.digest,
            self.block,
            verifier,
            self.specs,
            self.provenance,
            self.position,
        )

    @property
    def obj(self) -> dict[str, Any]:
        """The JSON object, fields in packed form."""
        fields = _packed(self.block["fields"])
        return {"cid": self.cid, **self.block, "fields": fields, "verifier": self.verifier}

    @property
    def source(self) -> Any:
        """Who made the record: an instrument, a code, a station."""
        return self.block["source"]

    @property
    def observed_at(self) -> str | None:
        """RFC 3339, or None where the source has no time."""
        observed_at: str | None = self.block.get("observed_at")
        return observed_at

    @property
    def params(self) -> Mapping[str, Any]:
        """Numbers and text of the record as a whole."""
        params: Mapping[str, Any] = self.block.get("params") or {}
        return params

    @property
    def condition_fields(self) -> tuple[str, ...]:
        """Fields that are given (known coordinates), not modelled."""
        return tuple(self.params.get("condition_fields", ()))

    @property
    def family(self) -> str:
        """The unit that is held out as a whole."""
        return self.provenance.family_at(self.position)

    @property
    def verdict(self) -> str:
        """`PASS` or `FAIL`."""
        verdict: str = self.verifier["verdict"]
        return verdict


def read_numbers(line: bytes, wanted: Collection[str]) -> dict[str, bytes]:
    """The bytes of some fields of a line that `parse_fossil` has accepted before.

    Nothing is judged again; this is how a line that is known to be good is read every epoch.

    Raises:
        InputError: The line is not one that was accepted.
    """
    cut = cut_numbers(line)
    if cut is not None:
        with contextlib.suppress(NeedsCare, ValueError, KeyError, TypeError):
            fields = json.loads(cut[0])["fields"]
            if len(fields) == len(cut[1]):
                pairs = zip(fields.items(), cut[1], strict=True)
                return {
                    name: bytes_of_cut(name, field, numbers)
                    for (name, field), numbers in pairs
                    if name in wanted
                }
    block = parse_fossil(line, verify_cid=False).block
    return {name: block["fields"][name]["data"] for name in wanted}


def parse_fossil(line: bytes, *, position: int = 0, verify_cid: bool = True) -> Fossil:
    """Read one line. The verdict is read, not judged: that is the validator's work.

    Args:
        line: Strict JSON.
        position: The line's place in its file, from 0 (see `Provenance.family_at`).
        verify_cid: Recompute the CID. False only for bytes whose digest was just verified.

    Raises:
        InputError: A subclass that says what is wrong; its `kind` is one word for statistics.
    """
    cut = _read_cut_line(line)
    if cut is not None:
        # Numbers that the fast way does not take are for the careful way to judge.
        with contextlib.suppress(NeedsCare):
            return _fossil_of(*cut, position=position, verify_cid=verify_cid)
    return _fossil_of(_read_line(line), {}, position=position, verify_cid=verify_cid)


def make_fossil(block: dict[str, Any], verifier: dict[str, Any], *, position: int = 0) -> Fossil:
    """A new fossil from its block (fields as `fields.field_of_array` makes them).

    Raises:
        InputError: As `parse_fossil`.
    """
    specs = tuple(check_block_field(name, field) for name, field in sorted(_fields(block)))
    provenance = _check_block(block, specs)
    digest = _digest_of_block(block)
    cid = cid_from_digest(digest)
    return Fossil(cid, digest, block, _read_verifier(verifier), specs, provenance, position)


def fossil_cid(obj: Mapping[str, Any]) -> str:
    """The CID of a fossil's JSON object, in packed or list form, with or without `cid`.

    Raises:
        InputError: A field cannot be read, or the object has no canonical form.
    """
    content = {key: value for key, value in obj.items() if key not in {"cid", "verifier"}}
    block, _ = _block_of(content)
    return cid_from_digest(_digest_of_block(block))


def encode_fossil(fossil: Fossil | Mapping[str, Any]) -> bytes:
    """One NDJSON line with its newline: packed fields, sorted keys, UTF-8. Deterministic.

    Raises:
        InputError: The object cannot be written as strict JSON, or a field cannot be read.
    """
    if isinstance(fossil, Fossil):
        obj = fossil.obj
    else:
        obj = dict(fossil)
        block, _ = _block_of({key: obj[key] for key in obj if key not in {"cid", "verifier"}})
        obj["fields"] = _packed(block["fields"])
    try:
        return _AS_A_LINE(obj).encode() + b"\n"
    except (ValueError, TypeError) as error:
        raise FossilInvalid(f"cannot be written as JSON: {error}") from error


def _packed(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fields of a block as they stand in JSON."""
    return {
        name: {
            **{key: item for key, item in field.items() if key != "data"},
            "b64": to_base64(field["data"]),
        }
        for name, field in fields.items()
    }


def _fields(obj: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    fields = obj.get("fields")
    if not isinstance(fields, Mapping) or not fields:
        raise FossilInvalid("'fields' must be an object with at least one field")
    return list(fields.items())


def _read_line(line: bytes) -> Any:
    try:
        return parse_json(line)
    except (InputError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise NotJson(str(error)) from error


def _read_cut_line(line: bytes) -> tuple[Any, dict[str, Cut]] | None:
    """The object on a line without its numbers, and the numbers by field; None: read it whole."""
    cut = cut_numbers(line)
    if cut is None:
        return None
    try:
        obj = parse_json(cut[0])
    except InputError:
        return None  # the message must tell the place in the whole line
    cuts = _cuts_by_field(obj, cut[1])
    return None if cuts is None else (obj, cuts)


def _fossil_of(obj: Any, cuts: dict[str, Cut], *, position: int, verify_cid: bool) -> Fossil:
    if not isinstance(obj, dict):
        raise FossilInvalid("the line is not a JSON object")
    if obj.get("schema") != SCHEMA:
        raise UnknownSchema(f"schema {str(obj.get('schema'))[:80]!r} is not {SCHEMA!r}")
    for key in _REQUIRED:
        if key not in obj:
            raise FossilInvalid(f"key {key!r} is missing")
    stated = obj.pop("cid")
    verifier = _read_verifier(obj.pop("verifier"))
    if not isinstance(stated, str):
        raise FossilInvalid("'cid' must be text")
    block, specs = _block_of(obj, cuts)
    provenance = _check_block(block, specs)
    if verify_cid:
        digest = _digest_of_block(block)
        actual = cid_from_digest(digest)
        if stated != actual:
            raise WrongCid(stated, actual)
    else:
        digest = cid_digest(stated)
    return Fossil(stated, digest, block, verifier, specs, provenance, position)


def _cuts_by_field(obj: Any, cuts: list[Cut]) -> dict[str, Cut] | None:
    """Whose numbers were cut out; None where they were not the numbers of fields, in order."""
    fields = obj.get("fields") if isinstance(obj, dict) else None
    if not isinstance(fields, dict) or len(fields) != len(cuts):
        return None
    by_field = {}
    for (name, field), cut in zip(fields.items(), cuts, strict=True):
        if not isinstance(field, dict) or cut.key not in field:
            return None
        if field[cut.key] not in ([], "") or ("b64" in field and "values" in field):
            return None
        by_field[name] = cut
    return by_field


def _block_of(
    content: Mapping[str, Any], cuts: Mapping[str, Cut] = MappingProxyType({})
) -> tuple[dict[str, Any], tuple[FieldSpec, ...]]:
    """The block of an object (already without cid and verifier), and the specs of its fields."""
    fields: dict[str, dict[str, Any]] = {}
    specs = []
    for name, field in sorted(_fields(content)):
        spec, data = read_field(name, field, cuts.get(name))
        rest = {key: item for key, item in field.items() if key not in {"b64", "values"}}
        fields[name] = {**rest, "data": data}
        specs.append(spec)
    return {**content, "fields": fields}, tuple(specs)


def _digest_of_block(block: Mapping[str, Any]) -> bytes:
    try:
        return hashlib.sha256(dag_cbor(block)).digest()
    except RecursionError as error:
        raise FossilInvalid("the object is nested too deeply") from error


def _check_block(block: Mapping[str, Any], specs: tuple[FieldSpec, ...]) -> Provenance:
    if not isinstance(block.get("source"), str | dict) or not block["source"]:
        raise FossilInvalid("'source' must be text or an object that says who made the record")
    observed_at = block.get("observed_at")
    if observed_at is not None and not _is_time(observed_at):
        raise FossilInvalid(f"'observed_at' {str(observed_at)[:40]!r} is neither RFC 3339 nor null")
    params = block.get("params")
    if params is not None:
        if not isinstance(params, dict):
            raise FossilInvalid("'params' must be an object")
        names = {spec.name for spec in specs}
        given = params.get("condition_fields", [])
        if not isinstance(given, list) or any(name not in names for name in given):
            raise FossilInvalid("params: 'condition_fields' must list names of fields")
    return Provenance.from_json(block["provenance"])


def _is_time(text: object) -> bool:
    if not isinstance(text, str) or _RFC3339.fullmatch(text) is None:
        return False
    try:
        parse_utc(text.upper())
    except ValueError:
        return False
    return True


def _read_verifier(verifier: object) -> dict[str, Any]:
    if not isinstance(verifier, dict):
        raise FossilInvalid("'verifier' must be an object")
    if verifier.get("verdict") not in {PASS, FAIL}:
        raise FossilInvalid("verifier: 'verdict' must be PASS or FAIL")
    if not isinstance(verifier.get("name"), str) or not verifier["name"]:
        raise FossilInvalid("verifier: 'name' is missing")
    return verifier
