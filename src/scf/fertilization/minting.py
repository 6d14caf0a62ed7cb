"""Fossils out of drafts: identity, provenance, packed numbers."""

from scf.fertilization.readers.base import Draft, Origin, Reader
from scf.fertilization.readers.options import options_of
from scf.vault.fields import field_of_array
from scf.vault.fossil import PASS, SCHEMA, Fossil, make_fossil
from scf.vault.provenance import Provenance


def numbers_bytes(draft: Draft) -> int:
    """Bytes of all numbers of a record."""
    return sum(array.nbytes for array in draft.arrays.values())


def mint(draft: Draft, origin: Origin, reader: Reader) -> Fossil:
    """A fossil out of a draft; its verifier is still to come.

    Raises:
        InputError: The draft cannot be a fossil: NaN, a type or a name that fossils do not have.
    """
    provenance = Provenance(
        origin=origin.name,
        origin_sha256=origin.sha256,
        reader=reader.name,
        index=draft.index,
        licence=draft.licence,
        family=draft.family,
        flags=draft.flags,
    ).to_json()
    options = options_of(reader)
    if options:  # another window of the same origin gives other fossils
        provenance["options"] = options
    block = {
        "schema": SCHEMA,
        "source": draft.source,
        "observed_at": draft.observed_at,
        "fields": {
            name: field_of_array(array, draft.units.get(name, ""))
            for name, array in draft.arrays.items()
        },
        "params": dict(draft.params),
        "provenance": provenance,
    }
    return make_fossil(block, {"name": "unjudged", "verdict": PASS})
