"""NetCDF 3 and 4, through xarray with scipy and h5netcdf. What a record is: see `gridded`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scf.core.errors import InputError
from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.gridded import OPEN_OPTIONS, Gridded
from scf.fertilization.readers.hdf5_file import (
    check_self_contained,
    is_hdf5,
    matches,
    open_hdf5,
)
from scf.fertilization.readers.series import Windows, records, summaries
from scf.fertilization.readers.tools import tool

_CLASSIC = (b"CDF\x01", b"CDF\x02")
_CLASSIC_64_BIT_DATA = b"CDF\x05"


class NetcdfReader:
    """NetCDF files.

    Args:
        window_steps: Time steps in a fossil; with 1 the fields have no time axis.
        stride: Steps from the beginning of a fossil to that of the next; `window_steps` by default.
        fields: Names of the fields to read; all by default.
    """

    name = "netcdf"

    def __init__(
        self,
        *,
        window_steps: int = 1,
        stride: int | None = None,
        fields: tuple[str, ...] | None = None,
    ) -> None:
        self.windows = Windows(window_steps, stride, fields)

    def recognises(self, path: Path, head: bytes) -> bool:
        if head.startswith((*_CLASSIC, _CLASSIC_64_BIT_DATA)):
            return True
        return matches(path, head, _is_netcdf4)

    def read(self, origin: Origin) -> Iterator[Record]:
        with _open(origin.path) as dataset:
            gridded = Gridded.of(dataset, self.windows, name=origin.name)
            yield from records(
                gridded.trajectories(origin.name),
                self.windows,
                origin,
                source=gridded.source,
                licence=gridded.licence,
            )

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with _open(path) as dataset:
            return description("NetCDF", Gridded.of(dataset, self.windows, name=path.name))


def description(layout: str, gridded: Gridded) -> Description:
    """What a dataset will yield."""
    first = next(gridded.trajectories(""))
    return Description(
        f"{layout}, a record a step of {gridded.step!r}",
        gridded.num_samples * gridded.windows.num_records(first.num_steps),
        summaries(first, gridded.windows),
        gridded.num_samples if gridded.sample else None,
        first.params,
        gridded.notes,
    )


def _is_netcdf4(file: Any) -> bool:
    return "_NCProperties" in file.attrs or any(
        "_Netcdf4Dimid" in item.attrs for item in file.values()
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    xarray = tool("xarray", extra="netcdf")
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_CLASSIC_64_BIT_DATA):
        raise InputError(
            f"{path}: NetCDF in the CDF-5 form is not known",
            remedy="Convert it: `nccopy -k nc4 IN OUT`.",
        )
    engine = "scipy"
    if is_hdf5(head):
        engine = "h5netcdf"
        with open_hdf5(path) as file:
            check_self_contained(file)
    tool(engine, extra="netcdf")
    try:
        with xarray.open_dataset(path, engine=engine, **OPEN_OPTIONS) as dataset:
            yield dataset
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error
