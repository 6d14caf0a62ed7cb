"""Pack a release: files in, digests and signatures over them, nothing under its name until whole.

RELEASE.json lists every other file by digest and size; RELEASE.dsse.json is its signature. Both are
canonical JSON, so that the same inputs give the same bytes. Format: docs/formats/release.md.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.signing.signer import Signer
from scf.storage import durable
from scf.storage.partitions import Folder

SCHEMA = "scf.release/1"
PAYLOAD_TYPE = "application/vnd.scf.release+json"
RELEASE_NAME = "RELEASE.json"
ENVELOPE_NAME = "RELEASE.dsse.json"
SUMS_NAME = "SHA256SUMS"


class ReleaseDamaged(VerificationFailed):
    """A release on the drive cannot be read, or does not verify."""


def pack(
    staged: Path,
    files: Mapping[str, Path | bytes],
    about: Mapping[str, Any],
    signer: Signer,
) -> str:
    """Fill the folder `staged`; returns the SHA-256 of its RELEASE.json.

    Args:
        staged: An empty folder.
        files: By path inside the release: a file to copy, or bytes.
        about: RELEASE.json without `schema` and `files`.
        signer: The foundry's.

    Raises:
        BudgetExceeded: The disk is full; the caller drops `staged`.
    """
    listed = {name: _put(staged / name, source) for name, source in sorted(files.items())}
    sums = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(listed.items()))
    listed[SUMS_NAME] = _put(staged / SUMS_NAME, sums.encode())
    payload = canonical_json({"schema": SCHEMA, **about, "files": listed})
    envelope = signer.sign_envelope(PAYLOAD_TYPE, payload)
    _put(staged / RELEASE_NAME, payload)
    _put(staged / ENVELOPE_NAME, canonical_json(envelope.to_json()))
    return sha256_hex(payload)


def read_release(folder: Path) -> dict[str, Any]:
    """RELEASE.json of a release on the drive, not verified; for lists and for the chain.

    Raises:
        ReleaseDamaged: It cannot be read.
    """
    path = folder / RELEASE_NAME
    try:
        value = durable.read_json(path)
    except InputError as error:
        raise ReleaseDamaged(str(error), remedy=_REMEDY.format(name=folder.name)) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ReleaseDamaged(
            f"{path}: not a release of schema {SCHEMA}", remedy=_REMEDY.format(name=folder.name)
        )
    return value


def releases_of(folder: Folder) -> list[Path]:
    """The releases in `release_history`, by week."""
    return sorted(path for path in folder.path.glob("week-????-??-??") if path.is_dir())


_REMEDY = "Restore {name} from a backup or a copy: releases follow each other by digest."


def _put(path: Path, source: Path | bytes) -> dict[str, Any]:
    """Write or copy one file, read-only; returns its digest and size."""
    digest = hashlib.sha256()
    with durable.os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            if isinstance(source, bytes):
                digest.update(source)
                target.write(source)
            else:
                with source.open("rb") as file:
                    while block := file.read(2**20):
                        digest.update(block)
                        target.write(block)
            size_bytes = target.tell()
    make_read_only(path, 0o444)
    return {"sha256": digest.hexdigest(), "size_bytes": size_bytes}


def make_read_only(path: Path, mode: int) -> None:
    """As far as the file system knows permissions; on exFAT and its like the digests must do."""
    with contextlib.suppress(OSError):
        path.chmod(mode)


def seal(release: Path) -> None:
    """Let nothing be added to a release, or taken out of it, by mistake."""
    for folder in [release, *(path for path in release.rglob("*") if path.is_dir())]:
        make_read_only(folder, 0o555)


def drop(staged: Path) -> None:
    """Remove a staged folder."""
    shutil.rmtree(staged, ignore_errors=True)
