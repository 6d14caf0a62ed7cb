"""What a job needs on another machine: which files, under which names, and its spec as read there.

A spec names paths of this machine: the vault, a parent's checkpoint. There, the job's bundle holds
everything: `vault/` with the shards of its plan and no others, `inputs/folders/NAME/` for a folder,
`outputs/` with what an earlier try left. Everything is carried by its SHA-256.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scf.core.canonical import parse_json
from scf.core.errors import InputError
from scf.core.identity import is_sha256_hex
from scf.dispatch.bundle import Bundle, list_outputs
from scf.dispatch.job import JobSpec, is_plain_path

PLAN_INPUT = "plan.json"
LINK, COPY = "link", "copy"


@dataclass(frozen=True)
class Carried:
    """A file that travels.

    Attributes:
        path: Inside the bundle over there.
        sha256: Its content's name.
        size_bytes: Its size.
        source: Where it lies here.
        how: `link` for what the job only reads; `copy` for what it may write to.
    """

    path: str
    sha256: str
    size_bytes: int
    source: Path
    how: str = LINK


@dataclass(frozen=True)
class Packing:
    """All that one job takes with it."""

    spec: JobSpec
    carried: tuple[Carried, ...]

    def spec_there(self, root: str) -> dict[str, Any]:
        """The spec as the worker reads it, with paths of that machine."""
        value = self.spec.to_json()
        if self.spec.vault is not None:
            value["vault"] = f"{root}/jobs/{self.spec.job_id}/vault"
        for row in value["inputs"]:
            if row["path"].startswith("/"):
                row["path"] = _path_there(row["name"])
        return value

    @property
    def tree(self) -> list[list[str]]:
        """`[path, sha256, how]` of each file."""
        return [[row.path, row.sha256, row.how] for row in self.carried]


def pack(bundle: Bundle) -> Packing:
    """Find all that the job of `bundle` needs.

    Raises:
        InputError: Something that the spec names is not here, or is not what it must be; or the job
            reads a vault and carries no plan that says which shards.
    """
    spec = bundle.spec()
    rows = [
        *_inputs(bundle, spec),
        *_shards(bundle, spec),
        *(
            Carried(row["path"], row["sha256"], row["size_bytes"], bundle.path / row["path"], COPY)
            for row in list_outputs(bundle.path)
        ),
    ]
    return Packing(spec, tuple(rows))


def _inputs(bundle: Bundle, spec: JobSpec) -> Iterator[Carried]:
    for given in spec.inputs:
        source = bundle.path / given.path
        if given.sha256 is not None:
            there = _path_there(given.name) if given.path.startswith("/") else given.path
            yield Carried(there, given.sha256, _size_of(source), source)
            continue
        if not source.is_dir():
            raise InputError(f"input {given.name}: {source} is not a folder")
        for path in _plain_files(source):
            name = f"{_path_there(given.name)}/{path.relative_to(source).as_posix()}"
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield Carried(name, digest, _size_of(path), path)


def _shards(bundle: Bundle, spec: JobSpec) -> Iterator[Carried]:
    if spec.vault is None:
        return
    given = spec.input(PLAN_INPUT)
    if given is None:
        raise InputError(
            f"{spec.job_id}: a job that travels and reads a vault needs the input {PLAN_INPUT}, "
            "which says which shards go with it"
        )
    try:
        plan = parse_json((bundle.path / given.path).read_bytes())
        rows = [(row["path"], row["sha256"], row["size_bytes"]) for row in plan["shards"]]
    except (OSError, KeyError, TypeError) as error:
        raise InputError(f"input {PLAN_INPUT}: no list of shards in it: {error}") from error
    for name, sha256, size_bytes in rows:
        if not isinstance(name, str) or not is_plain_path(PurePosixPath(name)):
            raise InputError(f"input {PLAN_INPUT}: shard {name!r} is not inside the vault")
        if not is_sha256_hex(sha256):
            raise InputError(f"input {PLAN_INPUT}: shard {name}: {sha256!r} is not a SHA-256")
        source = Path(spec.vault) / name
        if _size_of(source) != size_bytes:
            raise InputError(f"{source}: the plan says {size_bytes} bytes, it has another size")
        yield Carried(f"vault/{name}", sha256, size_bytes, source)


def _path_there(name: str) -> str:
    return f"inputs/folders/{name}"


def _size_of(path: Path) -> int:
    try:
        info = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path}: not a file")
    return info.st_size


def _plain_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise InputError(f"{path}: neither a file nor a folder")
            yield path
