"""Watch the vault: notice new shards by the size of the journal, one `stat` a look.

What was read is remembered as a `JournalPrefix`: how far, how many shards, and the RFC 6962 root
over their digests. So a moment of the vault has a name that costs O(new shards), however many it
holds: two prefixes with one root hold the same shards in the same order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scf.core.errors import InputError
from scf.core.identity import is_sha256_hex
from scf.core.merkle import TreeHasher
from scf.vault.journal_file import ShardEntry, ShardSummary, journal_size, read_journal

# Read in one call: some tenths of a second.
ENTRIES_MAX = 10_000


@dataclass(frozen=True)
class JournalPrefix:
    """The beginning of a journal.

    Attributes:
        offset: Bytes of the journal that were read; machines may differ in it.
        shards: How many shards they name.
        fossils: How many fossils those hold.
        peaks: Of the RFC 6962 tree whose leaves are the shards' SHA-256, as hexadecimal text.
    """

    offset: int = 0
    shards: int = 0
    fossils: int = 0
    peaks: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """Root over the digests of the shards, hex."""
        return self._tree().root().hex()

    def with_entries(self, entries: Iterable[ShardEntry], offset: int) -> "JournalPrefix":
        """This prefix and what follows, up to `offset`."""
        tree, fossils = self._tree(), self.fossils
        for entry in entries:
            tree.add(entry.sha256.encode())
            fossils += entry.count
        peaks = tuple(peak.hex() for peak in tree.peaks)
        return JournalPrefix(offset, tree.size, fossils, peaks)

    def to_json(self) -> dict[str, Any]:
        return {
            "offset": self.offset,
            "shards": self.shards,
            "fossils": self.fossils,
            "peaks": list(self.peaks),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What `to_json` gave. Raises InputError for anything else."""
        try:
            prefix = cls(value["offset"], value["shards"], value["fossils"], tuple(value["peaks"]))
            numbers = (prefix.offset, prefix.shards, prefix.fossils)
            is_good = all(type(number) is int and number >= 0 for number in numbers)
            if not is_good or not all(map(is_sha256_hex, prefix.peaks)):
                raise ValueError("out of range")
            prefix._tree()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the prefix of a journal: {error}") from error
        return prefix

    def _tree(self) -> TreeHasher:
        return TreeHasher.resumed(self.shards, (bytes.fromhex(peak) for peak in self.peaks))


def shards_root(shards: Iterable[ShardSummary]) -> str:
    """The root of a prefix that names just these shards, hex."""
    tree = TreeHasher()
    for shard in shards:
        tree.add(shard.sha256.encode())
    return tree.root().hex()


def prefix_until(vault_folder: Path, offset: int) -> JournalPrefix:
    """The prefix that ends at or before `offset`, read from the start."""
    entries = []
    end = 0
    for entry, behind in read_journal(vault_folder):
        if behind > offset:
            break
        entries.append(entry)
        end = behind
    return JournalPrefix().with_entries(entries, end)


class VaultWatcher:
    """Remembers how far the journal was read.

    Args:
        vault_folder: `fossil_vault` on the drive.
        known: What was read before.

    Attributes:
        prefix: What has been read.
        is_behind: Whether the last call left something unread.
    """

    def __init__(self, vault_folder: Path, known: JournalPrefix | None = None) -> None:
        self._folder = vault_folder
        self.prefix = known or JournalPrefix()
        self._size_seen = self.prefix.offset
        self.is_behind = False

    def has_changed(self) -> bool:
        """Whether there may be something to read. Costs one `stat`."""
        return self.is_behind or journal_size(self._folder) != self._size_seen

    def fresh_entries(self) -> list[ShardEntry]:
        """Shards committed since the last call: at most `ENTRIES_MAX`, the rest at the next calls.

        A journal that shrank is another one: it is read from its start.
        """
        self._size_seen = journal_size(self._folder)
        if self._size_seen < self.prefix.offset:
            self.prefix = JournalPrefix()
        fresh: list[ShardEntry] = []
        offset = self.prefix.offset
        self.is_behind = False
        for entry, end in read_journal(self._folder, offset):
            if len(fresh) == ENTRIES_MAX:
                self.is_behind = True
                break
            fresh.append(entry)
            offset = end
        self.prefix = self.prefix.with_entries(fresh, offset)
        return fresh
