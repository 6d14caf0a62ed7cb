"""Bring a backup back to an empty home and an empty drive.

Every file is checked against its digest, the snapshot against the passphrase, the audit log against
the foundry's key. What makes a place a foundry is written last, so a restore that was cut off left
none, and is done again.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scf.audit.check import check_log
from scf.core.errors import UsageError
from scf.daemon.snapshot import BackupDamaged, object_name, read_snapshot, snapshots
from scf.dispatch.places import Place
from scf.signing.keys import public_keys
from scf.storage import durable
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES, MARKER_NAME

# Written last: until they are there, nobody takes the place for a foundry.
_LAST = (f"root/{MARKER_NAME}", "home/scf.toml")
# Content is fetched so much, and so many files, at a time.
BATCH_BYTES = 256 * 10**6
BATCH_FILES = 200


@dataclass(frozen=True)
class Restored:
    """What was brought back."""

    snapshot: str
    files: int
    audit_entries: int
    with_vault: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def restore(
    place: Place,
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
        DoorError: The place cannot be reached, or did not give a file; likewise.
    """
    home, root = home.resolve(), root.resolve()
    for where, name in ((home, "scf.toml"), (root, MARKER_NAME)):
        if (where / name).exists():
            raise UsageError(f"{where} holds a foundry already", remedy="Restore to empty folders.")
    if home == root or root in home.parents or home in root.parents:
        raise UsageError(f"home {home} and root {root} must lie apart")
    there = place.names()
    stamp = _chosen(snapshots(there), snapshot)
    manifest, keys = read_snapshot(place, stamp, passphrase)
    rows = sorted(manifest["files"], key=lambda row: row["path"] in _LAST)
    missing = [row for row in rows if object_name(row["sha256"]) not in there]
    if missing:
        raise BackupDamaged(f"{object_name(missing[0]['sha256'])}: missing ({missing[0]['path']})")
    for batch in _batches([row for row in rows if not _is_there(row, home, root)]):
        _bring_back(place, batch, home, root)
        talk(f"{batch[-1]['path']} ...")
    (home / "keys").mkdir(mode=0o700, exist_ok=True)
    for file, data in keys.items():
        mode = 0o600 if file.endswith(".key") else 0o644
        durable.write_file(home / "keys" / PurePosixPath(file).name, bytes.fromhex(data), mode=mode)
    for partition in DEFAULT_BUDGETS_BYTES:
        (root / partition).mkdir(exist_ok=True)
    talk("checking the audit log ...")
    report = check_log(root / "zk_proofs" / "audit", public_keys(home / "keys")["foundry"])
    if not report.ok:
        raise BackupDamaged(f"the audit log of snapshot {stamp} does not hold")
    return Restored(stamp, len(rows), report.size, bool(manifest["with_vault"]))


def _chosen(found: Sequence[str], wanted: str | None) -> str:
    if not found:
        raise UsageError("no snapshot is there", remedy="Make one: `scf backup --to PLACE`.")
    if wanted is not None and wanted not in found:
        raise UsageError(f"no snapshot {wanted} is there", remedy=f"There are: {', '.join(found)}.")
    return wanted or found[-1]


def _batches(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += int(row["size_bytes"])
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bring_back(place: Place, rows: Sequence[Mapping[str, Any]], home: Path, root: Path) -> None:
    if place.folder_here is not None:
        for row in rows:
            _write(place.folder_here, row, home, root)
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".restore-") as scratch:
        place.get(sorted({object_name(row["sha256"]) for row in rows}), Path(scratch))
        for row in rows:
            _write(Path(scratch), row, home, root)


def _is_there(row: Mapping[str, Any], home: Path, root: Path) -> bool:
    path = _place_of(str(row["path"]), home, root)
    return path.exists() and row["path"] not in _LAST and _file_sha256(path) == row["sha256"]


def _write(source: Path, row: Mapping[str, Any], home: Path, root: Path) -> None:
    path = _place_of(str(row["path"]), home, root)
    content = source / object_name(row["sha256"])
    with durable.os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if row["path"] == "home/scf.toml":
        text = _checked(content, row).decode()
        durable.write_file(path, _with_root(text, root).encode())
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
