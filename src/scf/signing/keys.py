"""Private keys: made, kept and opened here, and nowhere else.

A key file is PKCS#8 in PEM with mode 0600; its public half lies beside it as `ROLE.pub`. A key that
others may read is refused, as ssh does. Keys that were replaced are known by `rotations.json`
(`signing.rotation`), which public keys are handed out with.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.core.errors import InputError, OperatorError
from scf.signing.rotation import ROTATIONS_NAME, lineage, rotation
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.failpoint import failpoint

# vault: shard manifests. foundry: statements, tree heads, releases.
ROLES = ("vault", "foundry")


class KeyMissing(OperatorError):
    """A key that is needed is not there, or cannot be trusted to be private."""


def create_keys(folder: Path) -> dict[str, PublicKey]:
    """Make the keys that are absent; keep those that are there. Returns all public halves."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for role in ROLES:
        path = folder / f"{role}.key"
        if not path.exists():
            durable.write_file(path, _new_key(), mode=0o600)
        # The public half is derived: written again after a crash between the two writes.
        public = load_signer(folder, role).public_key
        durable.write_file(folder / f"{role}.pub", public.to_pem())
    return public_keys(folder)


def rotate_key(folder: Path, role: str, *, reason: str, at: str) -> PublicKey:
    """Replace the key of `role` by a new one that the old one names; returns the new one.

    The old private key is gone afterwards. After a crash, another call finishes what was begun.

    Raises:
        KeyMissing: The key cannot be opened.
    """
    old, fresh = load_signer(folder, role), folder / f"{role}.key.next"
    if not fresh.exists():
        durable.write_file(fresh, _new_key(), mode=0o600)
    new = _open(fresh, role)
    rotations = read_rotations(folder)
    is_named = any(lineage(new.public_key, role, [one]) for one in rotations)
    if not is_named:
        envelope = rotation(old, new.public_key, reason=reason, at=at).to_json()
        durable.write_json(folder / ROTATIONS_NAME, [*rotations, envelope])
    failpoint("keys.rotation_written")
    durable.write_file(folder / f"{role}.key", fresh.read_bytes(), mode=0o600)
    durable.write_file(folder / f"{role}.pub", new.public_key.to_pem())
    fresh.unlink()
    return load_signer(folder, role).public_key


def read_rotations(folder: Path) -> list[Any]:
    """Every rotation so far, oldest first, as JSON; not verified."""
    path = folder / ROTATIONS_NAME
    value = durable.read_json(path) if path.exists() else []
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of key rotations")
    return value


def load_signer(folder: Path, role: str) -> Signer:
    """Open the private key of `role`.

    Raises:
        KeyMissing: Absent, damaged, or readable by others.
    """
    opened = _open(folder / f"{role}.key", role)
    return replace(opened, public_key=_with_lineage(opened.public_key, folder, role))


def _with_lineage(key: PublicKey, folder: Path, role: str) -> PublicKey:
    return PublicKey(key.raw, lineage(key, role, read_rotations(folder)))


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _open(path: Path, role: str) -> Signer:
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise KeyMissing(
            f"{path}: the {role} key cannot be read: {error.strerror}",
            remedy="Run `scf init` to make keys, or restore them from your backup.",
        ) from error
    if mode & 0o077 and os.name == "posix":
        raise KeyMissing(
            f"{path}: others may read this private key (mode {mode & 0o777:04o})",
            remedy=f"Run `chmod 600 {path}` if nobody has copied it; else rotate it.",
        )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise KeyMissing(
            f"{path}: not a private key in PEM", remedy="Restore it from your backup."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyMissing(f"{path}: not an Ed25519 key", remedy="Restore it from your backup.")
    return Signer(role, PublicKey(key.public_key().public_bytes_raw()), key.sign)


def public_keys(folder: Path) -> dict[str, PublicKey]:
    """The public half of every role, by role.

    Raises:
        KeyMissing: One is absent.
    """
    keys = {}
    for role in ROLES:
        path = folder / f"{role}.pub"
        try:
            keys[role] = _with_lineage(PublicKey.from_pem(path.read_bytes()), folder, role)
        except OSError as error:
            raise KeyMissing(
                f"{path}: cannot be read: {error.strerror}", remedy="Run `scf init`."
            ) from error
    return keys
