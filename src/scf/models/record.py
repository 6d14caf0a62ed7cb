"""What a record is to a model: which fields it draws, which it is given, and in which units.

A record is flattened, field after field in the order of `RecordLayout`, into one vector x of D
numbers (the modelled fields) and one vector c of K numbers (the given fields: coordinates such as
`cos_zenith` that are known without the record). No torch here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.core.errors import InputError

Floats = npt.NDArray[np.float64]

PERIODIC, WALL, OPEN = "periodic", "wall", "open"
BOUNDARIES = (PERIODIC, WALL, OPEN)


def boundary_of(text: str) -> str:
    """A boundary as layouts keep it: one word, or one for each axis with commas; "" if unknown.

    `periodic` closes the grid on itself, at a `wall` it is mirrored (nothing flows through), beyond
    an `open` edge there is nothing.
    """
    words = [word.strip() for word in text.split(",")]
    if not set(words) <= set(BOUNDARIES):
        return ""
    return words[0] if len(set(words)) == 1 else ",".join(words)


class LayoutMismatch(InputError):
    """A record's fields are not those that the model (or the first record) has."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            remedy="Give records of one kind: same field names, shapes and units in each.",
        )


@dataclass(frozen=True)
class FieldLayout:
    """One field of a record.

    Attributes:
        name: As in the fossil.
        dtype: numpy name of the stored numbers; samples are returned in it.
        shape: Of one record; () for a single number.
        unit: As in the fossil; "" where it has none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "unit": self.unit,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FieldLayout":
        return cls(value["name"], value["dtype"], tuple(value["shape"]), value["unit"])


@dataclass(frozen=True)
class RecordLayout:
    """The fields of a record, in the order in which they are flattened.

    Attributes:
        modelled: Fields whose density is learned: D numbers in all.
        given: Fields that the density is conditioned on: K numbers in all, K may be 0.
        boundary: Of the grid that the fields share, as `boundary_of` has it; "" where unknown.
    """

    modelled: tuple[FieldLayout, ...]
    given: tuple[FieldLayout, ...] = ()
    boundary: str = ""

    @classmethod
    def of(
        cls,
        fields: Iterable[FieldLayout],
        given_names: Iterable[str] = (),
        *,
        boundary: str = "",
    ) -> "RecordLayout":
        """Order fields by name, so that a layout does not depend on the order in a file.

        `boundary` is what the record's params say; words that are not known are not kept.

        Raises:
            LayoutMismatch: No field is left to model, or a given field does not exist.
        """
        ordered = sorted(fields, key=lambda field: field.name)
        given = set(given_names)
        if missing := given - {field.name for field in ordered}:
            raise LayoutMismatch(f"given field {min(missing)!r} is not among the record's fields")
        layout = cls(
            tuple(field for field in ordered if field.name not in given and field.size > 0),
            tuple(field for field in ordered if field.name in given),
            boundary_of(boundary),
        )
        if not layout.modelled:
            raise LayoutMismatch("the records have no field to model")
        return layout

    @property
    def size(self) -> int:
        """D, how many modelled numbers a record has."""
        return sum(field.size for field in self.modelled)

    @property
    def given_size(self) -> int:
        """K, how many given numbers a record has."""
        return sum(field.size for field in self.given)

    @property
    def units(self) -> tuple[str, ...]:
        """The different units of the modelled fields, sorted."""
        return tuple(sorted({field.unit for field in self.modelled}))

    @property
    def site_shape(self) -> tuple[int, ...] | None:
        """The grid that all modelled fields share (such as 24 hours), or None."""
        shapes = {field.shape for field in self.modelled}
        return shapes.pop() if len(shapes) == 1 and () not in shapes else None

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The boundary of each axis of the grid; `open` where nothing is known.

        Raises:
            LayoutMismatch: The boundary names more or fewer axes than the grid has.
        """
        axes = len(self.site_shape or ())
        words = self.boundary.split(",") if self.boundary else [OPEN]
        if len(words) not in {1, axes}:
            raise LayoutMismatch(
                f"boundary {self.boundary!r} names {len(words)} axes, the grid has {axes}"
            )
        return tuple(words * axes if len(words) == 1 else words)

    def slices(self, *, given: bool = False) -> dict[str, slice]:
        """Where each modelled (or given) field lies in the flat vector."""
        places, start = {}, 0
        for field in self.given if given else self.modelled:
            places[field.name] = slice(start, start + field.size)
            start += field.size
        return places

    def pack(self, arrays: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Flatten arrays [B, *shape] into x [B, D] and c [B, K], in float64 and original units.

        Raises:
            LayoutMismatch: A field is absent or has another shape.
        """
        return self._flatten(arrays, self.modelled), self._flatten(arrays, self.given)

    def pack_modelled(self, arrays: Mapping[str, Any]) -> Floats:
        """Flatten modelled fields alone into x [B, D]. Raises LayoutMismatch."""
        return self._flatten(arrays, self.modelled)

    def pack_given(self, arrays: Mapping[str, Any], num: int) -> Floats:
        """Flatten given fields alone into c [num, K]; (num, 0) where nothing is given.

        Raises:
            LayoutMismatch: A field is absent or has another shape.
        """
        return self._flatten(arrays, self.given) if self.given else np.zeros((num, 0))

    def unpack(self, x_BD: Floats, *, given: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Arrays [B, *shape] by name from a flat [B, D] (or [B, K]), in each field's own dtype."""
        arrays = {}
        for field in self.given if given else self.modelled:
            flat = x_BD[:, self.slices(given=given)[field.name]]
            arrays[field.name] = _cast(flat, np.dtype(field.dtype)).reshape(-1, *field.shape)
        return arrays

    def _flatten(self, arrays: Mapping[str, Any], fields: tuple[FieldLayout, ...]) -> Floats:
        columns = []
        for field in fields:
            if field.name not in arrays:
                raise LayoutMismatch(f"field {field.name!r} is missing")
            values = np.asarray(arrays[field.name])
            if values.shape[1:] != field.shape:
                raise LayoutMismatch(
                    f"field {field.name!r} has shape {values.shape[1:]}, expected {field.shape}"
                )
            columns.append(values.reshape(len(values), field.size).astype(np.float64))
        rows = len(next(iter(arrays.values()))) if arrays else 0
        return np.concatenate(columns, axis=1) if columns else np.zeros((rows, 0))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "modelled": [field.to_json() for field in self.modelled],
            "given": [field.to_json() for field in self.given],
        }
        return value | ({"boundary": self.boundary} if self.boundary else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RecordLayout":
        return cls(
            tuple(FieldLayout.from_json(field) for field in value["modelled"]),
            tuple(FieldLayout.from_json(field) for field in value["given"]),
            str(value.get("boundary", "")),
        )


def _cast(values: Floats, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """To `dtype`; whole-number types are rounded and kept within their range."""
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # float(limits.max) may round up past the range for 64 bits: step one float back.
        top = np.nextafter(float(limits.max), 0.0) if limits.bits == 64 else float(limits.max)
        return np.clip(np.rint(values), float(limits.min), top).astype(dtype)
    return values.astype(dtype)
