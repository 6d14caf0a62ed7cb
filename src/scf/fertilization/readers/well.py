"""The Well: simulations as Polymathic AI publishes them (HDF5).

Layout: https://github.com/PolymathicAI/the_well, docs/data_format.md. `t0_fields`, `t1_fields` and
`t2_fields` hold scalar, vector and tensor fields [B][T][X][Y][Z][D][D]; the leading axes are there
only where `sample_varying` and `time_varying` say so. A space axis along which a field does not
vary (`dim_varying`) has length 1 here, so that the field broadcasts over the grid.

A trajectory is a family. Fields that do not change with time are given, not modelled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.hdf5_file import (
    LayoutInvalid,
    attribute,
    child,
    flag,
    matches,
    numbers,
    open_hdf5,
    series_of,
    texts,
    unit_of,
)
from scf.fertilization.readers.options import WindowedReader, Windows
from scf.fertilization.readers.series import (
    Constant,
    Series,
    Trajectory,
    grid_params,
    num_records,
    patch_notes,
    plain,
    plain_params,
    records,
    summaries,
)
from scf.vault.fields import Array

_FIELD_GROUPS = ("t0_fields", "t1_fields", "t2_fields")


class WellReader(WindowedReader):
    """Files of The Well.

    Its settings are those of `Windows`.
    """

    name = "well"

    def recognises(self, path: Path, head: bytes) -> bool:
        return matches(path, head, _has_layout)

    def read(self, origin: Origin) -> Iterator[Record]:
        with open_hdf5(origin.path) as file:
            well = _Well.of(file, self.windows)
            trajectories = (
                well.trajectory(sample, origin.name) for sample in range(well.num_samples)
            )
            yield from records(
                trajectories, self.windows, origin, source=f"The Well {well.dataset_name}"
            )

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with open_hdf5(path) as file:
            well = _Well.of(file, self.windows)
            first = well.trajectory(0, path.name)
            notes = [f"{name}: only its type is kept, not its mask" for name in well.boundaries]
            return Description(
                f"The Well, dataset {well.dataset_name}",
                well.num_samples * num_records(first, self.windows),
                summaries(first, self.windows),
                well.num_samples,
                well.params,
                (*notes, *patch_notes(first, self.windows)),
            )


def _has_layout(file: Any) -> bool:
    return "dimensions" in file and any(
        name in file and "field_names" in file[name].attrs for name in _FIELD_GROUPS
    )


@dataclass(frozen=True)
class _Field:
    """A field, or a scalar (order 0 and no space axes), and which of its axes are there."""

    name: str
    dataset: Any
    varies_by_sample: bool
    varies_by_time: bool
    shape: tuple[int, ...]
    order: int

    @classmethod
    def of(cls, group: Any, name: str, order: int, grid: tuple[int, ...]) -> "_Field":
        dataset = numbers(group, name)
        by_sample, by_time = flag(dataset, "sample_varying"), flag(dataset, "time_varying")
        varies = [bool(item) for item in np.ravel(attribute(dataset, "dim_varying"))]
        if len(varies) != len(grid):
            raise LayoutInvalid(f"{dataset.name!r}: 'dim_varying' is not one a space axis")
        stored = dataset.shape[by_sample + by_time :]
        space = tuple(n if is_there else 1 for n, is_there in zip(grid, varies, strict=True))
        # A space axis without variation is left out, or stored with length 1.
        for kept in (space, tuple(n for n, there in zip(grid, varies, strict=True) if there)):
            tail = stored[len(kept) :]
            if stored[: len(kept)] == kept and _is_tensor(tail, order):
                return cls(
                    name, dataset, by_sample, by_time, space + _tensor_shape(tail, order), order
                )
        raise LayoutInvalid(
            f"{dataset.name!r} has shape {list(dataset.shape)}; on a grid of {list(grid)} "
            f"that is no field of order {order}"
        )

    def lead(self, sample: int) -> tuple[int, ...]:
        return (sample,) if self.varies_by_sample else ()

    def constant(self, sample: int) -> Constant:
        array: Array = np.asarray(self.dataset[self.lead(sample)])
        return Constant(self.name, array.reshape(self.shape), unit_of(self.dataset), self.order)


@dataclass(frozen=True)
class _Well:
    """A file's layout, checked.

    Attributes:
        file: The open file.
        dataset_name: As the file states it.
        num_samples: Trajectories.
        num_steps: Time steps of each.
        fields: Those that are to be read.
        boundaries: Group of each boundary condition to its type and axes.
        params: Numbers and text that hold for the whole file.
    """

    file: Any
    dataset_name: str
    num_samples: int
    num_steps: int
    fields: tuple[_Field, ...]
    boundaries: dict[str, str]
    params: dict[str, Any]

    @classmethod
    def of(cls, file: Any, windows: Windows) -> "_Well":
        dimensions = child(file, "dimensions")
        axes = texts(attribute(dimensions, "spatial_dims"))
        grid = tuple(numbers(dimensions, axis).shape[-1] for axis in axes)
        num_steps = numbers(dimensions, "time").shape[-1]
        num_samples = int(attribute(file, "n_trajectories"))
        if num_samples < 1 or num_steps < 1:
            raise LayoutInvalid(f"{num_samples} trajectories of {num_steps} steps")
        names: list[tuple[str, str, int]] = []
        for order, group in enumerate(_FIELD_GROUPS):
            if group in file:
                listed = texts(attribute(child(file, group), "field_names"))
                names += [(group, name, order) for name in listed]
        windows.check_fields(name for _, name, _ in names)
        fields = tuple(
            _Field.of(child(file, group), name, order, grid)
            for group, name, order in names
            if windows.keeps(name)
        )
        _check_lengths(fields, num_samples, num_steps)
        boundaries = _boundaries(file)
        params = {
            **plain_params(
                {name: file.attrs.get(name) for name in ("grid_type", "n_spatial_dims")}
            ),
            **_simulation_parameters(file),
            **{f"boundary.{name}": text for name, text in boundaries.items()},
        }
        for axis in axes:
            if not flag(dimensions[axis], "sample_varying", default=False):
                params |= grid_params(axis, dimensions[axis][...])
        dataset_name = str(plain(file.attrs.get("dataset_name", "")) or "unnamed")
        return cls(file, dataset_name, num_samples, num_steps, fields, boundaries, params)

    def trajectory(self, sample: int, origin_name: str) -> Trajectory:
        """One trajectory, its small arrays read."""
        # Without any field that moves, the constant ones are what there is to model.
        is_static = not any(field.varies_by_time for field in self.fields)
        params, step_params = self._scalars(sample)
        moving = [field for field in self.fields if field.varies_by_time]
        still = [field for field in self.fields if not field.varies_by_time]
        if is_static:
            return Trajectory(
                1,
                tuple(_static_series(field, sample) for field in still),
                f"{origin_name}/trajectory-{sample}",
                params={**self.params, **params},
            )
        return Trajectory(
            self.num_steps,
            tuple(_moving_series(f, sample) for f in moving),
            f"{origin_name}/trajectory-{sample}",
            tuple(field.constant(sample) for field in still),
            {**self.params, **params, "trajectory": sample},
            {**step_params, "time": self._times(sample), "step": np.arange(self.num_steps)},
        )

    def _times(self, sample: int) -> Array:
        time = self.file["dimensions"]["time"]
        times: Array = time[sample] if time.ndim > 1 else time[...]
        return times

    def _scalars(self, sample: int) -> tuple[dict[str, Any], dict[str, Array]]:
        """Scalars of the trajectory, and those that change along it."""
        params: dict[str, Any] = {}
        along: dict[str, Array] = {}
        if "scalars" not in self.file:
            return params, along
        group = child(self.file, "scalars")
        for name in texts(attribute(group, "field_names")):
            dataset = numbers(group, name)
            value = dataset[(sample,) if flag(dataset, "sample_varying") else ()]
            if flag(dataset, "time_varying"):
                if len(value) != self.num_steps:
                    raise LayoutInvalid(f"scalar {name!r}: {len(value)} of {self.num_steps} steps")
                along[name] = value
            else:
                params[name] = value
        return plain_params(params), along


def _is_tensor(tail: tuple[int, ...], order: int) -> bool:
    """Whether trailing axes are those of a tensor; order 2 is stored as [D, D] or as [D * D]."""
    if len(tail) == order:
        return True
    return order == 2 and len(tail) == 1 and int(np.sqrt(tail[0])) ** 2 == tail[0]


def _tensor_shape(tail: tuple[int, ...], order: int) -> tuple[int, ...]:
    return (int(np.sqrt(tail[0])),) * 2 if len(tail) < order else tail


def _static_series(field: _Field, sample: int) -> Series:
    """A field without time as a trajectory of one step."""

    def read(start: int, stop: int) -> Array:
        return field.constant(sample).array[np.newaxis][start:stop]

    return Series(
        field.name,
        field.dataset.dtype,
        field.shape,
        read,
        unit_of(field.dataset),
        num_components=field.order,
    )


def _moving_series(field: _Field, sample: int) -> Series:
    return series_of(
        field.name,
        field.dataset,
        lead=field.lead(sample),
        shape=field.shape,
        num_components=field.order,
    )


def _check_lengths(fields: tuple[_Field, ...], num_samples: int, num_steps: int) -> None:
    for field in fields:
        expected = (num_samples,) * field.varies_by_sample + (num_steps,) * field.varies_by_time
        found = field.dataset.shape[: len(expected)]
        if found != expected:
            raise LayoutInvalid(
                f"{field.dataset.name!r} has leading axes {list(found)}, "
                f"{num_samples} trajectories of {num_steps} steps need {list(expected)}"
            )


def _simulation_parameters(file: Any) -> dict[str, Any]:
    names = texts(file.attrs.get("simulation_parameters", ()))
    return plain_params({name: file.attrs[name] for name in names if name in file.attrs})


def _boundaries(file: Any) -> dict[str, str]:
    """Name of each boundary condition to what it is: `periodic x`."""
    if "boundary_conditions" not in file:
        return {}
    group = child(file, "boundary_conditions")
    found = {}
    for name in group:
        condition = child(group, name)
        kind = str(plain(attribute(condition, "bc_type"))).lower()
        axes = texts(condition.attrs.get("associated_dims", ()))
        found[name] = " ".join((kind, *axes))
    return found
