"""PDEBench: benchmark simulations of partial differential equations (HDF5).

Layouts, as its own programs write them (https://github.com/pdebench/PDEBench):

* `tensor` [N, T, X] or [N, T, X, Y] with `x-coordinate` (advection, Burgers, reaction-diffusion);
  Darcy flow has T = 1 and the coefficient `nu` [N, X, Y], which is given;
* `density`, `pressure`, `Vx`, `Vy`, `Vz`, each [N, T, X, ...] (compressible Navier-Stokes);
* `velocity`, `particles` [N, T, X, Y, C], `force` [N, X, Y, C], `t` [N, T] (incompressible);
* a group `0000`, `0001`, ... a simulation with `data` [T, X, (Y,) C] and `grid/x`, `grid/t`
  (diffusion-sorption, diffusion-reaction, shallow water).

A simulation is a family. PDEBench states no units. Where `t-coordinate` has one value more than
there are steps (it does, in the published files), the last one is not used.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.hdf5_file import (
    LayoutInvalid,
    child,
    matches,
    numbers,
    open_hdf5,
    series_of,
    unit_of,
)
from scf.fertilization.readers.options import WindowedReader, Windows
from scf.fertilization.readers.series import (
    Constant,
    Trajectory,
    grid_params,
    num_records,
    patch_notes,
    plain_params,
    records,
    summaries,
)
from scf.vault.fields import Array

_CFD = ("density", "pressure", "Vx", "Vy", "Vz")
_SIMULATION = re.compile(r"\d{4,}")
_AXES = ("x", "y", "z")


class PdeBenchReader(WindowedReader):
    """Files of PDEBench.

    Its settings are those of `Windows`.
    """

    name = "pdebench"

    def recognises(self, path: Path, head: bytes) -> bool:
        return matches(path, head, lambda file: _layout_of(file) is not None)

    def read(self, origin: Origin) -> Iterator[Record]:
        with open_hdf5(origin.path) as file:
            simulations = _simulations(file, self.windows)
            trajectories = (
                simulations.trajectory(at, origin.name) for at in range(simulations.count)
            )
            source = f"PDEBench {simulations.layout}"
            yield from records(trajectories, self.windows, origin, source=source)

    def describe(self, path: Path) -> Description:
        """What `read` would yield; the number of records holds if all simulations are alike."""
        with open_hdf5(path) as file:
            simulations = _simulations(file, self.windows)
            first = simulations.trajectory(0, path.name)
            return Description(
                f"PDEBench {simulations.layout}",
                simulations.count * num_records(first, self.windows),
                summaries(first, self.windows),
                simulations.count,
                {key: value for key, value in first.params.items() if key != "simulation"},
                (*simulations.notes, *patch_notes(first, self.windows)),
            )


@dataclass(frozen=True)
class _Simulations:
    """How a file holds its simulations.

    Attributes:
        layout: The layout in words.
        count: How many there are.
        trajectory: One of them, by its place, in an origin of this name.
        notes: What is left out.
    """

    layout: str
    count: int
    trajectory: Callable[[int, str], Trajectory]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stacked:
    """Simulations stacked along a leading axis.

    Attributes:
        moving: Names of the fields [N, T, ...].
        still: Names of the fields [N, ...], which are given.
        times: Name of the dataset of times.
        num_components: Axes at the end that are no space.
    """

    layout: str
    moving: tuple[str, ...]
    still: tuple[str, ...]
    times: str
    num_components: int = 0


def _layout_of(file: Any) -> _Stacked | list[str] | None:
    """The stacked layout, the names of the simulations' groups, or None."""
    if "tensor" in file and "x-coordinate" in file:
        still = tuple(name for name in ("nu",) if name in file)
        return _Stacked("Darcy flow" if still else "tensor", ("tensor",), still, "t-coordinate")
    if {"density", "pressure", "Vx", "x-coordinate"} <= set(file):
        moving = tuple(name for name in _CFD if name in file)
        return _Stacked("compressible flow", moving, (), "t-coordinate")
    if {"velocity", "particles", "force", "t"} <= set(file):
        return _Stacked("incompressible flow", ("velocity", "particles"), ("force",), "t", 1)
    names = [name for name in file if isinstance(name, str) and _SIMULATION.fullmatch(name)]
    if names and "data" in file[names[0]] and "grid" in file[names[0]]:
        return names
    return None


