"""Which origins were ingested before: so that none is taken twice, and a killed ingest goes on.

An origin is known by its bytes, its reader, the reader's settings and the limits; of each the file
`origins.db` in the home holds how many of its records were dealt with, which of them were refused,
and the digests of the others. It is derived: deleting it costs reading the origins again, which
finds the same fossils. An entry says only what the vault's journal holds already, and counts for
one drive.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scf
from scf.core.canonical import canonical_json
from scf.core.identity import cid_from_digest
from scf.core.merkle import TreeHasher
from scf.storage.database import open_database, transaction

NAME = "origins.db"
_MIGRATIONS = (
    """
    CREATE TABLE origins (
        key BLOB PRIMARY KEY,           -- see `key_of`
        name TEXT NOT NULL,
        drive TEXT NOT NULL,            -- UUID of the drive whose vault holds the fossils
        journal_bytes INTEGER NOT NULL, -- of the vault when this was written
        position INTEGER NOT NULL,      -- records dealt with, from the beginning on
        is_whole INTEGER NOT NULL,      -- whether those are all
        refused INTEGER NOT NULL,
        reasons TEXT NOT NULL,          -- JSON: kind to number, of a whole origin
        quarantine TEXT                 -- the quarantine file of a whole origin
    ) WITHOUT ROWID;
    CREATE TABLE parts (
        key BLOB NOT NULL, number INTEGER NOT NULL, digests BLOB NOT NULL, UNIQUE (key, number)
    );
    CREATE TABLE refused (
        key BLOB NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (key, position)
    ) WITHOUT ROWID;
    """,
)
_SESSION = """
    DROP TABLE IF EXISTS temp.met;
    CREATE TEMP TABLE met (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_DIGEST_BYTES = 32
_PART_DIGESTS = 4096


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an origin.

    Attributes:
        position: Records dealt with.
        refused: How many of them were refused.
        is_whole: Whether the origin has no more.
        reasons: Number of refusals by kind, of a whole origin.
        quarantine: Name of its quarantine file, if it has one.
    """

    position: int
    refused: int
    is_whole: bool
    reasons: Mapping[str, int] = field(default_factory=dict)
    quarantine: str | None = None


def key_of(origin_sha256: str, reader: str, options: Mapping[str, Any], *limits: int) -> bytes:
    """What an origin is known by; another version of scf reads it anew."""
    about = [origin_sha256, reader, dict(options), list(limits), scf.__version__]
    return hashlib.sha256(canonical_json(about)).digest()


class OriginMemory:
    """The file of known origins, for one vault.

    Args:
        path: Where it is; made where it is absent.
        drive: UUID of the vault's drive.
        journal_size: Gives the size of the vault's journal in bytes.
        contains: Whether the vault holds a CID.
    """

    def __init__(
        self,
        path: Path,
        *,
        drive: str,
        journal_size: Callable[[], int],
        contains: Callable[[str], bool],
    ) -> None:
        self._db = open_database(path, _MIGRATIONS)
        self._db.executescript(_SESSION)
        self._drive = drive
        self._journal_size = journal_size
        self._contains = contains

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def find(self, key: bytes) -> Known | None:
        """What is known of an origin; None where nothing is, or the vault no longer has it."""
        row = self._db.execute("SELECT * FROM origins WHERE key = ?", (key,)).fetchone()
        if row is None or row["drive"] != self._drive:
            return None
        if row["journal_bytes"] > self._journal_size() or not self._is_in_vault(key):
            return None
        return Known(
            row["position"],
            row["refused"],
            bool(row["is_whole"]),
            json.loads(row["reasons"]),
            row["quarantine"],
        )

    def refused_positions(self, key: bytes) -> Iterator[int]:
        """Which records of a known origin were refused, ascending."""
        query = "SELECT position FROM refused WHERE key = ? ORDER BY position"
        for (position,) in self._db.execute(query, (key,)):
            yield position

    def forget(self, key: bytes) -> None:
        """Forget an origin."""
        with transaction(self._db):
            for table in ("origins", "parts", "refused"):
                self._db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608

    def save(
        self, key: bytes, name: str, known: Known, digests: bytes, refused: Iterable[int]
    ) -> None:
        """Add to an origin: more digests, more refused positions, and how far it is now."""
        with transaction(self._db):
            (number,) = self._db.execute(
                "SELECT COALESCE(MAX(number) + 1, 0) FROM parts WHERE key = ?", (key,)
            ).fetchone()
            step = _PART_DIGESTS * _DIGEST_BYTES
            parts = (digests[at : at + step] for at in range(0, len(digests), step))
            self._db.executemany(
                "INSERT INTO parts VALUES (?, ?, ?)",
                ((key, number + at, part) for at, part in enumerate(parts)),
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO refused VALUES (?, ?)", ((key, at) for at in refused)
            )
            self._db.execute(
                "INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(key, name, self._drive, self._journal_size()),
                    *(known.position, int(known.is_whole), known.refused),
                    *(json.dumps(dict(known.reasons)), known.quarantine),
                ),
            )

    # The fossils' root over everything that one ingest met

    def meet(self, digests: Iterable[bytes]) -> None:
        """Note fossils that this ingest met."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO temp.met VALUES (?)", ((digest,) for digest in digests)
        )
        self._db.execute("COMMIT")

    def meet_known(self, key: bytes) -> None:
        """Note the fossils of a known origin."""
        for part in self._parts(key):
            self.meet(_split(part))

    def root_of_met(self) -> str:
        """RFC 6962 root over the CIDs (as text, ascending) of all fossils met, hex."""
        self._db.create_function("cid_text", 1, cid_from_digest, deterministic=True)
        tree = TreeHasher()
        for (cid,) in self._db.execute("SELECT cid_text(digest) AS cid FROM temp.met ORDER BY cid"):
            tree.add(cid.encode("ascii"))
        return tree.root().hex()

    def _parts(self, key: bytes) -> Iterator[bytes]:
        query = "SELECT digests FROM parts WHERE key = ? ORDER BY number"
        # Rows are taken one by one from a cursor of their own: `meet` writes meanwhile.
        for (part,) in self._db.cursor().execute(query, (key,)):
            yield part

    def _is_in_vault(self, key: bytes) -> bool:
        """A look at the first and last fossil of each part: the vault may have been replaced."""
        return all(
            self._contains(cid_from_digest(digest))
            for part in self._parts(key)
            for digest in (part[:_DIGEST_BYTES], part[-_DIGEST_BYTES:])
        )


