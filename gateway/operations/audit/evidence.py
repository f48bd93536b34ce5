"""Opening a database only to read: nothing is migrated, created or left beside it, so that evidence stays as it is."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from gateway.operations.audit.table import AUDIT
from gateway.operations.database import database_errors, make_engine
from gateway.operations.disk import disk_errors
from gateway.operations.errors import NotFound


@contextmanager
def read_only(url: str) -> Iterator[sa.Engine]:
    """The database at `url`, live or a copy. Raises NotFound where it has no audit trail; StateError, DiskFull."""
    address = sa.make_url(url)
    with database_errors():
        if address.get_backend_name() == "sqlite":
            with _sqlite(Path(address.database or "")) as engine:
                yield _with_trail(engine)
            return
        engine = make_engine(url).execution_options(postgresql_readonly=True)
        try:
            yield _with_trail(engine)
        finally:
            engine.dispose()


def _with_trail(engine: sa.Engine) -> sa.Engine:
    if not sa.inspect(engine).has_table(AUDIT.name):
        raise NotFound("There is no audit trail in this database; check PATHSERVE_STATE and PATHSERVE_DATABASE_URL.")
    return engine


@contextmanager
def _sqlite(path: Path) -> Iterator[sa.Engine]:
    if not path.is_file():
        raise NotFound(f"There is no database {path.name}; check PATHSERVE_STATE and PATHSERVE_DATABASE_URL.")
    log = path.with_name(f"{path.name}-wal")
    if not log.exists():
        # Nobody has it open: there is nothing to wait for, and no file is made beside it.
        yield _engine(path, "immutable=1")
        return
    live = _engine(path, "mode=ro")
    try:
        live.connect().close()
        readable = True
    except OperationalError:  # a copy, where the files that a reader of a live database needs cannot be made
        readable = False
    if readable:
        yield live
        return
    with tempfile.TemporaryDirectory() as folder:
        with disk_errors():
            shutil.copy(log, folder)
            copy = Path(shutil.copy(path, folder))
        yield _engine(copy, "mode=rw")


def _engine(path: Path, how: str) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=15)
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opening alone reads nothing
        return connection

    return sa.create_engine("sqlite://", poolclass=sa.NullPool, creator=connect, hide_parameters=True)
