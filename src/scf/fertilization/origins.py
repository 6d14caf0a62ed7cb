"""What there is to ingest under a path: files, and folders that are one store; and their digests.

A folder that a reader knows (a Zarr store) is one origin, and nothing inside it is looked at by
another reader. Everything else is a file. Hidden files are left out; inside a store they count.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scf.core.errors import InputError
from scf.fertilization.readers.base import Reader
from scf.fertilization.readers.options import ReadOptions, configured
from scf.fertilization.readers.registry import folder_reader_for, reader_for

_BLOCK_BYTES = 2**23
# What file managers leave behind; it changes without the data doing so.
_LITTER = {".DS_Store"}


@dataclass(frozen=True, slots=True)
class Found:
    """Something under the path that was asked for.

    Attributes:
        path: A file, or the folder of a store.
        name: Its path relative to what is ingested, with `/`.
        size_bytes: Of all its files.
        reader: The reader for it, with the settings asked for; None where no reader knows it.
        fault: Why it cannot be looked into.
    """

    path: Path
    name: str
    size_bytes: int
    reader: Reader | None
    fault: InputError | None = None


def find_origins(
    path: Path, registry: Mapping[str, Reader], chosen: Reader | None, options: ReadOptions
) -> list[Found]:
    """The file itself, or everything under a folder, in a fixed order.

    A link that leads nowhere is kept, to be quarantined; pipes and devices are not files of data.

    Raises:
        InputError: There is nothing that could be read.
        UsageError: A reader does not know one of the options.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder")
    store = _store_of(path, registry)
    if store is not None:
        return [_found(store, store.resolve().name, registry, chosen, options)]
    if path.is_file():
        return [_found(path, path.name, registry, chosen, options)]
    named = sorted((item.relative_to(path).as_posix(), item) for item in _walk(path, registry))
    return [_found(item, name, registry, chosen, options) for name, item in named]


def digest_of(path: Path, tell: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file's bytes; of a folder's, see `tree_sha256`.

    Args:
        path: The file or folder.
        tell: Called with the number of bytes read so far, every 64 MiB or so.

    Raises:
        InputError: It cannot be read.
    """
    return tree_sha256(path, tell) if path.is_dir() else _file_sha256(path, 0, tell)[0]


def tree_sha256(folder: Path, tell: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 over the text that `sha256sum` prints for every file, sorted by path.

    A line is `<digest>  <path relative to the folder>` and a newline. Hidden files count;
    `.DS_Store` and `._*` do not.
    """
    done_bytes = 0
    tree = hashlib.sha256()
    for name in sorted(file.relative_to(folder).as_posix() for file in _tree_files(folder)):
        digest, done_bytes = _file_sha256(folder / name, done_bytes, tell)
        tree.update(f"{digest}  {name}\n".encode())
    return tree.hexdigest()


def _found(
    path: Path,
    name: str,
    registry: Mapping[str, Reader],
    chosen: Reader | None,
    options: ReadOptions,
) -> Found:
    try:
        if path.is_dir():
            reader = chosen or folder_reader_for(path, registry)
            size_bytes = sum(file.stat().st_size for file in _tree_files(path))
        else:
            reader = chosen or reader_for(path, registry)
            size_bytes = path.stat().st_size
    except OSError as error:
        fault = InputError(f"{path}: cannot be read: {error.strerror}")
        return Found(path, name, 0, chosen, fault)
    except InputError as error:
        return Found(path, name, 0, chosen, error)
    return Found(path, name, size_bytes, reader and configured(reader, options))


def _store_of(path: Path, registry: Mapping[str, Reader]) -> Path | None:
    """The store that a path is, or whose metadata file it is."""
    if path.is_dir():
        return path if folder_reader_for(path, registry) else None
    if path.name.startswith((".z", "zarr.")) and folder_reader_for(path.parent, registry):
        return path.parent
    return None


def _walk(path: Path, registry: Mapping[str, Reader]) -> Iterator[Path]:
    for parent, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(parent)
        stores = [name for name in folders if folder_reader_for(here / name, registry)]
        yield from (here / name for name in stores)
        folders[:] = [name for name in folders if name not in stores]
        for file in (here / name for name in files if not name.startswith(".")):
            if file.is_file() or (file.is_symlink() and not file.exists()):
                yield file


def _tree_files(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        for name in files:
            if name not in _LITTER and not name.startswith("._"):
                yield Path(parent, name)


def _file_sha256(path: Path, done_bytes: int, tell: Callable[[int], None]) -> tuple[str, int]:
    """The digest, and `done_bytes` increased by the file's size."""
    digest = hashlib.sha256()
    told_bytes = done_bytes
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done_bytes += len(block)
                if done_bytes - told_bytes >= 8 * _BLOCK_BYTES:
                    tell(done_bytes)
                    told_bytes = done_bytes
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest(), done_bytes
