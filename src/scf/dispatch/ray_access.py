"""Which Ray cluster takes jobs, what they may take of it, and the secret that it shares with us."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from scf.core.errors import OperatorError
from scf.dispatch.ray_nodes import RayGroup

GUIDE = "See docs/operations/ray-door.md."
_TOKEN_MAX_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """A cluster, and what a job takes of it.

    Attributes:
        address: `http://HOST:8265` of its job server.
        token_file: File with its token, mode 0600.
        group: How many nodes train together, and what each gives.
        node: Address of the node on which a job begins; empty for the head.
        root: Folder on each node for everything of ours.
        python: The nodes' Python, 3.11 or newer, with what training needs.
        ports: Where the gates listen, `FIRST-LAST`.
        look_s: Pause between looks at a running job.
    """

    address: str
    token_file: Path
    group: RayGroup = field(default_factory=RayGroup)
    node: str = ""
    root: str = "~/.scf-worker"
    python: str = "python3"
    ports: str = "29700-29799"
    look_s: float = 15.0


@dataclass(frozen=True)
class RayToken:
    """The secret that a cluster and we share; it is not printed."""

    text: str = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "RayToken":
        """The token in a file that is ours alone.

        Raises:
            OperatorError: There is none, or others may read it.
        """
        remedy = (
            f"Copy the cluster's token there: `(umask 077; cat > {path})`, and paste what "
            f"`ray get-auth-token` says on its head. {GUIDE}"
        )
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise OperatorError(
                f"{path}: the Ray cluster's token cannot be read: {error.strerror}", remedy=remedy
            ) from error
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid != os.getuid():
                raise OperatorError(
                    f"{path}: mode {stat.S_IMODE(info.st_mode):04o} of user {info.st_uid}: others "
                    "may read the Ray cluster's token",
                    remedy=f"chmod 600 {path}; and give the cluster a new token.",
                )
            text = file.read(_TOKEN_MAX_BYTES).decode(errors="replace").strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise OperatorError(f"{path}: holds no token", remedy=remedy)
        return cls(text)
