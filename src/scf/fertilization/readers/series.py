"""Records out of arrays with a step axis (time, or the record axis), a block at a time.

A `Trajectory` is a run of steps that is held out as a whole; a `Series` is one field along it. The
numbers of a series are read in blocks of whole chunks, within a budget that all its neighbours
share, so that memory does not grow with the file and each chunk is decompressed once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scf.core.errors import InputError
from scf.core.units import format_bytes
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.describe import FieldSummary
from scf.fertilization.readers.options import Windows
from scf.fertilization.readers.patches import Grid, Patches
from scf.vault.fields import Array
from scf.vault.provenance import FAMILY_BLOCK
from scf.vault.quarantine import Rejection

# All blocks that are held at a time, together. A 64x64 float32 record has 16 KiB.
BLOCK_BYTES = 8 * 2**20
# All fields at one step (or window) are held at a time, whole, before they are cut into patches.
STEP_MAX_BYTES = 2**30
# Added to the name of a field that may have gaps: where it has a value.
VALID_SUFFIX = ".valid"
# What a library raises on a damaged chunk: h5py OSError and RuntimeError, codecs the other two.
READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError)
# A parameter is a number, a text or a short list; what is longer belongs in a field.
_LIST_MAX = 64


class RecordTooLarge(InputError):
    """The numbers of one record are more than a record may have."""

    kind = "size"


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
        num_components: Axes at the end of `shape` that are no space (vectors, tensors).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]
    unit: str = ""
    chunk_steps: int = 1
    is_given: bool = False
    marks_gaps: bool = False
    num_components: int = 0

    @property
    def grid(self) -> Grid:
        """Its axes, for patches."""
        return Grid(self.shape, self.num_components)

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
        num_components: Axes at its end that are no space.
    """

    name: str
    array: Array
    unit: str = ""
    num_components: int = 0
    is_given: ClassVar[bool] = True
    marks_gaps: ClassVar[bool] = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        return self.array.dtype

    @property
    def grid(self) -> Grid:
        """Its axes, for patches."""
        return Grid(self.array.shape, self.num_components)


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

    @property
    def fields(self) -> tuple[Series | Constant, ...]:
        """All fields, those that move first."""
        return (*self.series, *self.constants)


def records(
    trajectories: Iterable[Trajectory],
    windows: Windows,
    origin: Origin,
    *,
    source: str,
    licence: str | None = None,
) -> Iterator[Record]:
    """A draft a window (and patch), in order; a rejection for one that is damaged or has gaps.

    Raises:
        RecordTooLarge: A record has more numbers than `origin.record_max_bytes`.
        PatchInvalid: The fields cannot be cut into such patches.
        InputError: The file has gone.
    """
    index = num_windows = 0
    for trajectory in trajectories:
        patches = _patches(trajectory, windows)
        _check_size(trajectory, windows, patches, origin)
        starts = windows.starts(trajectory.num_steps)
        if not starts:
            reason = f"{trajectory.num_steps} steps, the window takes {windows.window_steps}"
            yield Rejection("window", f"{trajectory.family or origin.name}: {reason}", index=index)
            index += 1
        budget = BLOCK_BYTES // max(1, len(trajectory.series))
        blocks = [_Blocks(series, trajectory.num_steps, budget) for series in trajectory.series]
        about = _About(trajectory, windows, source, licence, patches, origin.name)
        for start in starts:
            arrays = _arrays(about, blocks, start, index, origin)
            if isinstance(arrays, Rejection):
                yield arrays
                index += 1
            else:
                for patch in patches or (None,):
                    yield about.record(index, start, num_windows, arrays, patch)
                    index += 1
            num_windows += 1


def num_records(trajectory: Trajectory, windows: Windows) -> int:
    """Records of a trajectory: its windows and their patches; one rejection if it is too short.

    Raises:
        PatchInvalid: The fields cannot be cut into such patches.
    """
    patches = _patches(trajectory, windows)
    return max(1, len(windows.starts(trajectory.num_steps)) * (len(patches) if patches else 1))


def summaries(trajectory: Trajectory, windows: Windows) -> tuple[FieldSummary, ...]:
    """What each fossil of the trajectory holds."""
    lead = () if windows.window_steps == 1 else (windows.window_steps,)
    patches = _patches(trajectory, windows)
    found = []
    for item in trajectory.fields:
        shape = item.grid.shape if patches is None else patches.shape(item.grid)
        shape = lead + shape if isinstance(item, Series) else shape
        found.append(FieldSummary(item.name, item.dtype.name, shape, item.unit, item.is_given))
        if item.name in windows.mask_fields:
            found.append(FieldSummary(item.name + VALID_SUFFIX, "bool", shape, "", is_given=True))
    return tuple(found)


