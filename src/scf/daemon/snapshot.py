"""The snapshot of a backup: what lay where, and the keys, encrypted and bound to it.

The keys are encrypted with a passphrase (scrypt, AES-256-GCM), with the rest of the snapshot as
associated data: with the right passphrase, whoever opens it also knows that nobody has changed a
line of it.
"""

import json
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from scf.core.canonical import canonical_json
from scf.core.errors import InputError, UsageError, VerificationFailed
from scf.core.identity import is_sha256_hex
from scf.dispatch.places import Place

SCHEMA = "scf.backup/1"
PASSPHRASE_MIN_CHARS = 12
# 64 MiB and some tenths of a second a guess.
_SCRYPT = {"n": 2**16, "r": 8, "p": 1}
_SNAPSHOT = re.compile(r"snapshots/([0-9]{8}T[0-9]{6}Z)\.json")


class BackupDamaged(VerificationFailed):
    """A snapshot does not hold what it says, or the passphrase is another one."""


def object_name(sha256: str) -> str:
    """Where content lies in a backup."""
    return f"objects/{sha256[:2]}/{sha256}"


def snapshot_name(stamp: str) -> str:
    """Where a snapshot lies."""
    return f"snapshots/{stamp}.json"


def snapshots(names: set[str]) -> list[str]:
    """The snapshots among the names of a place, oldest first."""
    return sorted(match[1] for name in names if (match := _SNAPSHOT.fullmatch(name)))


def newest_rows(place: Place, names: set[str]) -> dict[str, dict[str, Any]]:
    """What the newest snapshot has, by path; empty where it cannot be used."""
    found = snapshots(names)
    if not found:
        return {}
    try:
        manifest = json.loads(_fetch(place, snapshot_name(found[-1])))
        return {row["path"]: row for row in manifest["files"]}
    except (InputError, KeyError, TypeError, ValueError, OSError):
        return {}


def read_snapshot(
    place: Place, stamp: str, passphrase: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest and the keys, both known to be as they were saved.

    Raises:
        BackupDamaged: Another passphrase, or not a snapshot of ours any more.
    """
    name = snapshot_name(stamp)
    try:
        value = json.loads(_fetch(place, name))
        sealed = value.pop("keys")
        if value["schema"] != SCHEMA:
            raise BackupDamaged(f"{name}: schema {value['schema']!r}, this scf knows {SCHEMA}")
        for row in value["files"]:
            if not is_sha256_hex(row["sha256"]):
                raise BackupDamaged(f"{name}: a digest is ill-formed")
        return value, open_keys(sealed, passphrase, value)
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise BackupDamaged(f"{name}: not a snapshot: {error}") from error


def _fetch(place: Place, name: str) -> bytes:
    if place.folder_here is not None:
        return (place.folder_here / name).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        place.get([name], Path(scratch))
        return (Path(scratch) / name).read_bytes()


def check_passphrase(passphrase: str) -> None:
    """Raise UsageError for one that is too short to protect anything."""
    if len(passphrase) < PASSPHRASE_MIN_CHARS:
        raise UsageError(
            f"a passphrase of at least {PASSPHRASE_MIN_CHARS} characters is needed",
            remedy="It protects the signing keys; keep it apart from the backup.",
        )


def seal_keys(
    keys: Mapping[str, str], passphrase: str, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys, encrypted and bound to the manifest."""
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = AESGCM(_key_of(passphrase, salt, _SCRYPT)).encrypt(
        nonce, canonical_json(dict(keys)), canonical_json(dict(manifest))
    )
    return {
        "kdf": {"name": "scrypt", "salt": salt.hex(), **_SCRYPT},
        "cipher": "aes-256-gcm",
        "nonce": nonce.hex(),
        "sealed": sealed.hex(),
    }


def open_keys(
    sealed: Mapping[str, Any], passphrase: str, manifest: Mapping[str, Any]
) -> dict[str, str]:
    """What `seal_keys` sealed. Raises BackupDamaged."""
    kdf = sealed["kdf"]
    cost = {name: int(kdf[name]) for name in _SCRYPT}
    if cost["n"] * cost["r"] > 2**22 or cost["p"] > 4:
        raise BackupDamaged("the snapshot asks for more memory than any of ours does")
    key = _key_of(passphrase, bytes.fromhex(kdf["salt"]), cost)
    try:
        plain = AESGCM(key).decrypt(
            bytes.fromhex(sealed["nonce"]),
            bytes.fromhex(sealed["sealed"]),
            canonical_json(dict(manifest)),
        )
    except InvalidTag as error:
        raise BackupDamaged(
            "the snapshot does not open: another passphrase, or a line of it was changed"
        ) from error
    keys: dict[str, str] = json.loads(plain)
    return keys


def _key_of(passphrase: str, salt: bytes, cost: Mapping[str, int]) -> bytes:
    return Scrypt(salt=salt, length=32, **cost).derive(passphrase.encode())
