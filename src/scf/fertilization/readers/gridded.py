"""Datasets with named dimensions and CF conventions, as xarray opens them: NetCDF and Zarr.

Which axis makes records, in this order: the time dimension (a coordinate that CF conventions, its
units or its name mark as time); else the unlimited dimension; else the leading one of the largest
variable. A dimension that names simulations (`sample`, `trajectory`, `member`, ..., or one that
carries a `cf_role`) makes families.

Numbers are decoded (`scale_factor`, `add_offset`). What the file marks as missing (`_FillValue`,
`missing_value`, or NaN) is a gap, and a record with a gap is refused with the reason: nothing is
filled in. Variables without the record dimension are given fields.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers.options import Windows
from scf.fertilization.readers.series import (
    Constant,
    Series,
    Trajectory,
    grid_params,
    is_number,
    plain,
    plain_params,
)
from scf.fertilization.readers.tools import tool
from scf.vault.fields import Array

# How the datasets are opened: lazily, nothing kept, numbers decoded but times left as they are.
OPEN_OPTIONS: Mapping[str, Any] = {
    "cache": False,
    "chunks": None,
    "decode_times": False,
    "mask_and_scale": True,
}
_TIME_NAMES = ("time", "t", "valid_time", "Time")
_SAMPLE_NAMES = (
    *("sample", "trajectory", "traj", "simulation", "run", "batch"),
    *("realization", "ensemble", "member", "number", "station", "profile"),
)
_TEXT_MAX = 200
_KEPT_ATTRIBUTES = ("standard_name", "long_name", "cell_methods")
_FILE_ATTRIBUTES_LEFT_OUT = ("history", "source", "title", "licence", "license")


class NoRecordAxis(InputError):
    """A dataset without any axis that could count records."""

    kind = "layout"


@dataclass(frozen=True)
class Gridded:
    """A dataset and what its dimensions mean.

    Attributes:
        dataset: As xarray opened it.
        current: The dataset to take numbers from: the same, or the same opened anew.
        windows: How steps become fossils, and which fields are wanted.
        step: The record dimension.
        is_time: Whether that is time.
        sample: The dimension that makes families, if there is one.
        source: Who made the data, as the file says.
        licence: Terms, as the file says.
        notes: What is left out.
    """

    dataset: Any
    current: Callable[[], Any]
    windows: Windows
    step: str
    is_time: bool
    sample: str | None
    source: str
    licence: str | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, current: Callable[[], Any], windows: Windows, *, name: str) -> "Gridded":
        """Understand a dataset.

        Args:
            current: Gives the dataset as xarray opened it, whenever numbers are to be read.
            windows: As asked for.
            name: What to call the source where the file names none.

        Raises:
            InputError: Nothing in it can be a record; a wanted field is not there; a window was
                asked for and there is no time.
        """
        dataset = current()
        wanted = {n: v for n, v in _fields(dataset).items() if windows.keeps(n)}
        windows.check_fields(_fields(dataset))
        time = _time_dimension(dataset, wanted)
        step = time or _record_dimension(dataset, wanted)
        if time is None and windows.window_steps > 1:
            raise NoRecordAxis("a window was asked for, and the file has no time axis")
        sample = _sample_dimension(dataset, wanted, step)
        about = {key: plain(dataset.attrs.get(key)) for key in _FILE_ATTRIBUTES_LEFT_OUT}
        said = [t for t in (about["title"], about["source"]) if isinstance(t, str) and t]
        licence = about["licence"] or about["license"]
        notes = [
            f"{n}: {variable.dtype} values, left out"
            for n, variable in dataset.data_vars.items()
            if not is_number(variable.dtype) and variable.dims
        ]
        return cls(
            dataset,
            current,
            windows,
            step,
            time is not None,
            sample,
            ", ".join(said)[:_TEXT_MAX] or f"file {name}",
            licence if isinstance(licence, str) and licence else None,
            tuple(notes),
        )

    @property
    def num_samples(self) -> int:
        """How many families; 1 where there is no dimension of families."""
        return int(self.dataset.sizes[self.sample]) if self.sample else 1

    @property
    def num_steps(self) -> int:
        """How many steps along the record dimension."""
        return int(self.dataset.sizes[self.step])

    def trajectories(self, origin_name: str) -> Iterator[Trajectory]:
        """The families one after the other; the whole file is one run where there are none."""
        params, times = self._params(), self._times()
        for at in range(self.num_samples):
            yield self._trajectory(at, origin_name, params, times)

    def _trajectory(
        self, at: int, origin_name: str, params: Mapping[str, Any], times: "_Times"
    ) -> Trajectory:
        dataset = self.current()
        chosen = {} if self.sample is None else {self.sample: at}
        series, constants = [], []
        own: dict[str, Any] = {}
        along: dict[str, Array] = {}
        for name, variable in _fields(dataset).items():
            if not self.windows.keeps(name):
                continue
            here = _chosen(variable, chosen)
            if self.step in here.dims:
                series.append(self._series(name, here, chosen))
            elif here.dims:
                constants.append(Constant(name, here.values, _unit(variable)))
            else:
                own[name] = here.values
        for name, variable in dataset.coords.items():
            here = _chosen(variable, chosen)
            if here.dims == (self.step,) and is_number(here.dtype):
                along[str(name)] = here.values
            elif not here.dims:
                own[str(name)] = here.values
        family = None if self.sample is None else f"{origin_name}/{self.sample}-{at}"
        return Trajectory(
            self.num_steps,
            tuple(series),
            family,
            tuple(constants),
            {**params, **plain_params(own)},
            along,
            times.text if times.is_known else None,
        )

    def _series(self, name: str, array: Any, chosen: Mapping[str, int]) -> Series:
        step, dims = self.step, array.dims
        rest = tuple(dim for dim in dims if dim != step)
        at = {dim: index for dim, index in chosen.items() if dim in self.dataset[name].dims}

        def read(start: int, stop: int) -> Array:
            variable = self.current()[name].variable.isel({**at, step: slice(start, stop)})
            block: Array = variable.transpose(step, *rest).values
            return block

        stored = array.encoding.get("preferred_chunks") or {}
        shape = tuple(int(array.sizes[dim]) for dim in rest)
        chunk = int(stored.get(step) or 1)
        return Series(name, array.dtype, shape, read, _unit(array), chunk, marks_gaps=True)

    def _params(self) -> dict[str, Any]:
        """What the file says of itself and of its fields, and its grid."""
        dataset = self.current()
        params = {
            name: value
            for name, value in plain_params(dataset.attrs).items()
            if name not in _FILE_ATTRIBUTES_LEFT_OUT
        }
        for name, variable in _fields(dataset).items():
            if self.windows.keeps(name):
                for key in _KEPT_ATTRIBUTES:
                    params[f"{name}.{key}"] = plain(variable.attrs.get(key))
        for name, variable in dataset.coords.items():
            if variable.dims == (name,) and name not in {self.step, self.sample}:
                if is_number(variable.dtype):
                    params |= grid_params(str(name), variable.values)
                    params[f"grid_{name}.units"] = _unit(variable) or None
            elif variable.dims == (self.step,):
                params[f"{name}.units"] = _unit(variable) or None
        if self.step in dataset.coords:
            params[f"{self.step}.units"] = _unit(dataset[self.step]) or None
        return {k: v for k, v in params.items() if v is not None and not _is_long(v)}

    def _times(self) -> "_Times":
        dataset = self.current()
        if not self.is_time or self.step not in dataset.variables:
            return _Times(None)
        return _Times.of(dataset[self.step])


@dataclass(frozen=True)
class _Times:
    """Moments of the steps, where the file's times are on the calendar of the world."""

    moments: Array | None

    @classmethod
    def of(cls, variable: Any) -> "_Times":
        xarray = tool("xarray", extra="netcdf")
        if "since" not in _unit(variable):
            return cls(None)
        try:
            times = xarray.decode_cf(variable.to_dataset(name="moments").reset_coords(drop=True))
            moments = times["moments"].values
        except (ValueError, OverflowError, ImportError, TypeError):
            return cls(None)  # a calendar of models (360 days, no leap years) has no RFC 3339
        if not np.issubdtype(moments.dtype, np.datetime64) or np.isnat(moments).any():
            return cls(None)
        return cls(moments)

    @property
    def is_known(self) -> bool:
        return self.moments is not None

    def text(self, step: int) -> str | None:
        """RFC 3339 in UTC, which CF means where it names no zone."""
        assert self.moments is not None
        moment = self.moments[step]
        is_whole = moment == moment.astype("datetime64[s]")
        return f"{np.datetime_as_string(moment, unit='s' if is_whole else 'us')}Z"


