"""A secret in a file that is ours alone: a file that others may read is refused.

A secret that was readable is a secret that was read. The doors that need one say what it is and
what to do.
"""

import os
import stat
from pathlib import Path

from scf.core.errors import OperatorError

_MAX_BYTES = 4096


def read_secret(
    path: Path,
    what: str,
    *,
    error: type[OperatorError] = OperatorError,
    remedy: str | None = None,
    remedy_exposed: str,
) -> str:
    """The text of the file, without white space around it; it may be empty.

    Args:
        path: The file; a link is not followed.
        what: What it holds, for the message: `the API key`.
        error: What is raised.
        remedy: What to do where it cannot be read.
        remedy_exposed: What to do where others may read it.

    Raises:
        OperatorError: It cannot be read, is no file, or is not ours alone (mode 0600).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as fault:
        raise error(f"{path}: {what} cannot be read: {fault.strerror}", remedy=remedy) from fault
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid != os.getuid():
            raise error(
                f"{path}: mode {stat.S_IMODE(info.st_mode):04o} of user {info.st_uid}: others may "
                f"read {what}",
                remedy=remedy_exposed,
            )
        return file.read(_MAX_BYTES).decode(errors="replace").strip()
