"""The server's database: opened and migrated, one process at a time; every trouble of it a typed error."""

import errno
import fcntl
import select
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import TypeDecorator

from gateway.operations.errors import DatabaseUnavailable, DiskFull, InvalidSetting, StateBusy, StateError

log = structlog.get_logger("gateway.operations.database")

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_LOCK = 0x70617468
_CONNECTIONS = 16
"""The most of one process: a server and several workers fit into PostgreSQL's 100."""
_WAIT_S = 5.0
_POSTGRESQL = {
    "application_name": "pathserve",
    # No request hangs for a database that does not answer: 5 s to connect, 6 s for a lock, 12 s for a statement, and
    # as long for a network that swallows packets. A process that was stopped in the midst of a transaction holds up the
    # others for 10 s, no longer.
    "connect_timeout": 5,
    "options": "-c lock_timeout=6s -c statement_timeout=12s -c idle_in_transaction_session_timeout=10s",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 12000,
}

METADATA = sa.MetaData()
"""Of all tables of the database; each room declares its own."""


class _BoundedConnection(psycopg.Connection[Any]):
    """One that waits for no answer longer than `answer_s`: of a server that is stopped, or of a machine that hangs, the
    kernel still takes what is sent, and none of the server's own limits ends the wait."""

    answer_s: float | None = 13.0

    def wait(self, gen: Any, *arguments: Any, **more: Any) -> Any:
        if more.get("timeout") is None:
            more["timeout"] = self.answer_s
        try:
            return super().wait(gen, *arguments, **more)
        except psycopg.errors._WaitTimeout:
            # Its state is unknown: it is used no more.
            self.pgconn.finish()
            raise psycopg.OperationalError("no answer in time") from None


def _connect_bounded(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> psycopg.Connection[Any]:
    return _BoundedConnection.connect(*arguments, **parameters)


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
    """Open (create, migrate) the database. `url` may say `postgresql://`, which means psycopg 3.

    Raises InvalidSetting, StateError, DatabaseUnavailable, DiskFull.
    """
    with database_errors():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = make_engine(url)
        try:
            # One process at a time: on this machine by the lock, on several by the database's own.
            with (state / "migrate.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _migrate(engine)
            # The connection that migrated waits without bound.
            engine.dispose()
        except BaseException:
            engine.dispose()
            raise
        return engine


def _migrate(engine: sa.Engine) -> None:
    with engine.execution_options(ledger_writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            # A migration takes its time; whoever waits for it, too. Nobody has its connection afterwards.
            bounded: Any = connection.connection.driver_connection
            bounded.answer_s = None
            connection.detach()
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
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


def make_engine(url: str) -> sa.Engine:
    """An engine for a database that may not be there yet, and is not migrated. Raises InvalidSetting."""
    try:
        address = sa.make_url(url)
        if address.drivername in ("postgres", "postgresql"):
            address = address.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(
            address,
            # Parameters hold patient identifiers: no error message may carry them.
            hide_parameters=True,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_WAIT_S,
            pool_use_lifo=True,
            connect_args=_POSTGRESQL if address.get_backend_name() == "postgresql" else {},
        )
    except (ArgumentError, ImportError, ValueError, TypeError):  # the last: one in memory, which is nobody else's
        raise InvalidSetting(
            "PATHSERVE_DATABASE_URL is no SQLAlchemy address of a database that can be used here."
        ) from None
    if engine.driver == "psycopg":
        sa.event.listen(engine, "do_connect", _connect_bounded)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_connected)
        sa.event.listen(engine, "begin", _sqlite_begin)
    else:
        sa.event.listen(engine, "checkout", partial(_taken, engine.dialect))
    return engine


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate what a database says. Raises DatabaseUnavailable, StateBusy, DiskFull, StateError."""
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        # The name alone: the message may quote a row.
        trouble = getattr(error.orig, "sqlite_errorname", state) or type(error.orig).__name__
        log.error("the ledger's database failed", trouble=trouble)
        raise _translated(error, str(trouble)) from error
    except PoolTimeout as error:
        raise StateBusy("The ledger's database is busy; try again in a moment.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull("The ledger's disk is full; free some space and try again.") from error
        raise StateError("The state folder cannot be written; check its owner and mode.") from error


def _translated(error: DBAPIError, trouble: str) -> StateError:
    """By SQLite's error names and PostgreSQL's SQLSTATE classes (its manual, appendix A)."""
    if trouble == "53100" or "disk is full" in str(error.orig) or "disk I/O" in str(error.orig):
        return DiskFull("The ledger's disk is full; free some space and try again.")
    if trouble.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StateBusy("The ledger's database is locked by another program; try again in a moment.")
    # Serialisation, deadlock, a lock or a statement that took too long.
    if trouble in ("40001", "40P01", "55P03", "57014", "25P03"):
        return StateBusy("The ledger's database is busy; try again in a moment.")
    # Connection lost or refused, shut down or starting, out of connections, a standby.
    gone = trouble.startswith(("08", "53", "57P")) or trouble == "25006"
    if gone or (not isinstance(error.orig, sqlite3.Error) and isinstance(error, (OperationalError, InterfaceError))):
        return DatabaseUnavailable("The ledger's database does not answer; check that it runs, then try again.")
    return StateError("The ledger's database cannot be used now; see the server's log and try again.")


def _sqlite_connected(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=6000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    # Writers take the write lock at once, so that a read followed by a write cannot fail on a stale snapshot.
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _taken(dialect: Dialect, connection: Any, _: Any, __: Any) -> None:
    # A connection that the database has closed meanwhile is replaced, not complained of. Nothing comes on an idle one
    # but its end: only where something has come is it worth a round trip to ask.
    try:
        come = select.poll()
        come.register(connection.fileno(), select.POLLIN)
        if come.poll(0):
            dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        raise InvalidatePoolError from None
