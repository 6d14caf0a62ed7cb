"""Arrays without a known layout: which axis counts records, and what the other arrays are.

The leading axis is the record axis (DESIGN section 5). The array with the most numbers says how
many records there are; every array of that length is a field. A vector whose length is that of
another axis of a field is a coordinate. Anything else would have to be guessed at, and is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scf.fertilization.readers.options import Windows
from scf.vault.fields import ShapeMismatch


@dataclass(frozen=True)
class LeadingAxis:
    """What the arrays of a file are.

    Attributes:
        num_records: Length of the record axis.
        columns: Names of the fields.
        coordinates: Names of vectors that go with another axis.
    """

    num_records: int
    columns: tuple[str, ...]
    coordinates: tuple[str, ...]


def leading_axis(shapes: Mapping[str, tuple[int, ...]], windows: Windows) -> LeadingAxis:
    """Find the record axis.

    Args:
        shapes: Shape of each array of numbers that has an axis.
        windows: Says which fields are wanted; the others are not looked at.

    Raises:
        ShapeMismatch: There is no array, or arrays with different leading axes.
        UnknownField: A wanted field is not there.
    """
    windows.check_fields(shapes)
    shapes = {name: shape for name, shape in shapes.items() if windows.keeps(name)}
    if not shapes:
        raise ShapeMismatch("no array with a record axis")
    largest = max(shapes, key=lambda name: (math.prod(shapes[name]), len(shapes[name])))
    num_records = shapes[largest][0]
    columns = tuple(name for name, shape in shapes.items() if shape[0] == num_records)
    others = {length for name in columns for length in shapes[name][1:]}
    rest = [name for name in shapes if name not in columns]
    strange = [name for name in rest if len(shapes[name]) > 1 or shapes[name][0] not in others]
    if strange:
        told = ", ".join(f"{name} has {list(shapes[name])}" for name in (largest, *strange))
        raise ShapeMismatch(
            f"the leading axis counts records, so it must be one length: {told}",
            remedy="Name the fields that belong together.",
        )
    return LeadingAxis(num_records, columns, tuple(rest))
