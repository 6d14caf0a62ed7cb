"""Databases migrate forward, refuse what they do not know, and keep transactions whole."""

from pathlib import Path

import pytest

from scf.core.errors import OperatorError
from scf.storage.database import open_database, transaction

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
