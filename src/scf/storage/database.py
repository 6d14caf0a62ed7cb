"""SQLite on the internal disk: write-ahead log, full synchronisation, numbered migrations."""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scf.core.errors import BudgetExceeded, OperatorError

# How long to wait for another process that is at the same database.
BUSY_WAIT_S = 30.0


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open (or make) a database and bring it to the newest schema.

    `migrations[i]` is the SQL that leads from version i to i + 1; the version is SQLite's own
    `user_version`. Transactions are explicit (`transaction`); a commit returns once it is on the
    medium.

    Raises:
        OperatorError: The file is damaged, or was written by a newer scf.
    """
    connection = sqlite3.connect(
        path,
        timeout=BUSY_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    connection.name = path.name
    connection.row_factory = sqlite3.Row
    try:
        _use_wal(connection)
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


class _Connection(sqlite3.Connection):
    """A connection for which a full disk is an error of ours, whatever statement meets it.

    Attributes:
        name: Of the file, for messages.
    """

    name = ""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """One statement. Raises BudgetExceeded where the disk is full."""
        try:
            return super().execute(*arguments)
        except sqlite3.OperationalError as error:
            self._raise_if_full(error)
            raise

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """One statement for many rows. Raises BudgetExceeded where the disk is full."""
        try:
            return super().executemany(*arguments)
        except sqlite3.OperationalError as error:
            self._raise_if_full(error)
            raise

    def _raise_if_full(self, error: sqlite3.OperationalError) -> None:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise BudgetExceeded(
                f"{self.name}: the home's disk, or that of temporary files, is full; "
                "nothing was changed",
                remedy="Free room on the internal disk.",
            ) from error


def is_busy(error: sqlite3.DatabaseError) -> bool:
    """Whether another process holds the database: nothing is wrong with it."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on, once for the life of a file.

    SQLite does not wait here, whatever the timeout says: whoever looks into a database that another
    process is just making would be told that it is locked (seen as a daemon that died at its start
    because somebody asked for its status).
    """
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing: commits when the block ends, rolls back when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


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
