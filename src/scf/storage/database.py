"""SQLite on the internal disk: write-ahead log, full synchronisation, numbered migrations."""

import contextlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scf.core.errors import OperatorError


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open (or make) a database and bring it to the newest schema.

    `migrations[i]` is the SQL that leads from version i to i + 1; the version is SQLite's own
    `user_version`. Transactions are explicit (`transaction`); a commit returns once it is on the
    medium.

    Raises:
        OperatorError: The file is damaged, or was written by a newer scf.
    """
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync = 1")
            connection.execute("PRAGMA checkpoint_fullfsync = 1")
        _migrate(connection, path, migrations)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise OperatorError(
            f"{path}: the database cannot be used: {error}",
            remedy="Restore it from a backup; the drive's journals and the audit log are unharmed.",
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing: commits when the block ends, rolls back when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    if _version(connection) == len(migrations):
        return
    # Read again under the write lock: of two processes that open a new database, one migrates.
    with transaction(connection):
        version = _version(connection)
        if version > len(migrations):
            raise OperatorError(
                f"{path} has schema version {version}, this scf knows {len(migrations)}",
                remedy="Run the scf that wrote it, or a newer one.",
            )
        for script in migrations[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit before it begins."""
    statement = ""
    for part in script.split(";"):
        statement += part
        if not statement.strip():
            statement = ""
        elif sqlite3.complete_statement(f"{statement};"):
            yield statement
            statement = ""
        else:  # a semicolon inside a trigger or a text
            statement += ";"
    if statement.strip():
        raise ValueError(f"unfinished SQL in a migration: {statement.strip()[:80]!r}")
