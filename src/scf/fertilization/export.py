"""Hand fossils over to other tools, in formats of theirs: nobody is locked in.

| format | what is written |
| --- | --- |
| webdataset | a folder of tar files: `CID.json` (all but numbers) and `CID.FIELD.npy` a fossil |
| parquet | a row a fossil: cid, family, meta (JSON), a fixed-size list a field (needs pyarrow) |
| npz | an array [N, ...] a field, and `_cid`, `_family`, `_meta` as text |
| pkl | the same as a dict of arrays, pickled; we read such files with an allow-list only |
| mds | a folder for MosaicML streaming (needs mosaicml-streaming); bool as uint8, scalars as [1] |

Fossils of several kinds (other fields or shapes) go into files of their own: `NAME-1`, `NAME-2`, in
the order in which they are met; webdataset takes them all. Nothing is half written: a file or
folder is complete or absent.
"""

import importlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import InputError, MissingTool
from scf.core.units import format_bytes
from scf.fertilization.shard_scan import FossilKind, kind_of
from scf.storage.partitions import Folder
from scf.vault.fields import Array
from scf.vault.fossil import Fossil

Fossils = Callable[[], Iterator[Fossil]]
FORMATS = ("webdataset", "parquet", "npz", "pkl", "mds")
_TAR_FOSSILS = 10_000
_PARQUET_ROWS = 1024
# A pickle is built in memory; more than this belongs into another format.
_PICKLE_MAX_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Exported:
    """A file or folder that was written, and how many fossils it holds."""

    path: Path
    fossils: int


def export_fossils(fossils: Fossils, path: Path, form: str) -> list[Exported]:
    """Write fossils to `path`, which must not exist yet.

    Args:
        fossils: Gives them from the beginning whenever it is called: some formats need several
            passes, so that memory stays bounded.
        path: The file or folder.
        form: One of `FORMATS`.

    Raises:
        InputError: There is something already, or there are no fossils.
        MissingTool: The format needs a package that is not installed.
    """
    assert form in FORMATS, form
    _check_free(path)
    counts: dict[FossilKind, int] = {}
    for fossil in fossils():
        kind = kind_of(fossil)
        counts[kind] = counts.get(kind, 0) + 1
    if not counts:
        raise InputError("there are no fossils to export")
    folder = Folder.at(path.parent)
    if form == "webdataset":
        return [_webdataset(fossils(), folder, path)]
    write = {"parquet": _parquet, "npz": _npz, "pkl": _pickle, "mds": _mds}[form]
    targets = [path]
    if len(counts) > 1:
        targets = [path.with_stem(f"{path.stem}-{n}") for n in range(1, len(counts) + 1)]
    for target in targets:
        _check_free(target)
    exported = []
    for target, (kind, count) in zip(targets, counts.items(), strict=True):
        write(lambda kind=kind: _of_kind(fossils(), kind), kind, count, folder, target)  # type: ignore[misc]
        exported.append(Exported(target, count))
    return exported


def _check_free(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path}: exists already", remedy="Name a path that is free.")


def _of_kind(fossils: Iterator[Fossil], kind: FossilKind) -> Iterator[Fossil]:
    return (fossil for fossil in fossils if kind_of(fossil) == kind)


def _meta(fossil: Fossil) -> str:
    """All but the numbers, as JSON."""
    fields = {s.name: [s.dtype, list(s.shape), s.unit] for s in fossil.specs}
    meta = {**fossil.block, "fields": fields, "cid": fossil.cid, "verifier": fossil.verifier}
    return json.dumps(meta, sort_keys=True, ensure_ascii=False)


