"""Private keys: made, kept and opened here, and nowhere else.

A key file is PKCS#8 in PEM with mode 0600; its public half lies beside it as `ROLE.pub`. A key that
others may read is refused, as ssh does.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.core.errors import OperatorError
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable

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
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            durable.write_file(path, pem, mode=0o600)
        # The public half is derived: written again after a crash between the two writes.
        public = load_signer(folder, role).public_key
        durable.write_once(folder / f"{role}.pub", public.to_pem())
    return public_keys(folder)


def load_signer(folder: Path, role: str) -> Signer:
    """Open the private key of `role`.

    Raises:
        KeyMissing: Absent, damaged, or readable by others.
    """
    path = folder / f"{role}.key"
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
            keys[role] = PublicKey.from_pem(path.read_bytes())
        except OSError as error:
            raise KeyMissing(
                f"{path}: cannot be read: {error.strerror}", remedy="Run `scf init`."
            ) from error
    return keys