class Recorder:
    """One origin as it is ingested: what is to be remembered once the vault has committed it."""

    def __init__(self, memory: OriginMemory, key: bytes, name: str, known: Known | None) -> None:
        self.key = key
        self.reasons: Counter[str] = Counter()
        self.quarantine: str | None = None
        self._memory = memory
        self._name = name
        self._position = self._resumed = known.position if known else 0
        self._num_refused = known.refused if known else 0
        self._digests = bytearray()
        self._refused = array("q")
        self._met = 0  # bytes of `_digests` that the memory was told of

    @property
    def known(self) -> Known:
        """The origin, once it is whole."""
        return Known(self._position, self._num_refused, True, dict(self.reasons), self.quarantine)

    def stored(self, digest: bytes) -> None:
        """The next record is a fossil that the vault has, or will have with its next commit."""
        self._digests += digest
        self._position += 1
        if len(self._digests) - self._met >= _PART_DIGESTS * _DIGEST_BYTES:
            self._meet()

    def refused(self, position: int, kind: str) -> None:
        """The record at `position` was refused; one that was known to be is judged again."""
        self.reasons[kind] += 1
        if position >= self._resumed:
            self._refused.append(position)
            self._num_refused += 1
            self._position += 1

    def checkpoint(self) -> None:
        """Every record so far is committed, and there may be more."""
        self._save(Known(self._position, self._num_refused, False))

    def end(self) -> None:
        """There are no more records; they are still to be committed."""
        self._meet()

    def finish(self) -> None:
        """The whole origin is committed."""
        self._save(self.known)

    def _save(self, known: Known) -> None:
        self._meet()
        self._memory.save(self.key, self._name, known, bytes(self._digests), self._refused)
        self._digests.clear()
        self._refused = array("q")
        self._met = 0

    def _meet(self) -> None:
        self._memory.meet(_split(bytes(self._digests[self._met :])))
        self._met = len(self._digests)


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
