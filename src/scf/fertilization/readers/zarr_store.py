"""Zarr stores (formats 2 and 3), as a folder or in one zip file. What a record is: see `gridded`.

The origin of a store is its folder: the digest covers every file in it (`origins.tree_sha256`). A
zip file is one origin too.

A codec of Zarr can run code: `pickle` does. Only codecs that are known to be plain are let through,
and the metadata are read for that before the library sees the store.
"""

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from scf.core.errors import InputError
from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description
from scf.fertilization.readers.gridded import OPEN_OPTIONS, Gridded
from scf.fertilization.readers.netcdf import description
from scf.fertilization.readers.options import WindowedReader
from scf.fertilization.readers.series import records
from scf.fertilization.readers.tools import tool

_BEGINNINGS = ("zarr.json", ".zgroup", ".zmetadata")
_METADATA = (*_BEGINNINGS, ".zarray")
_METADATA_MAX_BYTES = 16 * 2**20
# Codecs and filters that turn bytes into bytes or numbers, by the names that both formats use.
_PLAIN_CODECS = {
    *("bytes", "transpose", "sharding_indexed", "crc32c", "string", "vlen-utf8", "vlen-bytes"),
    *("gzip", "zlib", "zstd", "blosc", "lz4", "lzma", "bz2", "shuffle", "delta", "packbits"),
    *("adler32", "crc32", "fletcher32", "fixedscaleoffset", "scale_offset", "quantize"),
    *("bitround", "astype", "cast_value", "pcodec", "zfpy"),
}


class UnsafeCodec(InputError):
    """A store names a codec that is not known to be harmless."""

    kind = "codec"


class ZarrReader(WindowedReader):
    """Zarr stores.

    Its settings are those of `Windows`.
    """

    name = "zarr"

    def recognises(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"PK") and _is_zipped_store(path)

    def recognises_folder(self, path: Path) -> bool:
        """Whether it holds the file with which a store begins."""
        return any(_begins_store(path / name) for name in _BEGINNINGS)

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
            return description("Zarr", Gridded.of(current, self.windows, name=path.name))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Callable[[], Any]]:
    xarray = tool("xarray", extra="netcdf")
    zarr = tool("zarr", extra="netcdf")
    try:
        with contextlib.ExitStack() as stack:
            if path.is_file():
                archive = stack.enter_context(zipfile.ZipFile(path))
                is_consolidated = _check_metadata(archive.namelist(), archive.read)
                store: Any = zarr.storage.ZipStore(path, mode="r")
                stack.callback(store.close)
            else:
                found = [file for name in _METADATA for file in path.rglob(name)]
                is_consolidated = _check_metadata(
                    [file.relative_to(path).as_posix() for file in found],
                    lambda name: (path / name).read_bytes(),
                )
                store = str(path)
            dataset = xarray.open_dataset(
                store, engine="zarr", consolidated=is_consolidated, **OPEN_OPTIONS
            )
            stack.enter_context(dataset)
            yield lambda: dataset
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error


def _begins_store(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b'"zarr_' in file.read(_METADATA_MAX_BYTES)
    except OSError:
        return False


def _is_zipped_store(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return not {"zarr.json", ".zgroup", ".zmetadata"}.isdisjoint(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _check_metadata(names: list[str], read: Callable[[str], bytes]) -> bool:
    """Read all metadata for codecs that may run code. True where they are consolidated."""
    is_consolidated = False
    for name in names:
        if PurePosixPath(name).name not in _METADATA:
            continue
        text = read(name)
        if len(text) > _METADATA_MAX_BYTES:
            raise InputError(f"{name}: metadata of {len(text)} bytes")
        metadata = json.loads(text)
        _check_codecs(metadata, name)
        is_consolidated = is_consolidated or name == ".zmetadata"
        is_consolidated = is_consolidated or (
            name == "zarr.json" and bool(metadata.get("consolidated_metadata"))
        )
    return is_consolidated


def _check_codecs(value: Any, where: str) -> None:
    """Raises UnsafeCodec for an unknown codec anywhere in the metadata, attributes aside."""
    if isinstance(value, list):
        for item in value:
            _check_codecs(item, where)
        return
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in {"codecs", "filters", "compressor", "index_codecs"}:
            for codec in item if isinstance(item, list) else [item]:
                _check_codec(codec, where)
        if key == "dtype" and item == "|O" and not _holds_text(value):
            raise UnsafeCodec(f"{where}: holds Python objects; those are never loaded")
        if key not in {"attributes", ".zattrs"} and not key.endswith("/.zattrs"):
            _check_codecs(item, where)


def _holds_text(array: dict[str, Any]) -> bool:
    """Whether an array of objects (format 2) is one of text."""
    filters = array.get("filters") or []
    return any(isinstance(f, dict) and f.get("id") == "vlen-utf8" for f in filters)


def _check_codec(codec: Any, where: str) -> None:
    if codec is None:
        return
    name = codec.get("id") or codec.get("name") if isinstance(codec, dict) else codec
    if str(name).removeprefix("numcodecs.") not in _PLAIN_CODECS:
        raise UnsafeCodec(f"{where}: codec {name!r} is not one that is known to be harmless")
