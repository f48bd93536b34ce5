"""What the tests of logins share: a database of each kind."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from gateway.operations.database import open_database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A database with our tables, for all tests of a module."""
    state = tmp_path_factory.mktemp("state")
    if request.param == "sqlite":
        url = f"sqlite:///{state / 'pathserve.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = open_database(url, state)
    yield opened
    opened.dispose()