def _webdataset(fossils: Iterator[Fossil], folder: Folder, path: Path) -> Exported:
    staged = folder.new_staging(path.name)
    tar: tarfile.TarFile | None = None
    count = 0
    try:
        for count, fossil in enumerate(fossils, start=1):
            if (count - 1) % _TAR_FOSSILS == 0:
                if tar is not None:
                    tar.close()
                tar = tarfile.open(staged / f"{(count - 1) // _TAR_FOSSILS:06d}.tar", "w")  # noqa: SIM115
            assert tar is not None
            _add(tar, f"{fossil.cid}.json", _meta(fossil).encode())
            for name, array in fossil.arrays().items():
                file = io.BytesIO()
                np.lib.format.write_array(file, array, allow_pickle=False)
                # A key ends at the first dot, and a slash would be a folder.
                _add(tar, f"{fossil.cid}.{name.replace('/', '_')}.npy", file.getvalue())
    finally:
        if tar is not None:
            tar.close()
    return Exported(folder.publish_folder(staged, path.name), count)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _parquet(fossils: Fossils, kind: FossilKind, count: int, folder: Folder, path: Path) -> None:
    del count
    pa = _tool("pyarrow", "pyarrow", "parquet")
    parquet = _tool("pyarrow.parquet", "pyarrow", "parquet")
    columns = [pa.field(name, pa.string()) for name in ("cid", "family", "meta")]
    for spec in kind.specs:
        kept = {"dtype": spec.dtype, "shape": json.dumps(spec.shape), "unit": spec.unit}
        element = pa.from_numpy_dtype(spec.numpy_dtype)
        size = int(np.prod(spec.shape, dtype=np.int64))
        columns.append(pa.field(spec.name, pa.list_(element, size), metadata=kept))
    schema = pa.schema(columns)
    with folder.open_staged(path.name) as file, parquet.ParquetWriter(file, schema) as writer:
        for rows in _batches(fossils(), _PARQUET_ROWS):
            texts = [
                pa.array([fossil.cid for fossil in rows]),
                pa.array([fossil.family for fossil in rows]),
                pa.array([_meta(fossil) for fossil in rows]),
            ]
            numbers = []
            for spec, column in zip(kind.specs, columns[3:], strict=True):
                flat = np.concatenate([fossil.arrays()[spec.name].ravel() for fossil in rows])
                size = column.type.list_size
                numbers.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), size))
            writer.write_table(pa.Table.from_arrays([*texts, *numbers], schema=schema))


def _npz(fossils: Fossils, kind: FossilKind, count: int, folder: Folder, path: Path) -> None:
    with folder.open_staged(path.name) as file, zipfile.ZipFile(file, "w") as archive:
        for spec in kind.specs:
            with archive.open(f"{spec.name}.npy", "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(spec.numpy_dtype),
                    "fortran_order": False,
                    "shape": (count, *spec.shape),
                }
                np.lib.format.write_array_header_2_0(member, header)
                for fossil in fossils():
                    member.write(fossil.block["fields"][spec.name]["data"])
        for name, texts in _texts(fossils).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, texts, allow_pickle=False)


def _pickle(fossils: Fossils, kind: FossilKind, count: int, folder: Folder, path: Path) -> None:
    size = count * sum(spec.size_bytes for spec in kind.specs)
    if size > _PICKLE_MAX_BYTES:
        raise InputError(
            f"{format_bytes(size)} are too many for one pickle",
            remedy="Take --format npz or parquet, which are written piece by piece.",
        )
    columns: dict[str, Array] = {
        spec.name: np.empty((count, *spec.shape), spec.dtype) for spec in kind.specs
    }
    for row, fossil in enumerate(fossils()):
        for name, array in fossil.arrays().items():
            columns[name][row] = array
    value = columns | {name: texts.tolist() for name, texts in _texts(fossils).items()}
    # Written for others; nothing of ours is ever loaded by pickle.
    with folder.open_staged(path.name) as file:
        pickle.dump(value, file, protocol=4)


def _mds(fossils: Fossils, kind: FossilKind, count: int, folder: Folder, path: Path) -> None:
    del count
    streaming = _tool("streaming", "mosaicml-streaming", "mds")
    columns = {"cid": "str", "family": "str", "meta": "str"}
    for spec in kind.specs:
        shape = ",".join(map(str, spec.shape)) or "1"
        # MDS has no type for bool; its bytes, 0 and 1, are there as uint8.
        dtype = "uint8" if spec.dtype == "bool" else spec.dtype
        columns[spec.name] = f"ndarray:{dtype}:{shape}"
    staged = folder.new_staging(path.name)
    with streaming.MDSWriter(out=str(staged), columns=columns) as writer:
        for fossil in fossils():
            row: dict[str, Any] = {
                name: np.atleast_1d(array.view("u1") if array.dtype == bool else array)
                for name, array in fossil.arrays().items()
            }
            writer.write({**row, "cid": fossil.cid, "family": fossil.family, "meta": _meta(fossil)})
    folder.publish_folder(staged, path.name)


def _texts(fossils: Fossils) -> dict[str, Array]:
    told = [(fossil.cid, fossil.family, _meta(fossil)) for fossil in fossils()]
    names = ("_cid", "_family", "_meta")
    return {
        name: np.array(column) for name, column in zip(names, zip(*told, strict=True), strict=True)
    }


def _batches(fossils: Iterable[Fossil], size: int) -> Iterator[list[Fossil]]:
    rows: list[Fossil] = []
    for fossil in fossils:
        rows.append(fossil)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def _tool(module: str, package: str, form: str) -> Any:
    """A library that only this format needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingTool(
            f"the format {form} needs {package}, which is not installed",
            remedy=f"Install it: `pip install {package}`.",
        ) from error
