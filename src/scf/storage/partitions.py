"""The drive: a root with a marker, six partitions with budgets, and a check before every write.

A drive that is pulled leaves its mount point behind as an empty folder on the system disk, and open
descriptors may go on writing to a detached file system without an error (seen after `umount -l`).
So each write through a `Folder` first makes sure that the marker is there, carries the UUID it
carried when the drive was opened, and lies on the same device.

It also makes sure that the partition's budget has room. How much a partition holds is known from
`system_cache/usage.json`, which the conductor's survey keeps up to date, and from what was written
through this `Drive` since: a write costs a look at two numbers, never a walk.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scf.core.errors import BudgetExceeded, DriveError, InputError
from scf.core.units import format_bytes
from scf.storage import durable

MARKER_NAME = ".scf-root.json"
MARKER_SCHEMA = "scf.root/1"
USAGE_PATH = ("system_cache", "usage.json")
USAGE_SCHEMA = "scf.usage/1"

# Budgets for the reference drive of 3 TB; a smaller drive scales them (DESIGN section 2).
DEFAULT_BUDGETS_BYTES: Mapping[str, int] = {
    "fossil_vault": 1_500_000_000_000,
    "energy_atlas": 600_000_000_000,
    "model_zoo": 300_000_000_000,
    "release_history": 200_000_000_000,
    "zk_proofs": 200_000_000_000,
    "system_cache": 200_000_000_000,
}


class DriveMissing(DriveError):
    """The marker is not where it was: the drive is gone, or it is another drive."""

    def __init__(self, root: Path, reason: str) -> None:
        super().__init__(
            f"{root}: {reason}; nothing was written",
            remedy="Plug the drive in (or correct SCF_ROOT), then try again; "
            "`scf init` makes a new root.",
        )
        self.root = root


class PartitionFull(BudgetExceeded):
    """A partition's budget has no room for what was to be written."""


