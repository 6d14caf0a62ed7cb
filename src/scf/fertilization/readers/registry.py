"""Which readers there are, and which of them knows a file."""

from collections.abc import Mapping
from pathlib import Path

from scf.core.errors import InputError, UsageError
from scf.fertilization.readers.base import HEAD_BYTES, FolderReader, Reader
from scf.fertilization.readers.csv_table import CsvReader
from scf.fertilization.readers.hdf5 import Hdf5ArraysReader
from scf.fertilization.readers.mat import MatReader
from scf.fertilization.readers.ndjson import NdjsonReader
from scf.fertilization.readers.netcdf import NetcdfReader
from scf.fertilization.readers.npz import NpzReader
from scf.fertilization.readers.parquet import ParquetReader
from scf.fertilization.readers.pdebench import PdeBenchReader
from scf.fertilization.readers.pkl import PickleReader
from scf.fertilization.readers.tmy import Tmy2Reader, Tmy3Reader
from scf.fertilization.readers.well import WellReader
from scf.fertilization.readers.zarr_store import ZarrReader

# Asked in this order: the most particular first (a TMY3 file is also a table with commas).
READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        Tmy3Reader(),
        Tmy2Reader(),
        ZarrReader(),
        NdjsonReader(),
        WellReader(),
        PdeBenchReader(),
        NetcdfReader(),
        MatReader(),
        Hdf5ArraysReader(),
        ParquetReader(),
        NpzReader(),
        PickleReader(),
        CsvReader(),
    )
}


class UnknownFormat(InputError):
    """No reader knows the file."""

    kind = "format"


def reader_named(name: str, readers: Mapping[str, Reader] = READERS) -> Reader:
    """The reader of this name. Raises UsageError that lists the known ones."""
    if name not in readers:
        raise UsageError(f"no reader {name!r}", remedy=f"Known readers: {', '.join(readers)}.")
    return readers[name]


def reader_for(path: Path, readers: Mapping[str, Reader] = READERS) -> Reader | None:
    """The first reader that recognises the file, or the folder as a store; None where none does.

    Raises:
        InputError: The file cannot be read.
    """
    if path.is_dir():
        return folder_reader_for(path, readers)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return next((reader for reader in readers.values() if reader.recognises(path, head)), None)


def folder_reader_for(path: Path, readers: Mapping[str, Reader] = READERS) -> Reader | None:
    """The reader for which this folder is one store; None where it is a folder of files."""
    for reader in readers.values():
        if isinstance(reader, FolderReader) and reader.recognises_folder(path):
            return reader
    return None