def _simulations(file: Any, windows: Windows) -> _Simulations:
    layout = _layout_of(file)
    if layout is None:
        raise LayoutInvalid("none of the layouts of PDEBench")
    if isinstance(layout, _Stacked):
        return _stacked(file, layout, windows)
    windows.check_fields(("data",))
    return _Simulations(
        "one group a simulation",
        len(layout),
        lambda at, origin_name: _grouped(file, layout[at], origin_name),
        ("config: the settings of each simulation are text in YAML, which is not read",),
    )


def _stacked(file: Any, layout: _Stacked, windows: Windows) -> _Simulations:
    windows.check_fields((*layout.moving, *layout.still))
    moving = {name: numbers(file, name) for name in layout.moving if windows.keeps(name)}
    still = {name: numbers(file, name) for name in layout.still if windows.keeps(name)}
    # With the given fields alone asked for, they still have to say how many simulations there are.
    shape = numbers(file, layout.moving[0]).shape
    if len(shape) < 3 or not all(shape):
        raise LayoutInvalid(f"{layout.moving[0]!r} has shape {list(shape)}, not [N, T, X, ...]")
    count, num_steps = shape[:2]
    for name, dataset in {**moving, **still}.items():
        expected = (count, num_steps) if name in moving else (count,)
        if dataset.shape[: len(expected)] != expected:
            raise LayoutInvalid(
                f"{name!r} has shape {list(dataset.shape)}, expected {list(expected)} first"
            )
    params = plain_params({name: file.attrs[name] for name in file.attrs})
    for axis in _AXES:
        if f"{axis}-coordinate" in file:
            params |= grid_params(axis, numbers(file, f"{axis}-coordinate")[...])
    times = numbers(file, layout.times) if layout.times in file else None

    def trajectory(at: int, origin_name: str) -> Trajectory:
        return Trajectory(
            num_steps,
            tuple(
                series_of(name, dataset, lead=(at,), num_components=layout.num_components)
                for name, dataset in moving.items()
            ),
            f"{origin_name}/simulation-{at}",
            tuple(
                Constant(name, d[at], unit_of(d), layout.num_components)
                for name, d in still.items()
            ),
            {**params, "simulation": at},
            _times_of(times, at, num_steps),
        )

    return _Simulations(layout.layout, count, trajectory)


def _grouped(file: Any, name: str, origin_name: str) -> Trajectory:
    group = child(file, name)
    data, grid = numbers(group, "data"), child(group, "grid")
    if not data.ndim:
        raise LayoutInvalid(f"{data.name!r} has no time axis")
    params: dict[str, Any] = {"simulation": name}
    for axis in _AXES:
        if axis in grid:
            params |= grid_params(axis, numbers(grid, axis)[...])
    times = numbers(grid, "t") if "t" in grid else None
    return Trajectory(
        len(data),
        (series_of("data", data, num_components=min(1, data.ndim - 1)),),
        f"{origin_name}/simulation-{name}",
        params=params,
        step_params=_times_of(times, 0, len(data)),
    )


def _times_of(times: Any, at: int, num_steps: int) -> Mapping[str, Array]:
    steps = {"step": np.arange(num_steps)}
    if times is None:
        return steps
    values: Array = times[at] if times.ndim > 1 else times[...]
    if len(values) < num_steps:
        raise LayoutInvalid(f"{times.name!r} has {len(values)} times for {num_steps} steps")
    return {**steps, "time": values[:num_steps]}