class Drive:
    """An opened root. `check` is cheap (one stat, one small read) and runs before every write."""

    def __init__(self, root: Path, marker: Mapping[str, Any], device: int) -> None:
        self.root = root
        self.uuid = str(marker["uuid"])
        self.budgets_bytes: dict[str, int] = {
            name: int(marker["budgets_bytes"][name]) for name in DEFAULT_BUDGETS_BYTES
        }
        self._device = device
        self._marker_identity: tuple[int, int] | None = None
        self._usage_identity: tuple[int, int] | None = None
        # As of the last survey, and what went through this object since. Empty: nobody has looked.
        self._used_bytes: dict[str, int] = {}

    @classmethod
    def scaffold(cls, root: Path, *, budgets_bytes: Mapping[str, int] | None = None) -> "Drive":
        """Make the marker and six partitions under `root`; a second call changes nothing.

        Budgets default to the reference ones, scaled down where the disk is smaller than their sum.
        Other files on the drive are left alone; a partition may hold files already.
        """
        with durable.os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        if not (root / MARKER_NAME).exists():
            for name in DEFAULT_BUDGETS_BYTES:
                with durable.os_errors(root):
                    (root / name).mkdir(exist_ok=True)
            budgets = dict(budgets_bytes or _scaled_budgets(shutil.disk_usage(root).total))
            marker = {"schema": MARKER_SCHEMA, "uuid": str(uuid.uuid4()), "budgets_bytes": budgets}
            durable.write_json(root / MARKER_NAME, marker)
        drive = cls.open(root)
        for name in DEFAULT_BUDGETS_BYTES:
            drive.folder(name)
        return drive

    @classmethod
    def open(cls, root: Path) -> "Drive":
        """Open an existing root.

        Raises:
            DriveMissing: No marker there.
        """
        try:
            marker = _read_marker(root)
            device = root.stat().st_dev
        except (OSError, InputError) as error:
            raise DriveMissing(root, f"no readable marker {MARKER_NAME} here") from error
        return cls(root.resolve(), marker, device)

    def check(self) -> None:
        """Make sure that this is still the drive that was opened.

        Raises:
            DriveMissing: The marker is gone, names another UUID, or lies on another device.
        """
        path = self.root / MARKER_NAME
        try:
            stat = path.stat()
        except OSError as error:
            raise DriveMissing(self.root, "the marker is gone") from error
        if stat.st_dev != self._device:
            raise DriveMissing(self.root, "this is another device than the one opened")
        # The marker is read again only when it is another file, or was rewritten.
        identity = (stat.st_ino, stat.st_mtime_ns)
        if identity != self._marker_identity:
            try:
                marker = _read_marker(self.root)
            except (OSError, InputError) as error:
                raise DriveMissing(self.root, "the marker cannot be read") from error
            if marker["uuid"] != self.uuid:
                raise DriveMissing(self.root, f"the marker names drive {marker['uuid']}")
            self.budgets_bytes.update(marker["budgets_bytes"])
            self._marker_identity = identity

    def set_budgets(self, budgets_bytes: Mapping[str, int]) -> None:
        """Give partitions other budgets; who has the drive open notices at its next write."""
        assert budgets_bytes.keys() <= DEFAULT_BUDGETS_BYTES.keys(), budgets_bytes
        self.check()
        marker = _read_marker(self.root)
        marker["budgets_bytes"] = {**marker["budgets_bytes"], **budgets_bytes}
        durable.write_json(self.root / MARKER_NAME, marker)
        self.check()

    def admit(self, folder: Path, size_bytes: int) -> None:
        """Raise PartitionFull unless the budget of the partition around `folder` has room.

        A partition that no survey has looked at yet admits everything.
        """
        name = self._partition_of(folder)
        if name is None:
            return
        self._refresh_usage()
        used = self._used_bytes.get(name)
        if used is None or used + size_bytes <= self.budgets_bytes[name]:
            return
        room = max(0, self.budgets_bytes[name] - used)
        raise PartitionFull(
            f"{folder}: {format_bytes(size_bytes)} do not fit: {name} holds {format_bytes(used)}, "
            f"{format_bytes(room)} are left of its budget; nothing was written",
            remedy=f"Free room, or raise the budget: `scf budget set {name} SIZE`.",
        )

    def learn_usage(self, partition: str, at_least_bytes: int) -> None:
        """Be told by who keeps a partition's books what it holds at least.

        So its budget holds where no survey has looked yet, or the last one was long ago.
        """
        self._refresh_usage()
        known = self._used_bytes.get(partition, 0)
        self._used_bytes[partition] = max(known, at_least_bytes)

    def count(self, folder: Path, size_bytes: int) -> None:
        """Note that the partition around `folder` holds so much more than it did."""
        name = self._partition_of(folder)
        if name in self._used_bytes:
            self._used_bytes[name] += size_bytes

    def _partition_of(self, folder: Path) -> str | None:
        parts = folder.parts[len(self.root.parts) :]
        return parts[0] if parts and parts[0] in DEFAULT_BUDGETS_BYTES else None

    def _refresh_usage(self) -> None:
        path = self.root.joinpath(*USAGE_PATH)
        try:
            stat = path.stat()
            identity = (stat.st_ino, stat.st_mtime_ns)
            if identity == self._usage_identity:
                return
            usage = durable.read_json(path, size_max_bytes=2**20)
            used = {name: int(usage["used_bytes"][name]) for name in DEFAULT_BUDGETS_BYTES}
        except (OSError, InputError, KeyError, TypeError, ValueError):
            return  # not looked at yet, or being repaired by the next survey
        self._used_bytes, self._usage_identity = used, identity

    def folder(self, partition: str, *parts: str) -> "Folder":
        """A folder of a partition, made if it is absent."""
        assert partition in DEFAULT_BUDGETS_BYTES, f"unknown partition {partition}"
        self.check()
        path = self.root.joinpath(partition, *parts)
        with durable.os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return Folder(path, self)

    def usage(self) -> list["PartitionUsage"]:
        """Bytes used and allowed, a partition each. Walks the drive: not for the pulse."""
        self.check()
        return [
            PartitionUsage(name, _tree_size_bytes(self.root / name), self.budgets_bytes[name])
            for name in DEFAULT_BUDGETS_BYTES
        ]


@dataclass(frozen=True)
class PartitionUsage:
    """What a partition holds against its budget, in bytes."""

    name: str
    used_bytes: int
    budget_bytes: int

    def __str__(self) -> str:
        return f"{self.name}: {format_bytes(self.used_bytes)} of {format_bytes(self.budget_bytes)}"


