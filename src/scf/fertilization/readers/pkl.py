"""Pickles of arrays: a dict of columns, a list of records, or one array; never run as a program."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers import safe_pickle
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.columns import drafts, layout_of, rows_of, scalar_value
from scf.vault.fields import Array
from scf.vault.quarantine import Rejection


class PickleReader:
    """`.pkl` and `.pickle`, read by `safe_pickle`."""

    name = "pkl"

    def recognises(self, path: Path, head: bytes) -> bool:
        del head
        return path.name.endswith((".pkl", ".pickle"))

    def read(self, origin: Origin) -> Iterator[Record]:
        value = safe_pickle.load(origin.path)
        source = f"file {origin.name}"
        if isinstance(value, np.ndarray):
            value = {"values": value}
        if isinstance(value, dict):
            yield from _columns(value, source)
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
            yield from _records(value, source)
        else:
            raise InputError(
                f"{origin.path}: holds a {type(value).__name__}; "
                "known are a dict of arrays, a list of dicts, and one array"
            )


def _columns(value: Mapping[Any, Any], source: str) -> Iterator[Record]:
    arrays = {str(name): _array(str(name), item) for name, item in value.items()}
    scalars = {n: scalar_value(n, a) for n, a in arrays.items() if a.ndim == 0}
    columns = {name: array for name, array in arrays.items() if array.ndim}
    layout = layout_of({name: array.shape for name, array in columns.items()}, scalars)
    yield from drafts(layout, rows_of(columns), source=source)


def _records(records: list[Any], source: str) -> Iterator[Record]:
    for index, record in enumerate(records):
        try:
            values = {str(name): _array(str(name), item) for name, item in record.items()}
            numbers = {name: a for name, a in values.items() if a.dtype.kind in "biuf"}
            texts = {n: scalar_value(n, a) for n, a in values.items() if n not in numbers}
        except InputError as error:
            yield Rejection("row", str(error), index=index)
            continue
        family = texts.pop("family", None)
        yield Draft(index, source, arrays=numbers, params=texts, family=family)


def _array(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name!r} is a ragged list: {error}") from error
    if array.dtype.kind not in "biufU":
        raise InputError(f"{name!r} holds {array.dtype} values, not numbers")
    return array
