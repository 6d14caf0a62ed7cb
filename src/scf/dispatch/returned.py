"""What another machine gives back: looked at while it lies apart, then put into the bundle.

The other end may be broken or hostile. What it *says* (names, sizes) is held against limits before
anything is fetched; what *arrives* lies in `.returning/` beside the bundle's own files, must be a
plain file under a name that was asked for, and moves to its place only then. A group of outputs
(`outputs/checkpoint/...`) moves when it stood still over there while it was fetched, so that what
lies in the bundle while a job runs is a state that the job had, not a mixture of two.
"""

import base64
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scf.core.errors import VerificationFailed
from scf.core.units import format_bytes
from scf.dispatch.bundle import HEARTBEAT_NAME, LOG_NAME, OUTPUTS_NAME, PROGRESS_NAME
from scf.dispatch.transfer import PARTIAL

RETURNING_NAME = ".returning"
SMALL_NAMES = (PROGRESS_NAME, HEARTBEAT_NAME, LOG_NAME)

_NAME_MAX_CHARS = 1024
_PART_MAX_CHARS = 200
_PARTS_MAX = 16


class OutputsRefused(VerificationFailed):
    """What the other machine gives back is not taken: a name, a kind or a size that may not be."""


@dataclass(frozen=True, kw_only=True)
class ReturnLimits:
    """How much may come back.

    Attributes:
        files_max: Files under `outputs/`.
        file_max_bytes: One file.
        total_max_bytes: All of them together.
        small_max_bytes: The log, the progress notes: of longer ones, only the end comes.
    """

    files_max: int = 10_000
    file_max_bytes: int = 50 * 10**9
    total_max_bytes: int = 100 * 10**9
    small_max_bytes: int = 8 * 2**20


@dataclass(frozen=True)
class Row:
    """A file as the other machine describes it."""

    name: str
    size_bytes: int
    modified_ns: int = 0

    @property
    def group(self) -> str:
        """`outputs/checkpoint` of `outputs/checkpoint/step-1/model.safetensors`."""
        return "/".join(self.name.split("/")[:2])


def checked_rows(value: Any, limits: ReturnLimits) -> dict[str, Row]:
    """The outputs that the other machine lists, by name.

    Raises:
        OutputsRefused: A name that does not stay inside `outputs/`, or more than the limits allow.
    """
    if not isinstance(value, list):
        raise OutputsRefused("the list of outputs is no list")
    rows = {}
    for item in value:
        match item:
            case [str(name), int(size_bytes), int(modified_ns)] if size_bytes >= 0:
                check_name(name)
                rows[name] = Row(name, size_bytes, modified_ns)
            case _:
                raise OutputsRefused(f"the list of outputs holds {str(item)[:100]!r}")
    check_sizes(rows.values(), limits)
    return rows


def check_name(name: str) -> None:
    """Raise OutputsRefused unless `name` is a plain path below `outputs/`."""
    pure = PurePosixPath(name)
    is_sound = (
        pure.parts[:1] == (OUTPUTS_NAME,)
        and 1 < len(pure.parts) <= _PARTS_MAX
        and str(pure) == name
        and len(name) <= _NAME_MAX_CHARS
        and name.isprintable()
        and "\\" not in name
        and all(
            part not in {"..", PARTIAL} and len(part.encode()) <= _PART_MAX_CHARS
            for part in pure.parts
        )
    )
    if not is_sound:
        raise OutputsRefused(f"output {name[:200]!r}: not a name that can stand in a bundle")


def check_sizes(rows: Iterable[Row], limits: ReturnLimits) -> None:
    """Raise OutputsRefused when there is more than may come back."""
    files, total = 0, 0
    for row in rows:
        files, total = files + 1, total + row.size_bytes
        if row.size_bytes > limits.file_max_bytes:
            raise OutputsRefused(
                f"output {row.name}: {format_bytes(row.size_bytes)}, "
                f"over the limit of {format_bytes(limits.file_max_bytes)} a file"
            )
    if files > limits.files_max:
        raise OutputsRefused(f"more than {limits.files_max} outputs")
    if total > limits.total_max_bytes:
        raise OutputsRefused(
            f"outputs of {format_bytes(total)}, "
            f"over the limit of {format_bytes(limits.total_max_bytes)}"
        )


