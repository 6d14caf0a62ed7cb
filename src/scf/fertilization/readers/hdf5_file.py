"""HDF5 files opened with care: once, read only, and nothing outside the file is followed.

HDF5 can point out of itself: external links, datasets whose bytes lie in other files (external
storage), virtual datasets made of other files. An origin is the bytes of one file, and its digest
is in every fossil's provenance; so all three are refused.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import InputError
from scf.fertilization.readers.series import Series, is_number, plain
from scf.fertilization.readers.tools import has_tool, tool
from scf.vault.fields import Array

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# h5py keeps one such cache a dataset; ours are read in whole chunks, so little is gained by more.
_CHUNK_CACHE_BYTES = 2**20
# What h5py raises for damage in the metadata.
_ERRORS = (OSError, RuntimeError, ValueError, KeyError)


class LayoutInvalid(InputError):
    """A file begins like a layout that we know, and then breaks its rules."""

    kind = "layout"


def is_hdf5(head: bytes) -> bool:
    """Whether the first bytes are HDF5's; files with a user block (MATLAB 7.3) have them later."""
    return any(head[at : at + 8] == SIGNATURE for at in (0, 512, 1024, 2048))


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, as h5py has it.

    Raises:
        MissingTool: h5py is not installed.
        InputError: The file is truncated or damaged, or is being written.
    """
    h5py = tool("h5py", extra="hdf5")
    try:
        # Network drives often have no locks; a file is ingested once it has stopped growing.
        with h5py.File(path, "r", locking="best-effort", rdcc_nbytes=_CHUNK_CACHE_BYTES) as file:
            yield file
    except _ERRORS as error:
        raise InputError(f"{path}: cannot be read further: {error}") from error


def matches(path: Path, head: bytes, has_layout: Callable[[Any], bool]) -> bool:
    """Whether it is an HDF5 file that h5py opens and that has a layout; False without h5py."""
    if not is_hdf5(head) or not has_tool("h5py"):
        return False
    try:
        with open_hdf5(path) as file:
            return has_layout(file)
    except InputError:
        return False


def child(group: Any, name: str) -> Any:
    """A member of a group.

    Raises:
        LayoutInvalid: It is not there, or lies in another file.
    """
    h5py = tool("h5py", extra="hdf5")
    link = group.get(name, getlink=True)
    if link is None:
        raise LayoutInvalid(f"{group.name!r} has no member {name!r}")
    if isinstance(link, h5py.ExternalLink):
        raise LayoutInvalid(f"{name!r} in {group.name!r} lies in another file: {link.filename!r}")
    item = group[name]
    if item.file.filename != group.file.filename:  # through a soft link and then an external one
        raise LayoutInvalid(f"{name!r} in {group.name!r} lies in another file")
    return item


def check_inside(dataset: Any) -> None:
    """Raises LayoutInvalid for a dataset whose numbers lie in other files."""
    if dataset.external or dataset.is_virtual:
        raise LayoutInvalid(f"the numbers of {dataset.name!r} lie in other files")


def members(file: Any) -> Iterator[tuple[str, Any]]:
    """Every group and dataset that lies in the file, once, by its path; no link out is followed.

    Raises:
        LayoutInvalid: A name is not text.
    """
    paths: list[str] = []
    # Only names are taken while HDF5 walks: an error in its callback leaves h5py in disorder.
    file.visit(paths.append)
    for path in paths:
        if not isinstance(path, str):
            raise LayoutInvalid(f"the name {path!r} is not text")
        yield path, file[path]


def check_self_contained(file: Any) -> None:
    """Raises LayoutInvalid for a file with any link or dataset that leads out of it."""
    h5py = tool("h5py", extra="hdf5")
    for path, item in (("/", file), *members(file)):
        if isinstance(item, h5py.Dataset):
            check_inside(item)
        elif isinstance(item, h5py.Group):
            for name in item:
                link = item.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise LayoutInvalid(f"{name!r} in {path!r} lies in another file")


def numbers(group: Any, name: str) -> Any:
    """A dataset of numbers.

    Raises:
        LayoutInvalid: It is not there, is no dataset of numbers, or lies in another file.
    """
    h5py = tool("h5py", extra="hdf5")
    dataset = child(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise LayoutInvalid(f"{dataset.name!r} is not a dataset")
    check_inside(dataset)
    if not is_number(dataset.dtype):
        raise LayoutInvalid(f"{dataset.name!r} holds {dataset.dtype} values, not numbers")
    return dataset


def attribute(item: Any, name: str) -> Any:
    """An attribute. Raises LayoutInvalid where it is not there."""
    if name not in item.attrs:
        raise LayoutInvalid(f"{item.name!r} has no attribute {name!r}")
    return item.attrs[name]


def flag(item: Any, name: str, default: bool | None = None) -> bool:
    """A yes or no attribute. Raises LayoutInvalid where it is missing and has no default."""
    if default is not None and name not in item.attrs:
        return default
    return bool(np.all(attribute(item, name)))


def texts(value: Any) -> tuple[str, ...]:
    """An attribute that lists names; one name may stand alone."""
    if isinstance(value, str | bytes):
        value = [value]
    items = np.asarray(value, dtype=object).ravel().tolist()
    return tuple(i.decode("utf-8", "replace") if isinstance(i, bytes) else str(i) for i in items)


def unit_of(item: Any) -> str:
    """The unit that a dataset states in `units` or `unit`; empty where it states none."""
    for name in ("units", "unit"):
        value = plain(item.attrs[name]) if name in item.attrs else None
        if isinstance(value, str):
            return value
    return ""


def series_of(
    name: str,
    dataset: Any,
    *,
    lead: tuple[int, ...] = (),
    shape: tuple[int, ...] | None = None,
    is_given: bool = False,
    num_components: int = 0,
) -> Series:
    """A field whose steps lie along the first axis behind `lead`.

    Args:
        name: The field's name.
        dataset: Where its numbers are.
        lead: Indices of the axes before that of the steps.
        shape: Shape of one step, where it is not the stored one.
        is_given: Whether it is known beforehand.
        num_components: Axes at the end of a step that are no space.
    """
    axis = len(lead)
    stored = dataset.shape[axis + 1 :]
    step_shape = stored if shape is None else shape

    def read(start: int, stop: int) -> Array:
        block: Array = dataset[(*lead, slice(start, stop))]
        return block.reshape(stop - start, *step_shape)

    chunks = dataset.chunks
    return Series(
        name,
        dataset.dtype,
        step_shape,
        read,
        unit_of(dataset),
        chunks[axis] if chunks else 1,
        is_given,
        num_components=num_components,
    )
