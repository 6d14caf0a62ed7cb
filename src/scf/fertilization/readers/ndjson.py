"""Fossils as they are: NDJSON (`.zst`, `.gz` too). They keep their CID and their provenance."""

from collections.abc import Iterator
from pathlib import Path

from scf.fertilization.readers.base import Origin, Record
from scf.storage.ndjson import is_shard_name, read_lines

# JSON, but the metadata of a store, whose folder is the origin (see `zarr_store`).
_ZARR_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


class NdjsonReader:
    """One fossil a line."""

    name = "ndjson"

    def recognises(self, path: Path, head: bytes) -> bool:
        if path.name in _ZARR_METADATA:
            return False
        return is_shard_name(path.name) or head.lstrip().startswith(b'{"')

    def read(self, origin: Origin) -> Iterator[Record]:
        yield from read_lines(origin.path, line_max_bytes=origin.line_max_bytes)
