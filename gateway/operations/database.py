"""The server's database: opened and migrated, one process at a time; every trouble of it a typed error."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import TypeDecorator

from gateway.operations.errors import DiskFull, InvalidSetting, StateBusy, StateError

log = structlog.get_logger("gateway.operations.database")

_MIGRATIONS = Path(__file__).with_name("migrations")


METADATA = sa.MetaData()
"""Of all tables of the database; each room declares its own."""


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; databases without time zones get it naive and give it back aware."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        found: datetime = value
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def open_database(url: str, state: Path) -> sa.Engine:
    """Open (create, migrate) the database. Raises InvalidSetting, StateError, DiskFull."""
    with database_errors():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Parameters hold patient identifiers: no error message may carry them.
        try:
            engine = sa.create_engine(url, hide_parameters=True)
        except (ArgumentError, ImportError):
            raise InvalidSetting(
                "PATHSERVE_DATABASE_URL is no SQLAlchemy address of a database that can be used here."
            ) from None
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _sqlite_connected)
            sa.event.listen(engine, "begin", _sqlite_begin)
        with (state / "migrate.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with engine.execution_options(ledger_writes=True).begin() as connection:
                config = alembic.config.Config()
                config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
                config.attributes["connection"] = connection
                try:
                    alembic.command.upgrade(config, "head")
                except alembic.util.CommandError as error:
                    raise StateError(
                        "The ledger was written by another version of pathserve that this one does not know; "
                        "start that version, or a newer one."
                    ) from error
        return engine


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate what a database says. Raises StateBusy, StateError, DiskFull."""
    try:
        yield
    except DBAPIError as error:
        # The name alone: the message may quote a row.
        log.error("the ledger's database failed", trouble=getattr(error.orig, "sqlite_errorname", type(error).__name__))
        if "disk is full" in str(error.orig) or "disk I/O" in str(error.orig):
            raise DiskFull("The ledger's disk is full; free some space and try again.") from error
        if getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StateBusy("The ledger's database is locked by another program; try again in a moment.") from error
        raise StateError("The ledger's database cannot be used now; see the server's log and try again.") from error
    except PoolTimeout as error:
        raise StateBusy("The ledger's database is busy; try again in a moment.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull("The ledger's disk is full; free some space and try again.") from error
        raise StateError("The state folder cannot be written; check its owner and mode.") from error


def _sqlite_connected(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=15000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    # Writers take the write lock at once, so that a read followed by a write cannot fail on a stale snapshot.
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