def tidy(folder: Path, asked: Iterable[str]) -> None:
    """Remove what an earlier follower fetched and nobody asks for now; parts of files stay."""
    known = set(asked)
    for path in list(_walk(folder)):
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
        if not is_folder and path.relative_to(folder).as_posix() not in known:
            path.unlink()


def check_arrived(folder: Path, asked: Mapping[str, int]) -> None:
    """Make sure that only plain files lie in `folder`, only under names that were asked for.

    Args:
        folder: Where things arrive.
        asked: The size that may arrive, in bytes, by name; a file that grew meanwhile may be twice
            as long and 1 MiB more.

    Raises:
        OutputsRefused: Names it; the folder with all that arrived is removed.
    """
    try:
        for path in _walk(folder):
            name = path.relative_to(folder).as_posix()
            info = path.lstat()
            if stat.S_ISDIR(info.st_mode):
                continue
            if not stat.S_ISREG(info.st_mode):
                raise OutputsRefused(f"{name}: neither a file nor a folder arrived under this name")
            if name not in asked:
                raise OutputsRefused(f"{name}: arrived and was not asked for")
            if info.st_size > 2 * asked[name] + 2**20:
                raise OutputsRefused(f"{name}: {format_bytes(info.st_size)} arrived, far too long")
    except OutputsRefused:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def install(bundle: Path, names: Iterable[str]) -> None:
    """Move what has arrived under `names` to its place in the bundle."""
    for name in names:
        arrived, final = bundle / RETURNING_NAME / name, bundle / name
        if not arrived.exists():
            continue  # the bundle has it already: the same was not sent again
        if final.is_dir() and not final.is_symlink():
            shutil.rmtree(final)
        _make_folders(bundle, final.parent)
        arrived.replace(final)


def prune(bundle: Path, keep: Iterable[str], *, groups_kept: Iterable[str] = ()) -> None:
    """Remove outputs here that are not in `keep`, except in the groups that are still moving."""
    kept, moving = set(keep), set(groups_kept)
    for path in list(_walk(bundle / OUTPUTS_NAME)):
        name = path.relative_to(bundle).as_posix()
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
        if not is_folder and name not in kept and Row(name, 0).group not in moving:
            path.unlink()


def differing(bundle: Path, expected: Mapping[str, str]) -> list[str]:
    """Names whose file, arrived or in the bundle, has not the SHA-256 it must have."""
    wrong = []
    for name, sha256 in expected.items():
        arrived = bundle / RETURNING_NAME / name
        path = arrived if arrived.exists() else bundle / name
        if not path.is_file() or _sha256_of(path) != sha256:
            wrong.append(name)
    return wrong


def drop(bundle: Path, names: Iterable[str]) -> None:
    """Remove these files, arrived or installed, so that they are fetched anew."""
    for name in names:
        (bundle / RETURNING_NAME / name).unlink(missing_ok=True)
        if not (bundle / name).is_dir():
            (bundle / name).unlink(missing_ok=True)


def tail_of(value: Any) -> bytes:
    """The end of a small file, as the other machine gave it; empty when that is nothing."""
    try:
        return base64.b64decode(value, validate=True)[-65_536:]
    except (TypeError, ValueError):
        return b""


def _make_folders(bundle: Path, folder: Path) -> None:
    if folder in {bundle, folder.parent} or folder.is_dir():
        return
    _make_folders(bundle, folder.parent)
    folder.unlink(missing_ok=True)  # a file where the job now has a folder
    folder.mkdir()


def _walk(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        if PARTIAL in folders:
            folders.remove(PARTIAL)
        yield from (Path(parent, name) for name in (*folders, *names))


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
