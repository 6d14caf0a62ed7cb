"""Records out of arrays with a step axis (time, or the record axis), a block at a time.

A `Trajectory` is a run of steps that is held out as a whole; a `Series` is one field along it. The
numbers of a series are read in blocks of whole chunks, within a budget that all its neighbours
share, so that memory does not grow with the file and each chunk is decompressed once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scf.core.errors import InputError, UsageError
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.describe import FieldSummary
from scf.vault.fields import Array
from scf.vault.quarantine import Rejection

# All blocks that are held at a time, together. A 64x64 float32 record has 16 KiB.
BLOCK_BYTES = 8 * 2**20
# What a library raises on a damaged chunk: h5py OSError and RuntimeError, codecs the other two.
READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError)
# A parameter is a number, a text or a short list; what is longer belongs in a field.
_LIST_MAX = 64


class RecordTooLarge(InputError):
    """One record would take more than a line of the vault may."""

    kind = "size"


class UnknownField(InputError):
    """A field was asked for that the file has not."""

    kind = "fields"


@dataclass(frozen=True)
class Windows:
    """How steps become fossils.

    Attributes:
        window_steps: Steps in a fossil. With 1 the fields have no step axis, otherwise it leads.
        stride: Steps from the beginning of a fossil to that of the next; None for
            `window_steps`, so that every step is in one fossil.
        fields: Names of the fields to read; None for all.
    """

    window_steps: int = 1
    stride: int | None = None
    fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("window_steps", self.window_steps), ("stride", self.stride)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
        if self.fields is not None and not self.fields:
            raise UsageError("fields names no field", remedy="Leave it out to read all of them.")

    def starts(self, num_steps: int) -> range:
        """The first step of each window; empty where there are fewer steps than a window has."""
        return range(0, num_steps - self.window_steps + 1, self.stride or self.window_steps)

    def num_records(self, num_steps: int) -> int:
        """Records of a trajectory: its windows, or the one rejection of one that is too short."""
        return max(1, len(self.starts(num_steps)))

    def keeps(self, name: str) -> bool:
        """Whether a field is to be read."""
        return self.fields is None or name in self.fields

    def check_fields(self, known: Iterable[str]) -> None:
        """Raises UnknownField for a name that is not among `known`."""
        names = list(known)
        missing = [name for name in self.fields or () if name not in names]
        if missing:
            raise UnknownField(
                f"no field {', '.join(map(repr, missing))}; the file has {', '.join(names)}"
            )


@dataclass(frozen=True)
class Series:
    """One field along the steps of a trajectory.

    Attributes:
        name: The field's name.
        dtype: Type of its numbers.
        shape: Lengths of the axes of one step.
        read: Numbers of steps [start, stop), shape [stop - start, *shape].
        unit: As the source states it.
        chunk_steps: Steps that the file stores, and has to be read, together.
        is_given: Whether it is known beforehand, not modelled.
        marks_gaps: Whether NaN means that the source has no value there.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]
    unit: str = ""
    chunk_steps: int = 1
    is_given: bool = False
    marks_gaps: bool = False

    @property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Constant:
    """A field that is the same at all steps of a trajectory: given, not modelled.

    Attributes:
        name: The field's name.
        array: Its numbers.
        unit: As the source states it.
    """

    name: str
    array: Array
    unit: str = ""


