"""Transactions on the server's database, for what this room keeps in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from gateway.operations.database import database_errors


class Store:
    """Reads and writes; the engine is the ledger's. Trouble of the database is a StateError of some kind."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(ledger_writes=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with database_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        with database_errors(), self._writer.begin() as connection:
            yield connection
