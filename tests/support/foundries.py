"""A small real foundry of keys, home and drive, for the rooms of evidence."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scf.audit.log import AuditLog
from scf.signing.keys import create_keys, load_signer, public_keys
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.partitions import Drive, Folder


class SteppingClock:
    """Begins on a Wednesday of week 2026-11-16 and goes on by one second a look."""

    def __init__(self, start: datetime = datetime(2026, 11, 18, 12, tzinfo=UTC)) -> None:
        self.moment = start

    def now(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class SmallFoundry:
    """Home, drive and keys under one folder; `clock` may be set to any day."""

    base: Path
    clock: SteppingClock

    @property
    def home(self) -> Path:
        return self.base / "home"

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def drive(self) -> Drive:
        return Drive.open(self.root)

    @property
    def audit_folder(self) -> Folder:
        return self.drive.folder("zk_proofs", "audit")

    @property
    def keys(self) -> dict[str, PublicKey]:
        return public_keys(self.home / "keys")

    def signer(self, role: str = "foundry") -> Signer:
        return load_signer(self.home / "keys", role)

    def log(self) -> AuditLog:
        return AuditLog.open(self.audit_folder, self.home, self.signer(), clock=self.clock)


def small_foundry(base: Path) -> SmallFoundry:
    """Scaffold a drive and make keys under `base`."""
    Drive.scaffold(base / "root")
    (base / "home").mkdir()
    create_keys(base / "home" / "keys")
    return SmallFoundry(base, SteppingClock())


@contextlib.contextmanager
def without_flush() -> Iterator[None]:
    """Writes reach the page cache only: for filling a log, where no crash is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "flush_file", lambda descriptor: None)
        patch.setattr(durable, "flush_folder", lambda folder: None)
        yield


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
