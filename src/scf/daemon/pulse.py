"""Pulse: what has changed? Fresh shards in the journal, and files that somebody dropped in.

The journal is the truth and costs one `stat` a look. Files that were dropped into `fossil_vault`
have no journal, so they are looked for (`Drops`), but never at gear speed: a pass begins every
`SCAN_INTERVAL_S`, and goes on a bounded number of names a look. A file is taken once it has been
still for `settle_s`; one that changes later is taken again, which costs time and changes nothing,
since a fossil is known by its CID.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scf.core.clock import Clock, parse_utc
from scf.core.errors import InputError
from scf.daemon.drops import Drops, Found
from scf.runs.store import RunStore
from scf.vault.journal_file import ShardEntry
from scf.vault.watcher import JournalPrefix, VaultWatcher, prefix_until

SCAN_INTERVAL_S = 5.0

# The prefix of the journal that the last run was planned on.
PLANNED = "pulse.planned"
# What scf before intents named a prefix remembered of it: bytes alone.
PLANNED_OFFSET = "pulse.planned_offset"
# Of the fresh shards, so many are named: the newest.
SHARDS_NAMED_MAX = 64


@dataclass(frozen=True)
class Dropped:
    """A file that waits to be ingested.

    Attributes:
        path: Where it is.
        name: Relative to `fossil_vault`: its name as an origin.
        size_bytes: When it was seen.
        mtime_ns: Likewise.
    """

    path: Path
    name: str
    size_bytes: int
    mtime_ns: int

    def sha256(self) -> str:
        """Digest of its bytes now."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def is_unchanged(self) -> bool:
        """Whether it is still as it was seen."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


@dataclass(frozen=True)
class Signs:
    """What a look gave.

    Attributes:
        fresh_fossils: In the vault, and not in the last plan.
        fresh_since: When the oldest of them was committed; None where there are none.
        fresh_shards: The newest shards that they are in, oldest first.
        is_settled: The vault has been still for long enough to plan on it.
        dropped: Files to ingest now.
        unsettled: Files that are not still yet.
        is_reading: The journal has more than was read in this look.
    """

    fresh_fossils: int
    fresh_since: datetime | None
    fresh_shards: tuple[str, ...]
    is_settled: bool
    dropped: tuple[Dropped, ...]
    unsettled: int
    is_reading: bool = False


class Pulse:
    """Looks at one vault.

    Args:
        vault_folder: `fossil_vault` on the drive.
        store: Remembers what was planned and what was ingested.
        clock: Time.
        settle_s: How long a file, or the vault, must be still.

    Attributes:
        dropped: Files to ingest, as of the last scan, without those dealt with since.
    """

    def __init__(
        self, vault_folder: Path, store: RunStore, clock: Clock, *, settle_s: float
    ) -> None:
        self._folder = vault_folder
        self._store = store
        self._clock = clock
        self._settle_s = settle_s
        self._watcher = VaultWatcher(vault_folder, _planned(vault_folder, store))
        self._fresh = 0
        self._fresh_since: datetime | None = None
        self._fresh_shards: deque[str] = deque(maxlen=SHARDS_NAMED_MAX)
        self._changed_at: float | None = None
        self._next_scan = 0.0
        self._drops = Drops(vault_folder, self._is_known)
        self.dropped: tuple[Dropped, ...] = ()
        self._unsettled = 0
        self._look_again_at = 0.0
        # name -> (size, mtime, when it was first seen so, by the monotonic clock)
        self._seen: dict[str, tuple[int, int, float]] = {}

    def look(self, *, is_hasty: bool) -> Signs:
        """See what changed. `is_hasty`: somebody waits, so the vault need not settle first."""
        now = self._clock.monotonic()
        if self._watcher.has_changed():
            self._note_fresh(self._watcher.fresh_entries())
            self._changed_at = now
        if now >= self._next_scan:
            self._drops.begin(now)
            self._next_scan = now + SCAN_INTERVAL_S
            self._step(now)
        elif self._drops.is_under_way:
            self._step(now)
        elif self._unsettled and now >= self._look_again_at:
            self._settle(now)
        still_for = float("inf") if self._changed_at is None else now - self._changed_at
        return Signs(
            fresh_fossils=self._fresh,
            fresh_since=self._fresh_since,
            fresh_shards=tuple(self._fresh_shards),
            is_settled=(is_hasty or still_for >= self._settle_s) and not self._watcher.is_behind,
            dropped=self.dropped,
            unsettled=self._unsettled,
            is_reading=self._watcher.is_behind,
        )

    @property
    def prefix(self) -> JournalPrefix:
        """The journal as far as it has been read: what a run noted now is about."""
        return self._watcher.prefix

    def planned(self, prefix: JournalPrefix) -> None:
        """A run is about `prefix`, all that was read: nothing in it is fresh any more."""
        self._store.set(PLANNED, prefix.to_json())
        self._fresh, self._fresh_since = 0, None
        self._fresh_shards.clear()

    def ingested(self, dropped: Dropped) -> None:
        """`dropped` is dealt with; the next look goes on with the rest."""
        self.dropped = tuple(d for d in self.dropped if d.name != dropped.name)

    def hint(self) -> None:
        """Something may have been dropped in: the next look begins a pass."""
        self._next_scan = 0.0

    @property
    def is_looking(self) -> bool:
        """Whether a pass over the dropped files is under way."""
        return self._drops.is_under_way

    def _note_fresh(self, entries: Iterable[ShardEntry]) -> None:
        for entry in entries:
            self._fresh += entry.count
            self._fresh_shards.append(entry.path)
            if self._fresh_since is None:
                self._fresh_since = _moment(entry.committed_at) or self._clock.now()

    def _is_known(self, found: Found) -> bool:
        known = self._store.origin(found.name)
        return known is not None and (known.size_bytes, known.mtime_ns) == (
            found.size_bytes,
            found.mtime_ns,
        )

    def _step(self, now: float) -> None:
        self._drops.step(self._clock.now().timestamp())
        if not self._drops.is_under_way:
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Which of the files that wait are still?"""
        self._drops.look_again()
        dropped: list[Dropped] = []
        seen: dict[str, tuple[int, int, float]] = {}
        wall_s = self._clock.now().timestamp()
        for found in self._drops.waiting.values():
            size, mtime, since = self._seen.get(found.name, (-1, 0, now))
            if (size, mtime) != (found.size_bytes, found.mtime_ns):
                since = now
            seen[found.name] = (found.size_bytes, found.mtime_ns, since)
            age_s = wall_s - found.mtime_ns / 1e9
            if age_s >= self._settle_s or now - since >= self._settle_s:
                path = self._folder / found.name
                dropped.append(Dropped(path, found.name, found.size_bytes, found.mtime_ns))
        dropped.sort(key=lambda d: (d.name.count("/"), d.name))
        self.dropped, self._seen = tuple(dropped), seen
        self._unsettled = len(seen) - len(dropped)
        # A file that is nearly still is looked at again when it may be.
        self._look_again_at = now + min(SCAN_INTERVAL_S, max(self._settle_s, 0.1))


def _planned(vault_folder: Path, store: RunStore) -> JournalPrefix:
    kept = store.get(PLANNED)
    if kept is not None:
        return JournalPrefix.from_json(kept)
    return prefix_until(vault_folder, int(store.get(PLANNED_OFFSET, 0)))


def _moment(text: str) -> datetime | None:
    try:
        return parse_utc(text)
    except (InputError, ValueError):
        return None
