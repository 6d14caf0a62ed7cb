"""Fossils out of drafts: identity, provenance, packed numbers."""

import functools
from typing import Any

import numpy as np

from scf.fertilization.readers.base import Draft, Origin, Reader
from scf.fertilization.readers.options import options_of
from scf.vault.fields import Array, field_of_array
from scf.vault.fossil import PASS, SCHEMA, Fossil, make_fossil
from scf.vault.provenance import Provenance


def numbers_bytes(draft: Draft) -> int:
    """Bytes of all numbers of a record."""
    return sum(array.nbytes for array in draft.arrays.values())


class Mint:
    """Makes fossils of the drafts of one origin; what they share is worked out once."""

    def __init__(self, origin: Origin, reader: Reader) -> None:
        self._origin = origin
        self._reader_name = reader.name
        options = options_of(reader)
        # Another window of the same origin gives other fossils.
        self._options = {"options": options} if options else {}

    def fossil(self, draft: Draft) -> Fossil:
        """A fossil out of a draft; its verifier is still to come.

        Raises:
            InputError: The draft cannot be a fossil: NaN, a type or a name that fossils do not
                have.
        """
        provenance = Provenance(
            origin=self._origin.name,
            origin_sha256=self._origin.sha256,
            reader=self._reader_name,
            index=draft.index,
            licence=draft.licence,
            family=draft.family,
            flags=draft.flags,
        )
        block = {
            "schema": SCHEMA,
            "source": draft.source,
            "observed_at": draft.observed_at,
            "fields": {
                name: _field(array, draft.units.get(name, ""))
                for name, array in draft.arrays.items()
            },
            "params": dict(draft.params),
            "provenance": {**provenance.to_json(), **self._options},
        }
        return make_fossil(block, {"name": "unjudged", "verdict": PASS})


def _field(array: Array, unit: str) -> dict[str, Any]:
    """As `field_of_array`, whose look at the type takes 5 us: most of it, for a scalar."""
    dtype = _stored_name(array.dtype)
    if dtype is None or not array.flags.c_contiguous:
        return field_of_array(array, unit)
    return {"dtype": dtype, "shape": list(array.shape), "unit": unit, "data": array.tobytes()}


@functools.lru_cache(maxsize=64)
def _stored_name(dtype: np.dtype[Any]) -> str | None:
    """The name of a type whose bytes are stored as they are in memory; None for any other."""
    is_stored = dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype == dtype.newbyteorder("<")
    return dtype.name if is_stored else None
