"""Copy what cannot be made again to another place, and bring it back on an empty machine.

    DIR/objects/ab/abcd...      content, named by its SHA-256; each once, however many snapshots
    DIR/snapshots/STAMP.json    what lay where, with digests, and the keys, encrypted

A snapshot holds the home (settings, states, the committed audit head), the keys, the audit log and
proofs, the zoo and the releases; the vault only if it is asked for. The keys are encrypted with a
passphrase (scrypt, AES-256-GCM) and bound to the rest of the snapshot: with the right passphrase,
`restore` also knows that nobody has changed a line of it. May run beside a running daemon.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

import scf
from scf.audit.check import check_log
from scf.audit.log import LOCK_WAIT_S
from scf.config import FoundryConfig
from scf.core.canonical import canonical_json
from scf.core.clock import Clock, utc_text
from scf.core.errors import InputError, OperatorError, UsageError, VerificationFailed
from scf.core.identity import is_sha256_hex
from scf.daemon.rooms import own_drive
from scf.signing.keys import public_keys
from scf.signing.rotation import ROTATIONS_NAME
from scf.storage import durable
from scf.storage.instance_lock import instance_lock
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES, MARKER_NAME

SCHEMA = "scf.backup/1"
PASSPHRASE_MIN_CHARS = 12
# 64 MiB and some tenths of a second a guess.
_SCRYPT = {"n": 2**16, "r": 8, "p": 1}

# Always taken, in this order: what names others first, so that whatever is named has been written
# by the time that it is copied.
_PARTITIONS = ("zk_proofs", "model_zoo", "release_history")
_VAULT = "fossil_vault"
# Of the home: made again, or about processes of this machine, or encrypted apart.
_NOT_OF_HOME = re.compile(
    r"(keys|logs|local_jobs|quickstart)/.*|.*\.lock|.*/lock|vault_index\.db.*|.*-(wal|shm)|\..*"
)
# Written last when restoring: until they are there, nobody takes the place for a foundry.
_LAST = (f"root/{MARKER_NAME}", "home/scf.toml")
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class BackupDamaged(VerificationFailed):
    """A snapshot does not hold what it says, or the passphrase is another one."""


@dataclass(frozen=True)
class Saved:
    """What a backup came to. `new_bytes` were copied; the rest was there from earlier ones."""

    snapshot: str
    files: int
    bytes: int
    new_bytes: int
    with_vault: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "files": self.files,
            "bytes": self.bytes,
            "new_bytes": self.new_bytes,
            "with_vault": self.with_vault,
        }


@dataclass(frozen=True)
class Restored:
    """What was brought back."""

    snapshot: str
    files: int
    audit_entries: int
    with_vault: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "files": self.files,
            "audit_entries": self.audit_entries,
            "with_vault": self.with_vault,
        }


# --- saving ---


def save(
    config: FoundryConfig,
    target: Path,
    *,
    passphrase: str,
    with_vault: bool,
    clock: Clock,
    talk: Callable[[str], None] = lambda _: None,
) -> Saved:
    """Make a snapshot of the foundry in `target`.

    Raises:
        UsageError: A passphrase too short to protect anything, or a target inside the foundry.
        DriveMissing: The drive is not there.
        BudgetExceeded: The target is full; earlier snapshots are whole.
    """
    _check_passphrase(passphrase)
    drive = own_drive(config)
    target = target.resolve()
    if any(target.is_relative_to(place.resolve()) for place in (config.home, drive.root)):
        raise UsageError(
            f"{target} lies inside the foundry: one drive is one failure",
            remedy="Name a folder on another disk.",
        )
    with durable.os_errors(target):
        (target / "objects").mkdir(parents=True, exist_ok=True)
        (target / "snapshots").mkdir(exist_ok=True)
    stamp = utc_text(clock.now())[:19].replace("-", "").replace(":", "") + "Z"
    store = _Store(target, _newest_rows(target))
    rows: list[dict[str, Any]] = []
    # The log and its committed head belong together: nobody appends while they are copied.
    lock = instance_lock(config.home / "audit" / "lock", holder="scf backup", wait_s=LOCK_WAIT_S)
    with tempfile.TemporaryDirectory() as scratch, lock:
        rows += _home_rows(store, config.home, Path(scratch))
        rows += store.tree(drive.root / "zk_proofs", "root/zk_proofs")
    for partition in (*_PARTITIONS[1:], *((_VAULT,) if with_vault else ())):
        talk(f"{partition} ...")
        rows += store.tree(drive.root / partition, f"root/{partition}")
    rows.append(store.file(drive.root / MARKER_NAME, f"root/{MARKER_NAME}"))
    manifest = {
        "schema": SCHEMA,
        "made_at": utc_text(clock.now()),
        "scf": scf.__version__,
        "drive_uuid": drive.uuid,
        "with_vault": with_vault,
        "files": sorted(rows, key=lambda row: str(row["path"])),
    }
    keys = _encrypt(_key_bytes(config.home / "keys"), passphrase, manifest)
    durable.write_json(
        target / "snapshots" / f"{stamp}.json", {**manifest, "keys": keys}, mode=0o600
    )
    total = sum(int(row["size_bytes"]) for row in rows)
    return Saved(stamp, len(rows), total, store.new_bytes, with_vault)


class _Store:
    """Content by digest. A file that is as the newest snapshot saw it is not read again."""

    def __init__(self, target: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
        self._objects = target / "objects"
        self._known = known
        self.new_bytes = 0

    def tree(self, folder: Path, name: str) -> Iterator[dict[str, Any]]:
        """Every file below `folder`; those of a folder before those of its folders."""
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink()):
            if not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    yield self.file(path, f"{name}/{path.name}")
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            if not path.name.startswith("."):
                yield from self.tree(path, f"{name}/{path.name}")

    def file(self, path: Path, name: str) -> dict[str, Any]:
        """Keep one file's content; returns its row."""
        stat = path.stat()
        # A text: nanoseconds are more than the whole numbers that every JSON reader agrees on.
        seen = (stat.st_size, str(stat.st_mtime_ns))
        known = self._known.get(name)
        is_as_it_was = known and (known["size_bytes"], known["mtime_ns"]) == seen
        if known and is_as_it_was and self._object(known["sha256"]).exists():
            return dict(known)
        digest, size_bytes = self._keep(path)
        return {
            "path": name,
            "sha256": digest,
            "size_bytes": size_bytes,
            "mtime_ns": str(stat.st_mtime_ns),
            "mode": stat.st_mode & 0o777,
        }

    def _keep(self, path: Path) -> tuple[str, int]:
        temporary = self._objects / f".{secrets.token_hex(8)}.tmp-{os.getpid()}"
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with durable.os_errors(temporary):
                with path.open("rb") as reader, temporary.open("xb") as writer:
                    while block := reader.read(2**20):
                        digest.update(block)
                        size_bytes += len(block)
                        writer.write(block)
                    writer.flush()
                    durable.flush_file(writer.fileno())
                final = self._object(digest.hexdigest())
                if not final.exists():
                    final.parent.mkdir(exist_ok=True)
                    temporary.replace(final)
                    durable.flush_folder(final.parent)
                    self.new_bytes += size_bytes
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size_bytes

    def _object(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256


def _home_rows(store: _Store, home: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(home.rglob("*")):
        relative = path.relative_to(home).as_posix()
        if not path.is_file() or path.is_symlink() or _NOT_OF_HOME.fullmatch(relative):
            continue
        if path.suffix == ".db":
            # A database that is in use is copied as SQLite sees it, not as its files lie there.
            copy = scratch / path.name
            _copy_database(path, copy)
            yield store.file(copy, f"home/{relative}")
        else:
            yield store.file(path, f"home/{relative}")


def _copy_database(path: Path, copy: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(path, timeout=30.0)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.DatabaseError as error:
        raise OperatorError(
            f"{path}: cannot be copied: {error}",
            remedy="For runs.db: `scf daemon rebuild-state`, then make the backup again.",
        ) from error


def _key_bytes(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())
            if path.suffix in {".key", ".pub"} or path.name == ROTATIONS_NAME}  # fmt: skip


# --- bringing back ---


def restore(
    source: Path,
    *,
    home: Path,
    root: Path,
    passphrase: str,
    snapshot: str | None = None,
    talk: Callable[[str], None] = lambda _: None,
) -> Restored:
    """Bring a snapshot (the newest, unless one is named) to a home and a root that are empty.

    A restore that was cut off is done again: what is there already, byte for byte, is kept.

    Raises:
        UsageError: Home or root hold a foundry, or there is no such snapshot.
        BackupDamaged: Another passphrase, or a file that is missing or changed; home and root are
            then no foundry yet.
    """
    home, root = home.resolve(), root.resolve()
    for place, name in ((home, "scf.toml"), (root, MARKER_NAME)):
        if (place / name).exists():
            raise UsageError(f"{place} holds a foundry already", remedy="Restore to empty folders.")
    if home == root or root in home.parents or home in root.parents:
        raise UsageError(f"home {home} and root {root} must lie apart")
    name = snapshot or _newest(source)
    manifest, keys = _read_snapshot(source / "snapshots" / f"{name}.json", passphrase)
    rows = sorted(manifest["files"], key=lambda row: row["path"] in _LAST)
    for row in rows:
        _bring_back(source, row, home, root)
    (home / "keys").mkdir(mode=0o700, exist_ok=True)
    for file, data in keys.items():
        mode = 0o600 if file.endswith(".key") else 0o644
        durable.write_file(home / "keys" / PurePosixPath(file).name, bytes.fromhex(data), mode=mode)
    for partition in DEFAULT_BUDGETS_BYTES:
        (root / partition).mkdir(exist_ok=True)
    talk("checking the audit log ...")
    report = check_log(root / "zk_proofs" / "audit", public_keys(home / "keys")["foundry"])
    if not report.ok:
        raise BackupDamaged(f"{source}: the audit log of snapshot {name} does not hold")
    return Restored(name, len(rows), report.size, bool(manifest["with_vault"]))


def _bring_back(source: Path, row: Mapping[str, Any], home: Path, root: Path) -> None:
    path = _place_of(str(row["path"]), home, root)
    content = source / "objects" / row["sha256"][:2] / row["sha256"]
    with durable.os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if row["path"] == "home/scf.toml":
        text = _checked(content, row).decode()
        durable.write_file(path, _with_root(text, root).encode())
        return
    if path.exists() and _file_sha256(path) == row["sha256"]:
        return
    digest = hashlib.sha256()
    try:
        with content.open("rb") as reader, durable.open_staged(path, mode=int(row["mode"])) as out:
            while block := reader.read(2**20):
                digest.update(block)
                out.write(block)
            if digest.hexdigest() != row["sha256"]:
                raise BackupDamaged(f"{content}: not what its name says ({row['path']})")
    except FileNotFoundError as error:
        raise BackupDamaged(f"{content}: missing ({row['path']})") from error


def _place_of(name: str, home: Path, root: Path) -> Path:
    """Where a row goes. Raises BackupDamaged for a name that leaves home and root."""
    pure = PurePosixPath(name)
    base = {"home": home, "root": root}.get(pure.parts[0] if pure.parts else "")
    if base is None or len(pure.parts) < 2 or ".." in pure.parts or pure.is_absolute():
        raise BackupDamaged(f"a snapshot names {name!r}, which is no file of a foundry")
    return base.joinpath(*pure.parts[1:])


def _checked(content: Path, row: Mapping[str, Any]) -> bytes:
    try:
        data = content.read_bytes()
    except OSError as error:
        raise BackupDamaged(f"{content}: {error.strerror} ({row['path']})") from error
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise BackupDamaged(f"{content}: not what its name says ({row['path']})")
    return data


def _with_root(toml: str, root: Path) -> str:
    """scf.toml with the drive's new place: the first key, before any section."""
    line = f"root = {json.dumps(str(root), ensure_ascii=False)}"
    kept = [text for text in toml.splitlines() if not re.match(r"root\s*=", text)]
    return "\n".join([line, *kept]) + "\n"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- snapshots ---


def snapshots(source: Path) -> list[str]:
    """Names of the snapshots in `source`, oldest first."""
    found = (source / "snapshots").glob("*.json")
    return sorted(path.stem for path in found if _STAMP.fullmatch(path.stem))


def _newest(source: Path) -> str:
    found = snapshots(source)
    if not found:
        raise UsageError(f"{source} holds no snapshot", remedy="Make one: `scf backup --to DIR`.")
    return found[-1]


def _newest_rows(target: Path) -> dict[str, dict[str, Any]]:
    found = snapshots(target)
    if not found:
        return {}
    try:
        manifest = durable.read_json(target / "snapshots" / f"{found[-1]}.json")
        return {row["path"]: row for row in manifest["files"]}
    except (InputError, KeyError, TypeError):
        return {}


def _read_snapshot(path: Path, passphrase: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest and the keys, both known to be as they were saved."""
    if not path.is_file():
        raise UsageError(f"no snapshot {path.stem} here: {path}")
    try:
        value = durable.read_json(path, size_max_bytes=2**30)
        sealed = value.pop("keys")
        if value["schema"] != SCHEMA:
            raise BackupDamaged(f"{path}: schema {value['schema']!r}, this scf knows {SCHEMA}")
        for row in value["files"]:
            if not is_sha256_hex(row["sha256"]):
                raise BackupDamaged(f"{path}: a digest is ill-formed")
        return value, _decrypt(sealed, passphrase, value)
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackupDamaged(f"{path}: not a snapshot: {error}") from error


def _check_passphrase(passphrase: str) -> None:
    if len(passphrase) < PASSPHRASE_MIN_CHARS:
        raise UsageError(
            f"a passphrase of at least {PASSPHRASE_MIN_CHARS} characters is needed",
            remedy="It protects the signing keys; keep it apart from the backup.",
        )


def _encrypt(
    keys: Mapping[str, str], passphrase: str, manifest: Mapping[str, Any]
) -> dict[str, Any]:
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


def _decrypt(
    sealed: Mapping[str, Any], passphrase: str, manifest: Mapping[str, Any]
) -> dict[str, str]:
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
