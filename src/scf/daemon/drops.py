"""Find the files that somebody dropped into `fossil_vault`, a bounded number of names at a time.

A folder whose modification time has not changed holds the same names, so a pass costs one `stat` a
folder and not one a file. Files that grow do not change their folder: those that wait to be
ingested are looked at again until they are still, and all others in a full pass, which is made now
and then (at once, where there are few).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scf.storage.ndjson import is_shard_name

# Of fossil_vault itself; everything else in there was put there by somebody.
OWN_FOLDERS = frozenset({"shards", "quarantine", "retracted"})

NAMES_PER_STEP = 1000
# No more files wait at a time; the rest is found once these are dealt with.
WAITING_MAX = 10_000
# Up to so many files are looked at one by one in each pass; more only in a full pass.
FEW_FILES = 200
FULL_PASS_EVERY_S = 600.0
# File systems keep times in steps of up to 2 s: a folder that changed just now may change unseen.
_TIME_STEP_S = 3.0


@dataclass(frozen=True)
class Found:
    """A file as it was seen: name relative to the vault's folder, size, modification time."""

    name: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Folder:
    mtime_ns: int
    folders: tuple[str, ...]
    num_files: int


class Drops:
    """The dropped files of one vault.

    Args:
        root: `fossil_vault`.
        is_known: Whether a file was dealt with, as it is now.

    Attributes:
        waiting: Files that were not, by name.
    """

    def __init__(self, root: Path, is_known: Callable[[Found], bool]) -> None:
        self._root = root
        self._is_known = is_known
        self._folders: dict[str, _Folder] = {}
        self._left: list[str] = []
        self._is_full_pass = True
        self._next_full_pass = 0.0
        self.waiting: dict[str, Found] = {}

    @property
    def is_under_way(self) -> bool:
        """Whether a pass has begun and not come to its end."""
        return bool(self._left)

    def begin(self, now_s: float) -> None:
        """Begin a pass, unless one is under way."""
        if self._left:
            return
        num_files = sum(folder.num_files for folder in self._folders.values())
        self._is_full_pass = num_files <= FEW_FILES or now_s >= self._next_full_pass
        if self._is_full_pass:
            self._next_full_pass = now_s + FULL_PASS_EVERY_S
        self._left = [""]

    def step(self, wall_s: float) -> None:
        """Go on with the pass: at most about `NAMES_PER_STEP` names."""
        names = 0
        while self._left and names < NAMES_PER_STEP and len(self.waiting) < WAITING_MAX:
            names += 1 + self._look(self._left.pop(), wall_s)
        if len(self.waiting) >= WAITING_MAX:
            # What is left is found in a later pass, when there is room to remember it.
            self._left, self._next_full_pass = [], 0.0

    def look_again(self) -> None:
        """See the files that wait as they are now; those that have gone are forgotten."""
        for name in list(self.waiting):
            found = _see(self._root, name)
            if found is None or self._is_known(found):
                del self.waiting[name]
            else:
                self.waiting[name] = found

    def _look(self, relative: str, wall_s: float) -> int:
        path = self._root / relative
        try:
            mtime_ns = path.stat().st_mtime_ns
            known = self._folders.get(relative)
            if known is not None and known.mtime_ns == mtime_ns and not self._is_full_pass:
                self._left.extend(reversed(known.folders))
                return 0
            return self._read(path, relative, mtime_ns, wall_s)
        except OSError:  # it has gone, or may not be read
            self._folders.pop(relative, None)
            return 0

    def _read(self, path: Path, relative: str, mtime_ns: int, wall_s: float) -> int:
        prefix = f"{relative}/" if relative else ""
        folders: list[str] = []
        files: list[str] = []
        with os.scandir(path) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(".") and (relative or name not in OWN_FOLDERS):
                        folders.append(name)
                elif is_shard_name(entry.name):
                    files.append(name)
        for name in sorted(files):
            found = _see(self._root, name)
            if found is not None and not self._is_known(found):
                self.waiting[name] = found
        folders.sort()
        if wall_s - mtime_ns / 1e9 > _TIME_STEP_S:
            self._folders[relative] = _Folder(mtime_ns, tuple(folders), len(files))
        else:
            self._folders.pop(relative, None)
        self._left.extend(reversed(folders))
        return len(folders) + len(files)


def _see(root: Path, name: str) -> Found | None:
    try:
        stat = (root / name).stat()
    except OSError:
        return None
    return Found(name, stat.st_size, stat.st_mtime_ns)
