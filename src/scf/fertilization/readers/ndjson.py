"""Fossils as they are: NDJSON (`.zst`, `.gz` too). They keep their CID and their provenance."""

from collections.abc import Iterator
from pathlib import Path

from scf.core.errors import InputError
from scf.fertilization.readers.base import Origin, Record
from scf.fertilization.readers.describe import Description, FieldSummary
from scf.storage.ndjson import is_shard_name, read_lines
from scf.vault.fossil import parse_fossil

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

    def describe(self, path: Path) -> Description:
        """What the first line holds; the others may hold something else."""
        line = next(read_lines(path), None)
        if line is None:
            raise InputError(f"{path}: has no line")
        if line.fault is not None:
            raise InputError(f"{path}: line {line.number}: {line.fault}")
        first = parse_fossil(line.data)
        given = first.condition_fields
        return Description(
            "fossils as they are, a line each; described by the first one",
            None,
            tuple(
                FieldSummary(spec.name, spec.dtype, spec.shape, spec.unit, spec.name in given)
                for spec in first.specs
            ),
        )
