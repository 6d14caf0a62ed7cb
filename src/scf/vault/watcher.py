"""Watch the vault: notice new shards by the size of the journal, one `stat` a look."""

from pathlib import Path

from scf.vault.journal import ShardEntry, journal_size, read_journal


class VaultWatcher:
    """Remembers how far the journal was read.

    Args:
        vault_folder: `fossil_vault` on the drive.
        offset: Bytes of the journal that are known already.
    """

    def __init__(self, vault_folder: Path, offset: int = 0) -> None:
        self._folder = vault_folder
        self._size_seen = offset
        self.offset = offset

    def has_changed(self) -> bool:
        """Whether the journal grew or shrank since it was read. Costs one `stat`."""
        return journal_size(self._folder) != self._size_seen

    def fresh_entries(self) -> list[ShardEntry]:
        """Shards committed since the last call. A journal that shrank is read from its start."""
        self._size_seen = journal_size(self._folder)
        if self._size_seen < self.offset:
            self.offset = 0
        fresh = []
        for entry, end in read_journal(self._folder, self.offset):
            fresh.append(entry)
            self.offset = end
        return fresh
