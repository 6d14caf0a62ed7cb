"""Which Ray cluster takes jobs, what they may take of it, and the secret that it shares with us."""

from dataclasses import dataclass, field
from pathlib import Path

from scf.core.errors import OperatorError
from scf.dispatch.ray_nodes import RayGroup
from scf.dispatch.secret_file import read_secret

GUIDE = "See docs/operations/ray-door.md."


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
        text = read_secret(
            path,
            "the Ray cluster's token",
            remedy=remedy,
            remedy_exposed=f"chmod 600 {path}; and give the cluster a new token.",
        )
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise OperatorError(f"{path}: holds no token", remedy=remedy)
        return cls(text)
