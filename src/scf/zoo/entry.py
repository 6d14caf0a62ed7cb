"""`entry.json`: what a generation is, in one file beside it. Schema scf.generation/1."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import is_sha256_hex
from scf.storage import durable
from scf.verification.verify_checkpoint import file_sha256

SCHEMA = "scf.generation/1"
ENTRY_NAME = "entry.json"
KIND = "ebdm"


class GenerationDamaged(VerificationFailed):
    """A generation's folder does not hold what its entry says."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}",
            remedy="Restore the folder from a backup, or `scf zoo rollback` to a sound generation.",
        )


@dataclass(frozen=True)
class Generation:
    """One promoted EBDM and what was made from it.

    Attributes:
        name: `ebdm_gen0001`; numbers are never used twice.
        number: Its number.
        run_id: The run that made it.
        checkpoint_digest: The name of its weights.
        plan_id, fossils, merkle_root: The plan it was trained on.
        parent: The generation whose weights it began with, or None.
        statement_sha256: Of the signed statement about it.
        promoted_at: When, RFC 3339 in UTC.
        num_parameters: Of the model.
        files: SHA-256 of each file, by path inside the folder, `entry.json` itself left out.
        path: Where the folder lies.
    """

    name: str
    number: int
    run_id: str
    checkpoint_digest: str
    plan_id: str
    fossils: int
    merkle_root: str
    parent: str | None
    statement_sha256: str
    promoted_at: str
    num_parameters: int
    files: Mapping[str, str]
    path: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder."""
        return self.path / "checkpoint"

    def to_json(self) -> dict[str, Any]:
        """The content of `entry.json`."""
        return {
            "schema": SCHEMA,
            "generation": self.name,
            "number": self.number,
            "kind": KIND,
            "run": self.run_id,
            "checkpoint_digest": self.checkpoint_digest,
            "plan_id": self.plan_id,
            "fossils": self.fossils,
            "merkle_root": self.merkle_root,
            "parent": self.parent,
            "statement_sha256": self.statement_sha256,
            "promoted_at": self.promoted_at,
            "num_parameters": self.num_parameters,
            "files": dict(self.files),
        }

    def verify(self) -> None:
        """Re-hash every file.

        Raises:
            GenerationDamaged: Names the first file that is missing or changed.
        """
        for name, expected in self.files.items():
            path = self.path / name
            if path.is_symlink() or not path.is_file():
                raise GenerationDamaged(path, "missing, or not a plain file")
            if file_sha256(path) != expected:
                raise GenerationDamaged(path, "its bytes are not those that were promoted")


def generation_name(number: int) -> str:
    """The folder of generation `number`."""
    return f"{KIND}_gen{number:04d}"


def generation_number(name: str) -> int | None:
    """The number in a folder's name; None for anything that is not a generation's."""
    digits = name.removeprefix(f"{KIND}_gen")
    is_one = digits.isascii() and digits.isdigit() and generation_name(int(digits)) == name
    return int(digits) if is_one else None


def read_generation(folder: Path) -> Generation:
    """Read a generation's entry.

    Raises:
        GenerationDamaged: Missing, malformed, or about another folder.
    """
    path = folder / ENTRY_NAME
    try:
        value = durable.read_json(path)
        name, number = value["generation"], value["number"]
        if value["schema"] != SCHEMA or not name == folder.name == generation_name(number):
            raise GenerationDamaged(path, f"not the entry of {folder.name}")
        generation = Generation(
            name=name,
            number=number,
            run_id=str(value["run"]),
            checkpoint_digest=value["checkpoint_digest"],
            plan_id=value["plan_id"],
            fossils=int(value["fossils"]),
            merkle_root=value["merkle_root"],
            parent=value["parent"],
            statement_sha256=value["statement_sha256"],
            promoted_at=str(value["promoted_at"]),
            num_parameters=int(value["num_parameters"]),
            files=dict(value["files"]),
            path=folder,
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise GenerationDamaged(path, f"cannot be read: {error!r}") from error
    digests = [
        generation.checkpoint_digest, generation.plan_id, generation.merkle_root,
        generation.statement_sha256, *generation.files.values(),
    ]  # fmt: skip
    if not all(is_sha256_hex(digest) for digest in digests):
        raise GenerationDamaged(path, "it holds something else where a digest should be")
    return generation
