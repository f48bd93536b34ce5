"""What a SQLite database has deleted is gone from its files, and others who have it open are not harmed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.operations.errors import StateBusy, StateError
from gateway.operations.free_pages import clear_free_pages

SECRET = "PATIENT-4711"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A database that another program has open, with rows that were deleted."""
    path = tmp_path / "data.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as open_elsewhere:
        open_elsewhere.execute("PRAGMA journal_mode=WAL")
        open_elsewhere.execute("CREATE TABLE kept (text)")
        open_elsewhere.execute("CREATE TABLE orders (text)")
        open_elsewhere.executemany("INSERT INTO orders VALUES (?)", [(SECRET * 50,)] * 200)
        open_elsewhere.execute("INSERT INTO kept VALUES ('kept')")
        open_elsewhere.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        open_elsewhere.execute("DELETE FROM orders")
        yield path


def named(path: Path) -> list[str]:
    files = (path, path.with_name(f"{path.name}-wal"))
    return [file.name for file in files if SECRET.encode() in file.read_bytes()]


def test_deleted_rows_leave_no_byte(database: Path) -> None:
    assert named(database)
    clear_free_pages(database)
    assert named(database) == []
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT text FROM kept").fetchall() == [("kept",)]


def test_a_reader_that_goes_on_is_told(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.operations.free_pages._WAIT_S", 0.2)
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM kept").fetchall()
        with pytest.raises(StateBusy):
            clear_free_pages(database)
        reader.execute("ROLLBACK")
    clear_free_pages(database)
    assert named(database) == []


def test_a_writer_that_goes_on_is_told(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.operations.free_pages._WAIT_S", 0.2)
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateBusy):
            clear_free_pages(database)


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    path.write_text("no database, and long enough to be looked at as one" * 100)
    with pytest.raises(StateError):
        clear_free_pages(path)