def _fields(dataset: Any) -> dict[str, Any]:
    """Variables of numbers that are no bounds, no text, and not the shadow of a coordinate."""
    bounds = {str(v.attrs.get("bounds", "")) for v in dataset.variables.values()}
    return {
        str(name): variable
        for name, variable in dataset.data_vars.items()
        if is_number(variable.dtype) and name not in bounds and 0 not in variable.shape
    }


def _chosen(variable: Any, chosen: Mapping[str, int]) -> Any:
    return variable.isel({k: v for k, v in chosen.items() if k in variable.dims})


def _time_dimension(dataset: Any, fields: Mapping[str, Any]) -> str | None:
    dims = [dim for variable in fields.values() for dim in variable.dims]
    for dim in dict.fromkeys(map(str, dims)):
        attrs = dataset[dim].attrs if dim in dataset.variables else {}
        is_marked = attrs.get("axis") == "T" or attrs.get("standard_name") == "time"
        if is_marked or " since " in str(attrs.get("units", "")) or dim in _TIME_NAMES:
            return dim
    return None


def _record_dimension(dataset: Any, fields: Mapping[str, Any]) -> str:
    unlimited = [str(dim) for dim in dataset.encoding.get("unlimited_dims", ())]
    with_axes = [variable for variable in fields.values() if variable.dims]
    for dim in unlimited:
        if any(dim in variable.dims for variable in with_axes):
            return dim
    if not with_axes:
        raise NoRecordAxis("no variable of numbers with an axis")
    return str(max(with_axes, key=lambda variable: variable.size).dims[0])


def _sample_dimension(dataset: Any, fields: Mapping[str, Any], step: str) -> str | None:
    dims = {str(dim) for variable in fields.values() for dim in variable.dims} - {step}
    for variable in dataset.variables.values():
        if "cf_role" in variable.attrs and len(variable.dims) and str(variable.dims[0]) in dims:
            return str(variable.dims[0])
    return next((name for name in _SAMPLE_NAMES if name in dims), None)


def _unit(variable: Any) -> str:
    unit = plain(variable.attrs.get("units"))
    return unit if isinstance(unit, str) else ""


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > _TEXT_MAX