def patch_notes(trajectory: Trajectory, windows: Windows) -> tuple[str, ...]:
    """What is in no patch, in words."""
    patches = _patches(trajectory, windows)
    return patches.notes() if patches else ()


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
    patches: Patches | None
    origin_name: str

    def record(
        self,
        index: int,
        start: int,
        num_windows: int,
        whole: Mapping[str, Array],
        patch: tuple[int, ...] | None,
    ) -> Record:
        """One record out of the arrays of a window, or why it has gaps."""
        trajectory, windows = self.trajectory, self.windows
        arrays: dict[str, Array] = {}
        given: list[str] = []
        for item in trajectory.fields:
            array = whole[item.name]
            if self.patches is not None and patch is not None:
                array = self.patches.cut(array, item.grid, patch)
            is_masked = item.name in windows.mask_fields
            if is_masked or (item.marks_gaps and array.dtype.kind == "f"):
                is_valid = ~np.isnan(array) if array.dtype.kind == "f" else np.ones_like(array, "?")
                missing = array.size - int(is_valid.sum())
                if missing and (not is_masked or missing == array.size):
                    reason = f"field {item.name!r}: {missing} of {array.size} numbers are missing"
                    return Rejection("gap", reason, index=index)
                if is_masked:
                    arrays[item.name + VALID_SUFFIX] = is_valid
                    given.append(item.name + VALID_SUFFIX)
                    array = np.where(is_valid, array, array.dtype.type(0)) if missing else array
            arrays[item.name] = array
            if item.is_given:
                given.append(item.name)
        params = {
            **trajectory.params,
            **plain_params(self._along(start)),
            **self._place(patch),
            **({"condition_fields": given} if given else {}),
        }
        return Draft(
            index=index,
            source=self.source,
            arrays=arrays,
            units=self._units(),
            params=params,
            observed_at=trajectory.observed_at(start) if trajectory.observed_at else None,
            family=self._family(start, num_windows),
            licence=self.licence,
        )

    def _along(self, start: int) -> dict[str, Any]:
        count = self.windows.window_steps
        return {
            name: values[start] if count == 1 else values[start : start + count]
            for name, values in self.trajectory.step_params.items()
        }

    def _place(self, patch: tuple[int, ...] | None) -> dict[str, Any]:
        if self.patches is None or patch is None:
            return {}
        return {"patch": list(patch), "patch_start": self.patches.start(patch)}

    def _units(self) -> dict[str, str]:
        return {item.name: item.unit for item in self.trajectory.fields if item.unit}

    def _family(self, start: int, num_windows: int) -> str | None:
        """All patches of a window are of one family."""
        trajectory = self.trajectory
        family = trajectory.family_of(start) if trajectory.family_of else trajectory.family
        if family is None and self.patches is not None:
            return f"{self.origin_name}#{num_windows // FAMILY_BLOCK}"
        return family


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


def _arrays(
    about: _About, blocks: Sequence[_Blocks], start: int, index: int, origin: Origin
) -> dict[str, Array] | Rejection:
    """The arrays of a window, by field."""
    count = about.windows.window_steps
    arrays = {constant.name: constant.array for constant in about.trajectory.constants}
    for block in blocks:
        name = block.series.name
        try:
            steps = block.window(start, start + count)
        except READ_ERRORS as error:
            if not origin.path.exists():
                raise InputError(f"{origin.path}: has gone while it was read") from error
            return Rejection("damaged", f"field {name!r} cannot be read: {error}", index=index)
        arrays[name] = steps[0] if count == 1 else steps
    return arrays


def _patches(trajectory: Trajectory, windows: Windows) -> Patches | None:
    if windows.patch is None:
        return None
    return Patches.of(windows.patch, {item.name: item.grid for item in trajectory.fields})


def _check_size(
    trajectory: Trajectory, windows: Windows, patches: Patches | None, origin: Origin
) -> None:
    step_bytes = sum(s.step_bytes for s in trajectory.series) * windows.window_steps
    step_bytes += sum(constant.array.nbytes for constant in trajectory.constants)
    if patches is not None and step_bytes > STEP_MAX_BYTES:
        raise RecordTooLarge(
            f"{origin.path}: the fields take {format_bytes(step_bytes)} a window, at most "
            f"{format_bytes(STEP_MAX_BYTES)} are held to be cut into patches",
            remedy="Read fewer fields, or fewer steps a window.",
        )
    record_bytes = sum(_record_bytes(s, windows.window_steps, patches) for s in trajectory.series)
    record_bytes += sum(_record_bytes(c, 1, patches) for c in trajectory.constants)
    if record_bytes > origin.record_max_bytes:
        raise RecordTooLarge(
            f"{origin.path}: a record takes {format_bytes(record_bytes)}, "
            f"at most {format_bytes(origin.record_max_bytes)} are taken",
            remedy="Read fewer fields, fewer steps a window, or patches (--patch 64x64); "
            "or raise the limit (--record-max).",
        )


def _record_bytes(item: Series | Constant, steps: int, patches: Patches | None) -> int:
    shape = item.grid.shape if patches is None else patches.shape(item.grid)
    return math.prod(shape) * item.dtype.itemsize * steps


def _plain_list(values: Sequence[Any]) -> list[Any] | None:
    if not 0 < len(values) <= _LIST_MAX:
        return None
    items = [plain(value) for value in values]
    return None if any(item is None for item in items) else items
