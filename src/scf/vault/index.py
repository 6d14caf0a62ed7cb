"""The index of the vault: where each fossil lies, in SQLite on the internal disk.

Everything in it is derived from the journal and the shards; deleting the file costs one reading of
the vault. It belongs to one drive: another drive's journal makes it start anew.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from scf.core.identity import cid_digest, cid_from_digest
from scf.core.merkle import TreeHasher
from scf.storage.database import open_database, transaction
from scf.vault.fossil import Fossil
from scf.vault.provenance import FAMILY_BLOCK

_MIGRATIONS = (
    """
    CREATE TABLE shards (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
    CREATE TABLE families (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE fossils (
        digest BLOB PRIMARY KEY,  -- the 32 bytes inside the CID
        shard INTEGER NOT NULL REFERENCES shards (id),
        line INTEGER NOT NULL,    -- from 0
        family INTEGER NOT NULL REFERENCES families (id),
        verdict TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX fossils_of_family ON fossils (family);
    CREATE TABLE state (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    """,
)
# Fossils of the shard being written, and all that were offered in this session. They live in
# SQLite's temporary database, so that a large ingest needs no memory for them.
_SESSION = """
    DROP TABLE IF EXISTS temp.pending;
    DROP TABLE IF EXISTS temp.offered;
    CREATE TEMP TABLE pending (
        digest BLOB PRIMARY KEY, line INTEGER, family TEXT, verdict TEXT
    ) WITHOUT ROWID;
    CREATE TEMP TABLE offered (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""


# Digests that are noted together: one by one, each took a transaction of its own.
_OFFERED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Location:
    """Where a fossil lies: `shard` relative to fossil_vault, `line` from 0."""

    cid: str
    shard: str
    line: int
    family: str
    verdict: str


class Index:
    """Look-ups by CID, counts, families, and the fossils' root."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path, _MIGRATIONS)
        self._db.create_function("cid_text", 1, cid_from_digest, deterministic=True)
        self.begin_session()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # What is applied

    def applied(self) -> tuple[str | None, int]:
        """The drive's UUID and how many bytes of its journal are in the index."""
        rows = dict(self._db.execute("SELECT key, value FROM state").fetchall())
        return rows.get("drive"), int(rows.get("journal_offset", 0))

    def change(self) -> AbstractContextManager[sqlite3.Connection]:
        """What is done in this block becomes true together, or not at all."""
        return transaction(self._db)

    def start_anew(self, drive_uuid: str) -> None:
        """Empty the index, for this drive."""
        for table in ("fossils", "families", "shards", "state"):
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours
        self._db.execute("INSERT INTO state VALUES ('drive', ?)", (drive_uuid,))

    def set_journal_offset(self, offset: int) -> None:
        """Remember how far the journal was applied."""
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('journal_offset', ?)", (offset,))

    def add_fossils(self, path: str, fossils: Iterator[Fossil]) -> None:
        """The fossils read from this shard."""
        shard = self._shard(path)
        for fossil in fossils:
            self._db.execute("INSERT OR IGNORE INTO families (name) VALUES (?)", (fossil.family,))
            self._db.execute(
                "INSERT OR IGNORE INTO fossils SELECT ?, ?, ?, id, ? FROM families WHERE name = ?",
                (fossil.digest, shard, fossil.position, fossil.verdict, fossil.family),
            )

    # One session of ingest

    def begin_session(self) -> None:
        """Forget what was offered and what is pending."""
        self._offered: list[tuple[bytes]] = []
        self._db.executescript(_SESSION)

    def offer(self, fossil: Fossil, line: int) -> bool:
        """Note a fossil for `line` of the shard being written; False if it is known already."""
        self._offered.append((fossil.digest,))
        if len(self._offered) >= _OFFERED_AT_ONCE:
            self._note_offered()
        # The family as it will read from the shard, so that a rebuilt index says the same.
        family = fossil.provenance.family_at(line)
        added = self._db.execute(
            "INSERT OR IGNORE INTO temp.pending SELECT ?1, ?2, ?3, ?4"
            " WHERE NOT EXISTS (SELECT 1 FROM fossils WHERE digest = ?1)",
            (fossil.digest, line, family, fossil.verdict),
        )
        return added.rowcount == 1

    def add_pending(self, path: str) -> None:
        """The pending fossils lie in this shard."""
        shard = self._shard(path)
        self._db.execute("INSERT OR IGNORE INTO families (name) SELECT family FROM temp.pending")
        self._db.execute(
            "INSERT OR IGNORE INTO fossils SELECT digest, ?, line, families.id, verdict"
            " FROM temp.pending JOIN families ON families.name = pending.family",
            (shard,),
        )
        self._db.execute("DELETE FROM temp.pending")

    def offered_root(self) -> str:
        """The fossils' root over everything offered in this session, hex."""
        self._note_offered()
        return _root(self._db, "SELECT cid_text(digest) AS cid FROM temp.offered ORDER BY cid")

    def _note_offered(self) -> None:
        self._db.execute("BEGIN")  # deferred: nobody else's lock is needed for a temporary table
        self._db.executemany("INSERT OR IGNORE INTO temp.offered VALUES (?)", self._offered)
        self._db.execute("COMMIT")
        self._offered.clear()

    # Questions

    def contains(self, cid: str) -> bool:
        """Whether the vault holds this fossil."""
        return self._has(cid_digest(cid))

    def locate(self, cid: str) -> Location | None:
        """Where the fossil lies, None if it is not in the vault."""
        row = self._db.execute(
            "SELECT shards.path, line, families.name, verdict FROM fossils"
            " JOIN shards ON shards.id = shard JOIN families ON families.id = family"
            " WHERE digest = ?",
            (cid_digest(cid),),
        ).fetchone()
        return None if row is None else Location(cid, *row)

    def num_fossils(self) -> int:
        """How many fossils the vault holds."""
        return int(self._db.execute("SELECT COUNT(*) FROM fossils").fetchone()[0])

    def families(self) -> Iterator[tuple[str, int]]:
        """Each family with its number of fossils, by name."""
        query = (
            "SELECT name, COUNT(*) FROM fossils JOIN families ON families.id = family"
            " GROUP BY family ORDER BY name"
        )
        yield from map(tuple, self._db.execute(query))

    def blocks_of(self, family: str) -> list[int]:
        """The numbers `line // 64` at which fossils of this family stand, ascending."""
        query = (
            "SELECT DISTINCT line / ? AS block FROM fossils"
            " WHERE family = (SELECT id FROM families WHERE name = ?) ORDER BY block"
        )
        return [int(block) for (block,) in self._db.execute(query, (FAMILY_BLOCK, family))]

    def cids(self) -> Iterator[str]:
        """Every CID, ascending."""
        for (cid,) in self._db.execute("SELECT cid_text(digest) AS cid FROM fossils ORDER BY cid"):
            yield cid

    def within(self, shards: Iterable[str]) -> "IndexPart":
        """The same questions about these shards alone; one choice at a time."""
        self._db.executescript(
            "DROP TABLE IF EXISTS temp.chosen;"
            "CREATE TEMP TABLE chosen (id INTEGER PRIMARY KEY, place INTEGER NOT NULL);"
        )
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO temp.chosen SELECT id, ?1 FROM shards WHERE path = ?2",
            enumerate(shards),
        )
        self._db.execute("COMMIT")
        return IndexPart(self._db)

    def shard_paths(self) -> set[str]:
        """The shards that the index knows."""
        return {path for (path,) in self._db.execute("SELECT path FROM shards")}

    def _has(self, digest: bytes) -> bool:
        row = self._db.execute("SELECT 1 FROM fossils WHERE digest = ?", (digest,)).fetchone()
        return row is not None

    def _shard(self, path: str) -> int:
        self._db.execute("INSERT OR IGNORE INTO shards (path) VALUES (?)", (path,))
        row = self._db.execute("SELECT id FROM shards WHERE path = ?", (path,)).fetchone()
        return int(row[0])


class IndexPart:
    """What the index knows of some shards, whatever others are committed meanwhile."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def contains(self, cid: str) -> bool:
        """Whether one of the shards holds this fossil."""
        row = self._db.execute(
            "SELECT 1 FROM fossils JOIN temp.chosen ON id = shard WHERE digest = ?",
            (cid_digest(cid),),
        ).fetchone()
        return row is not None

    def families(self) -> Iterator[tuple[str, int]]:
        """Each family with its number of fossils, by name."""
        query = (
            "SELECT name, COUNT(*) FROM fossils JOIN families ON families.id = family"
            " WHERE shard IN (SELECT id FROM temp.chosen) GROUP BY family ORDER BY name"
        )
        yield from map(tuple, self._db.execute(query))

    def blocks_of(self, family: str) -> list[int]:
        """The numbers `line // 64` at which fossils of this family stand, ascending."""
        query = (
            "SELECT DISTINCT line / ? AS block FROM fossils"
            " WHERE shard IN (SELECT id FROM temp.chosen)"
            " AND family = (SELECT id FROM families WHERE name = ?) ORDER BY block"
        )
        return [int(block) for (block,) in self._db.execute(query, (FAMILY_BLOCK, family))]

    def cids(self) -> Iterator[str]:
        """Every CID, ascending."""
        query = (
            "SELECT cid_text(digest) AS cid FROM fossils"
            " WHERE shard IN (SELECT id FROM temp.chosen) ORDER BY cid"
        )
        for (cid,) in self._db.execute(query):
            yield cid

    def in_order(self) -> Iterator[tuple[int, Location]]:
        """Every fossil, with the place of its shard among those chosen; shard by shard, by line."""
        query = (
            "SELECT place, cid_text(digest), shards.path, line, families.name, verdict FROM fossils"
            " JOIN temp.chosen ON chosen.id = shard JOIN shards ON shards.id = shard"
            " JOIN families ON families.id = family ORDER BY place, line"
        )
        for place, *row in self._db.execute(query):
            yield place, Location(*row)


def _root(db: sqlite3.Connection, query: str) -> str:
    tree = TreeHasher()
    for (cid,) in db.execute(query):
        tree.add(cid.encode("ascii"))
    return tree.root().hex()
