"""Databases migrate forward, refuse what they do not know, and keep transactions whole."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scf.core.errors import OperatorError
from scf.storage.database import open_database, transaction
from support.processes import python_env

FIRST = "CREATE TABLE t (a INTEGER)"


def test_migrations_run_once_each(tmp_path: Path) -> None:
    open_database(tmp_path / "d", [FIRST]).close()
    db = open_database(tmp_path / "d", [FIRST, "ALTER TABLE t ADD COLUMN b TEXT"])

    assert [row["name"] for row in db.execute("PRAGMA table_info(t)")] == ["a", "b"]
    db.close()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    db = open_database(tmp_path / "d", [FIRST])

    with pytest.raises(ZeroDivisionError), transaction(db):
        db.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError

    assert db.execute("SELECT count(*) FROM t").fetchone()[0] == 0
    db.close()


def test_a_newer_schema_and_a_damaged_file_are_refused_with_a_remedy(tmp_path: Path) -> None:
    open_database(tmp_path / "newer", [FIRST, "CREATE TABLE u (a)"]).close()
    (tmp_path / "damaged").write_bytes(b"not a database at all" * 100)

    with pytest.raises(OperatorError, match="schema version 2"):
        open_database(tmp_path / "newer", [FIRST])
    with pytest.raises(OperatorError, match="cannot be used") as caught:
        open_database(tmp_path / "damaged", [FIRST])
    assert caught.value.remedy


TRIGGER = """
CREATE TABLE v (a TEXT DEFAULT 'x;y');
CREATE TRIGGER keep BEFORE DELETE ON v BEGIN SELECT RAISE(ABORT, 'append-only'); END;
INSERT INTO v VALUES ('one')
"""


def test_scripts_may_hold_triggers_and_semicolons(tmp_path: Path) -> None:
    db = open_database(tmp_path / "d", [FIRST, TRIGGER])

    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute("DELETE FROM v")
    db.execute("INSERT INTO v DEFAULT VALUES")
    assert [row["a"] for row in db.execute("SELECT a FROM v")] == ["one", "x;y"]
    db.close()


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path) -> None:
    open_database(tmp_path / "d", [FIRST]).close()

    with pytest.raises(OperatorError):
        open_database(tmp_path / "d", [FIRST, "CREATE TABLE u (a); CREATE TABLE t (again)"])
    db = open_database(tmp_path / "d", [FIRST])
    assert [row["name"] for row in db.execute("SELECT name FROM sqlite_master")] == ["t"]
    db.close()


def test_processes_that_open_a_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from scf.storage.database import open_database\n"
        "sys.stdin.readline(); open_database(Path(sys.argv[1]), ['CREATE TABLE t (a)', 'CREATE TABLE u (a)']).close()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "d")]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, env=python_env()) for _ in range(6)
    ]
    for child in children:
        child.communicate(b"go\n", timeout=300)

    assert [child.returncode for child in children] == [0] * 6


def test_a_database_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself would say "locked" at once: whoever asked a starting daemon how it does met it."""
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE early (n)")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, timeout=0.0).execute("PRAGMA journal_mode = WAL")
    letting_go = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    letting_go.start()
    try:
        connection = open_database(path, ("CREATE TABLE t (n)",))
    finally:
        letting_go.join()
        other.close()

    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.close()