@dataclass(frozen=True)
class Folder:
    """A folder that we may write to. Every write checks the drive first.

    Attributes:
        path: Where it is.
        drive: The drive it lies on; None for a folder that belongs to no root, such as one that a
            user names with `--out`.
    """

    path: Path
    drive: Drive | None = None

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """Make (if needed) and open `path`; the drive is found by its marker above, if any."""
        resolved = path.resolve()
        for parent in (resolved, *resolved.parents):
            if (parent / MARKER_NAME).exists():
                drive = Drive.open(parent)
                drive.check()
                with durable.os_errors(path):
                    resolved.mkdir(parents=True, exist_ok=True)
                return cls(resolved, drive)
        with durable.os_errors(path):
            resolved.mkdir(parents=True, exist_ok=True)
        return cls(resolved, None)

    def check(self) -> None:
        """Raise DriveMissing unless the drive is the one that was opened."""
        if self.drive is not None:
            self.drive.check()
        elif not self.path.is_dir():
            raise DriveMissing(self.path, "the folder is gone")

    def folder(self, *parts: str) -> "Folder":
        """A folder inside, made if it is absent."""
        self.check()
        path = self.path.joinpath(*parts)
        with durable.os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return Folder(path, self.drive)

    def write_file(self, name: str, data: bytes, *, mode: int = 0o644) -> Path:
        """`durable.write_file` inside this folder; returns the path."""
        with self._admitted(name, len(data)):
            durable.write_file(self.path / name, data, mode=mode)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """`durable.write_json` inside this folder; returns the path."""
        # Small, and its size is known late: it needs any room at all.
        with self._admitted(name, 1):
            durable.write_json(self.path / name, value)
        return self.path / name

    def write_once(self, name: str, data: bytes) -> Path:
        """`durable.write_once` inside this folder; returns the path."""
        with self._admitted(name, len(data)):
            durable.write_once(self.path / name, data)
        return self.path / name

    def append_line(self, name: str, line: bytes) -> None:
        """`durable.append_line` inside this folder."""
        with self._admitted(name, len(line) + 1, appends=True):
            durable.append_line(self.path / name, line)

    @contextlib.contextmanager
    def open_staged(self, name: str) -> Iterator[BinaryIO]:
        """`durable.open_staged` inside this folder; all is checked again before renaming."""
        self.admit(1)
        with self._admitted(name, 0), durable.open_staged(self.path / name) as file:
            yield file
            self.check()
            self.admit(file.tell())

    def new_staging(self, name: str) -> Path:
        """A fresh hidden folder here, to be filled and then given to `publish_folder`."""
        self.check()
        self.admit(1)
        return durable.new_staging(self.path, name)

    def publish_folder(self, staged: Path, name: str) -> Path:
        """Give a staged folder its final name here; returns the path."""
        self.check()
        size_bytes = _tree_size_bytes(staged)
        self.admit(size_bytes)
        durable.publish_folder(staged, self.path / name)
        if self.drive is not None:
            self.drive.count(self.path, size_bytes)
        return self.path / name

    def admit(self, size_bytes: int) -> None:
        """Raise PartitionFull unless `size_bytes` more fit the budget of this partition."""
        if self.drive is not None:
            self.drive.admit(self.path, size_bytes)

    @contextlib.contextmanager
    def _admitted(self, name: str, size_bytes: int, *, appends: bool = False) -> Iterator[None]:
        """Check drive and budget around the writing of one file, and count what it added."""
        self.check()
        if self.drive is None:
            yield
            return
        path = self.path / name
        before = _size_bytes(path)
        grows_by = size_bytes if appends else size_bytes - before
        if grows_by > 0:
            self.drive.admit(self.path, grows_by)
        yield
        self.drive.count(self.path, _size_bytes(path) - before)


def _read_marker(root: Path) -> dict[str, Any]:
    marker: Any = durable.read_json(root / MARKER_NAME, size_max_bytes=65536)
    budgets = marker.get("budgets_bytes") if isinstance(marker, dict) else None
    if not isinstance(budgets, dict) or marker.get("schema") != MARKER_SCHEMA:
        raise InputError(f"{root / MARKER_NAME}: not a marker of schema {MARKER_SCHEMA}")
    if set(budgets) != set(DEFAULT_BUDGETS_BYTES) or "uuid" not in marker:
        raise InputError(f"{root / MARKER_NAME}: uuid or budgets are missing")
    return dict(marker)


def _scaled_budgets(disk_bytes: int) -> dict[str, int]:
    # Budgets may take at most 90 % of the disk; the rest is for the file system and for others.
    scale = min(1.0, 0.9 * disk_bytes / sum(DEFAULT_BUDGETS_BYTES.values()))
    return {name: int(budget * scale) for name, budget in DEFAULT_BUDGETS_BYTES.items()}


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _tree_size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total
