"""NetCDF 3 and 4, through xarray with scipy and h5netcdf. What a record is: see `gridded`."""

import contextlib
from collections.abc import Callable, Iterator
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
from scf.fertilization.readers.options import WindowedReader
from scf.fertilization.readers.series import num_records, patch_notes, records, summaries
from scf.fertilization.readers.tools import tool

_CLASSIC = (b"CDF\x01", b"CDF\x02")
_CLASSIC_64_BIT_DATA = b"CDF\x05"
_READS_PER_MAP = 2


class NetcdfReader(WindowedReader):
    """NetCDF files.

    Its settings are those of `Windows`.
    """

    name = "netcdf"

    def recognises(self, path: Path, head: bytes) -> bool:
        if head.startswith((*_CLASSIC, _CLASSIC_64_BIT_DATA)):
            return True
        return matches(path, head, _is_netcdf4)

    def read(self, origin: Origin) -> Iterator[Record]:
        with _open(origin.path) as current:
            gridded = Gridded.of(current, self.windows, name=origin.name)
            yield from records(
                gridded.trajectories(origin.name),
                self.windows,
                origin,
                source=gridded.source,
                licence=gridded.licence,
            )

    def describe(self, path: Path) -> Description:
        """What `read` would yield."""
        with _open(path) as current:
            return description("NetCDF", Gridded.of(current, self.windows, name=path.name))


def description(layout: str, gridded: Gridded) -> Description:
    """What a dataset will yield."""
    first = next(gridded.trajectories(""))
    return Description(
        f"{layout}, a record a step of {gridded.step!r}",
        gridded.num_samples * num_records(first, gridded.windows),
        summaries(first, gridded.windows),
        gridded.num_samples if gridded.sample else None,
        first.params,
        (*gridded.notes, *patch_notes(first, gridded.windows)),
    )


def _is_netcdf4(file: Any) -> bool:
    return "_NCProperties" in file.attrs or any(
        item is not None and "_Netcdf4Dimid" in item.attrs for item in file.values()
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Callable[[], Any]]:
    tool("xarray", extra="netcdf")
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
        with _Reopened(path, engine) as reopened:
            yield reopened.current
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error


class _Reopened:
    """A dataset that is opened anew now and then, where it is a map of the file in memory.

    scipy maps NetCDF 3 into memory: every page that was read stays resident, and at the end the
    whole file is. Closing lets go of them. (With an engine that reads, this could be deleted.)
    """

    def __init__(self, path: Path, engine: str) -> None:
        self._path = path
        self._engine = engine
        self._dataset: Any = None
        self._num_reads = 0

    def __enter__(self) -> "_Reopened":
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._dataset.close()

    def current(self) -> Any:
        """The dataset. What was taken from it before must not be used after the next call."""
        self._num_reads += 1
        if self._engine == "scipy" and self._num_reads % _READS_PER_MAP == 0:
            self._dataset.close()
            self._open()
        return self._dataset

    def _open(self) -> None:
        xarray = tool("xarray", extra="netcdf")
        self._dataset = xarray.open_dataset(self._path, engine=self._engine, **OPEN_OPTIONS)
