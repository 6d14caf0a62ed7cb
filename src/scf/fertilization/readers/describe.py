"""What a file holds, told before it is read: cheap, from its metadata alone.

`Reader` asks for `recognises` and `read` only. A reader that can say more has a third method,
`describe(path) -> Description`; `describe` below asks for it where it is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scf.fertilization.readers.base import Reader


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """A field of each fossil.

    Attributes:
        name: The field's name.
        dtype: NumPy's name of the type.
        shape: Lengths of the axes of one fossil's array; () for a scalar. None where records
            differ.
        unit: As the source states it; empty where it states none.
        is_given: Whether it is known beforehand (a coefficient, a coordinate), not modelled.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    unit: str = ""
    is_given: bool = False


@dataclass(frozen=True)
class Description:
    """What a reader understood of a file.

    Attributes:
        layout: The layout in words.
        num_records: Records that reading will meet; None where only reading tells.
        fields: What each fossil will hold.
        num_families: Trajectories, simulations, stations that are held out whole; None where the
            file knows none, so that contiguous blocks are families.
        params: Numbers and text that hold for the whole file.
        notes: What is left out, and why.
    """

    layout: str
    num_records: int | None
    fields: tuple[FieldSummary, ...]
    num_families: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "layout": self.layout,
            "num_records": self.num_records,
            "num_families": self.num_families,
            "fields": [
                {
                    "name": item.name,
                    "dtype": item.dtype,
                    "shape": None if item.shape is None else list(item.shape),
                    "unit": item.unit,
                    "is_given": item.is_given,
                }
                for item in self.fields
            ],
            "params": dict(self.params),
            "notes": list(self.notes),
        }


@runtime_checkable
class Describer(Protocol):
    """A reader that can say what a file holds without reading it."""

    def describe(self, path: Path) -> Description:
        """What `read` would yield. Raises InputError where the file cannot be understood."""


def describe(reader: Reader, path: Path) -> Description | None:
    """The reader's description of a file; None where it has none to give.

    Raises:
        InputError: The file cannot be understood.
        MissingTool: The library for it is not installed.
    """
    return reader.describe(path) if isinstance(reader, Describer) else None