@dataclass(frozen=True)
class Trajectory:
    """A run of steps that belong together.

    Attributes:
        num_steps: How many.
        series: The fields along it.
        family: Its name; None where the source knows no families.
        constants: Fields that do not change along it.
        params: Numbers and text that do not change along it.
        step_params: Numbers that do: the leading axis counts steps. A window gets a list.
        observed_at: RFC 3339 of a step.
        family_of: The family of a step, where families are stated step by step.
    """

    num_steps: int
    series: tuple[Series, ...]
    family: str | None = None
    constants: tuple[Constant, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    step_params: Mapping[str, Array] = field(default_factory=dict)
    observed_at: Callable[[int], str | None] | None = None
    family_of: Callable[[int], str] | None = None


def records(
    trajectories: Iterable[Trajectory],
    windows: Windows,
    origin: Origin,
    *,
    source: str,
    licence: str | None = None,
) -> Iterator[Record]:
    """A draft a window, in order; a rejection for a window that cannot be read or has gaps.

    Raises:
        RecordTooLarge: A record would not fit a line of `origin.line_max_bytes`.
        InputError: The file has gone.
    """
    index = 0
    for trajectory in trajectories:
        _check_size(trajectory, windows, origin)
        starts = windows.starts(trajectory.num_steps)
        if not starts:
            reason = f"{trajectory.num_steps} steps, the window takes {windows.window_steps}"
            yield Rejection("window", f"{trajectory.family or origin.name}: {reason}", index=index)
            index += 1
        budget = BLOCK_BYTES // max(1, len(trajectory.series))
        blocks = [_Blocks(series, trajectory.num_steps, budget) for series in trajectory.series]
        about = _About(trajectory, windows, source, licence)
        for start in starts:
            yield _record(about, blocks, start, index, origin)
            index += 1


def summaries(trajectory: Trajectory, windows: Windows) -> tuple[FieldSummary, ...]:
    """What each fossil of the trajectory holds."""
    lead = () if windows.window_steps == 1 else (windows.window_steps,)
    return (
        *(
            FieldSummary(s.name, s.dtype.name, lead + s.shape, s.unit, s.is_given)
            for s in trajectory.series
        ),
        *(
            FieldSummary(c.name, c.array.dtype.name, c.array.shape, c.unit, is_given=True)
            for c in trajectory.constants
        ),
    )


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether fossils can carry numbers of this type: bool, integers and floats to 64 bits."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def plain(value: Any) -> Any:
    """A value as a parameter: number, text, or a short list of them.

    None for what is none of these, and for NaN and infinities: a reading that is not there.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1:
            return _plain_list(value.ravel().tolist())
        value = value.ravel()[0].item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple):
        return _plain_list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def plain_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that can be parameters."""
    found = {name: plain(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def grid_params(name: str, coordinates: Array) -> dict[str, Any]:
    """A coordinate axis: its first and last value and length; all values where it is not even."""
    values = np.asarray(coordinates, np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        return {}
    params: dict[str, Any] = {f"grid_{name}": [float(values[0]), float(values[-1]), values.size]}
    even = np.linspace(values[0], values[-1], values.size)
    # float32 coordinates are even to 1 in 10^6 of their largest value.
    tolerance = 4e-6 * max(abs(values[0]), abs(values[-1]), abs(values[-1] - values[0]))
    if np.abs(values - even).max() > tolerance and values.size <= 1024:
        params[f"grid_{name}_values"] = values.tolist()
    return params


@dataclass(frozen=True)
class _About:
    """What all records of a trajectory share."""

    trajectory: Trajectory
    windows: Windows
    source: str
    licence: str | None

    def draft(self, index: int, start: int, arrays: dict[str, Array]) -> Draft:
        trajectory, count = self.trajectory, self.windows.window_steps
        along = {
            name: values[start] if count == 1 else values[start : start + count]
            for name, values in trajectory.step_params.items()
        }
        given = [series.name for series in trajectory.series if series.is_given]
        given += [constant.name for constant in trajectory.constants]
        units = {series.name: series.unit for series in trajectory.series}
        units |= {constant.name: constant.unit for constant in trajectory.constants}
        family = trajectory.family_of(start) if trajectory.family_of else trajectory.family
        return Draft(
            index=index,
            source=self.source,
            arrays=arrays | {constant.name: constant.array for constant in trajectory.constants},
            units={name: unit for name, unit in units.items() if unit},
            params={
                **trajectory.params,
                **plain_params(along),
                **({"condition_fields": given} if given else {}),
            },
            observed_at=trajectory.observed_at(start) if trajectory.observed_at else None,
            family=family,
            licence=self.licence,
        )


class _Blocks:
    """The steps of a series, held a block at a time."""

    def __init__(self, series: Series, num_steps: int, budget_bytes: int) -> None:
        fit = max(1, budget_bytes // max(1, series.step_bytes))
        self._chunk = max(1, series.chunk_steps)
        self.series = series
        self._num_steps = num_steps
        # Up to twice the budget for one whole chunk; a larger one is decompressed once a part.
        self._takes_chunks = self._chunk <= 2 * fit
        self._steps = max(self._chunk, fit - fit % self._chunk) if self._takes_chunks else fit
        self._first, self._block = 0, np.empty((0,))

    def window(self, start: int, stop: int) -> Array:
        """Numbers of steps [start, stop). A block, once handed out, is never written again."""
        if start < self._first or stop > self._first + len(self._block):
            self._load(start, stop)
        return self._block[start - self._first : stop - self._first]

    def _load(self, start: int, stop: int) -> None:
        self._block = np.empty((0,))  # let go of the old one first
        if self._takes_chunks:
            first = start - start % self._chunk
            last = first + self._steps
        else:
            first = start
            last = min(start + self._steps, start - start % self._chunk + self._chunk)
        last = min(self._num_steps, max(stop, last))
        try:
            self._block, self._first = self.series.read(first, last), first
        except READ_ERRORS:
            if (first, last) == (start, stop):
                raise
            # Something in the block is damaged; what is asked for may still be whole.
            self._block, self._first = self.series.read(start, stop), start


def _record(
    about: _About, blocks: Sequence[_Blocks], start: int, index: int, origin: Origin
) -> Record:
    count = about.windows.window_steps
    arrays: dict[str, Array] = {}
    for block in blocks:
        name = block.series.name
        try:
            steps = block.window(start, start + count)
        except READ_ERRORS as error:
            if not origin.path.exists():
                raise InputError(f"{origin.path}: has gone while it was read") from error
            return Rejection("damaged", f"field {name!r} cannot be read: {error}", index=index)
        if block.series.marks_gaps and steps.dtype.kind == "f":
            missing = int(np.isnan(steps).sum())
            if missing:
                reason = f"field {name!r}: {missing} of {steps.size} numbers are missing"
                return Rejection("gap", reason, index=index)
        arrays[name] = steps[0] if count == 1 else steps
    return about.draft(index, start, arrays)


def _check_size(trajectory: Trajectory, windows: Windows, origin: Origin) -> None:
    numbers = sum(s.step_bytes for s in trajectory.series) * windows.window_steps
    numbers += sum(constant.array.nbytes for constant in trajectory.constants)
    line_bytes = numbers * 4 // 3  # base64
    if line_bytes > origin.line_max_bytes:
        raise RecordTooLarge(
            f"{origin.path}: a record takes {line_bytes} bytes, "
            f"a line of the vault at most {origin.line_max_bytes}",
            remedy="Read fewer fields, or fewer steps a window, or raise the limit on lines.",
        )


def _plain_list(values: Sequence[Any]) -> list[Any] | None:
    if not 0 < len(values) <= _LIST_MAX:
        return None
    items = [plain(value) for value in values]
    return None if any(item is None for item in items) else items
