"""Clearing what a SQLite database has deleted: the rows' bytes lie in free pages and in its log until then."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from gateway.operations.errors import StateBusy, StateError

_WAIT_S = 15.0


def clear_free_pages(path: Path) -> None:
    """Write the database anew without its free pages, and empty its log. Other programs may have it open.

    Raises StateBusy where they read or write it all the time, StateError.
    """
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            until = time.monotonic() + _WAIT_S
            # Busy as long as somebody reads what only the log has.
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise StateBusy(_BUSY)
                time.sleep(0.1)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StateBusy(_BUSY) from error
        raise StateError("The free pages of a database in the state folder cannot be cleared; see its disk.") from error


_BUSY = (
    "All is purged, but its bytes may lie in free pages of the database still, which others are using: repeat the "
    "command in a quieter moment."
)
