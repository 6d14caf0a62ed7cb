"""Write files so that each is complete or absent.

The order of work is: write beside the final name, flush the file, rename, flush the folder. A crash
leaves the old file, or the new one, and perhaps a temporary `.NAME.tmp-*` that `sweep` removes.
On macOS fsync does not reach the platter; F_FULLFSYNC does, so it is used there.

These functions know nothing of drives. Code that writes to the drive goes through
`partitions.Folder`, which first makes sure that the drive is still there.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scf.core.canonical import parse_json
from scf.core.errors import BudgetExceeded, DriveError, InputError, ScfError
from scf.storage.failpoint import failpoint

_TEMPORARY_MARK = ".tmp-"


class AlreadyWritten(ScfError):
    """A write-once name already holds other bytes."""


def flush_file(descriptor: int) -> None:
    """Return once the file's bytes are on the medium."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def flush_folder(folder: Path) -> None:
    """Return once the folder's names are on the medium."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (exFAT through FUSE, SMB) cannot flush a folder; there the rename is all
        # that can be had, and `scf doctor` warns about such drives.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make `path` hold exactly `data`, or leave it as it was.

    Raises:
        BudgetExceeded: The file system is full.
        DriveError: The medium failed or is read-only.
    """
    with open_staged(path, mode=mode) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_file` of indented JSON with sorted keys, for people and programs alike."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_file(path, text.encode() + b"\n", mode=mode)


def write_once(path: Path, data: bytes) -> None:
    """Store for ever: the same bytes again is success, other bytes an error.

    Raises:
        AlreadyWritten: `path` holds something else; it is left as it is.
    """
    if path.exists():
        if path.read_bytes() == data:
            return
        raise AlreadyWritten(f"{path} is write-once and holds other bytes")
    write_file(path, data)


@contextlib.contextmanager
def open_staged(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path`, durably, when the block ends without an error."""
    temporary = path.with_name(f".{path.name}{_TEMPORARY_MARK}{os.getpid()}-{secrets.token_hex(4)}")
    with os_errors(path):
        failpoint("durable.before_write")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os_errors(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            flush_file(file.fileno())
        with os_errors(path):
            failpoint("durable.before_rename")
            temporary.replace(path)
            failpoint("durable.after_rename")
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Add one line (no newline inside) and return once it is on the medium.

    A torn tail left by a crash (bytes after the last newline) is closed first with a newline of its
    own, so that it can never be glued to a good line; readers skip lines that do not parse.
    """
    if b"\n" in line:
        raise ValueError("a line cannot contain a newline")
    with os_errors(path):
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            failpoint("durable.append.before")
            size_bytes = os.fstat(descriptor).st_size
            torn = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
            _write_all(descriptor, (b"\n" if torn else b"") + line + b"\n")
            flush_file(descriptor)
            failpoint("durable.append.after")
        finally:
            os.close(descriptor)
        if is_new:
            flush_folder(path.parent)


def publish_folder(staged: Path, final: Path) -> None:
    """Give a complete staged folder (same file system) its final name; absent or complete.

    Raises:
        AlreadyWritten: `final` exists.
    """
    with os_errors(final):
        if final.exists():
            raise AlreadyWritten(f"{final} already exists")
        for folder, _, names in os.walk(staged):
            for name in names:
                descriptor = os.open(Path(folder, name), os.O_RDONLY)
                try:
                    flush_file(descriptor)
                finally:
                    os.close(descriptor)
            flush_folder(Path(folder))
        failpoint("durable.folder.before_rename")
        staged.rename(final)
        failpoint("durable.folder.after_rename")
        flush_folder(final.parent)


def new_staging(parent: Path, name: str) -> Path:
    """A fresh folder beside the final name, for `publish_folder`; `sweep` removes lost ones."""
    staged = parent / f".{name}{_TEMPORARY_MARK}{os.getpid()}-{secrets.token_hex(4)}"
    with os_errors(staged):
        staged.mkdir()
    return staged


def sweep(folder: Path) -> int:
    """Remove what crashed writers left behind in `folder`; return how many. Not recursive.

    A temporary name carries its writer's process id; those of living processes are left alone.
    """
    removed = 0
    for path in folder.glob(f".*{_TEMPORARY_MARK}*"):
        owner = path.name.rpartition(_TEMPORARY_MARK)[2].partition("-")[0]
        if owner.isdigit() and _is_alive(int(owner)) and int(owner) != os.getpid():
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        removed += 1
    return removed


def read_json(path: Path, *, size_max_bytes: int = 64 * 2**20) -> Any:
    """Read strict JSON from a file of bounded size.

    Raises:
        InputError: The file is missing, too large or not JSON; the message names it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(size_max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > size_max_bytes:
        raise InputError(f"{path}: larger than {size_max_bytes} bytes, refused")
    try:
        return parse_json(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about `path` into ours: full disk, failing drive."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise BudgetExceeded(
                f"{path}: the disk is full; nothing half-written was left",
                remedy="Free room or lower the budgets in scf.toml, then run the command again.",
            ) from error
        if error.errno in {errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE}:
            raise DriveError(
                f"{path}: the drive refuses to write: {error.strerror}",
                remedy="Check the drive's cable and file system; nothing was changed.",
            ) from error
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
