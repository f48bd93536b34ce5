"""What the tests of logins share: the audit trail's rows, and an authenticator over a real database."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.domain.principal import Principal
from gateway.operations.audit.table import AUDIT
from gateway.operations.auth import ApiKey, Authenticator
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings

SERVER_KEY = "the-servers-own"
ADDRESS = "192.0.2.7"
Make = Callable[..., Authenticator]


def authenticator(engine: sa.Engine, **settings: Any) -> Authenticator:
    return Authenticator(Settings(**settings), engine, ApiKey.of(SERVER_KEY))


def records(engine: sa.Engine, *subtypes: str) -> list[Any]:
    """The audit trail, or those records of it."""
    with engine.connect() as connection:
        rows = connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq)).all()
    return [row for row in rows if not subtypes or row.subtype in subtypes]


def login(to: Authenticator, token: str | None, certificate: bytes | None = None, address: str = ADDRESS) -> Principal:
    return to.principal(None if token is None else f"Bearer {token}", certificate, address)


def refused(
    to: Authenticator,
    engine: sa.Engine,
    kind: type[PathserveError],
    token: str | None,
    certificate: bytes | None = None,
) -> Any:
    """The record of a login that has to be refused in this way, with exactly one record."""
    before = len(records(engine))
    with pytest.raises(kind) as raised:
        login(to, token, certificate)
    assert type(raised.value) is kind
    [record] = records(engine)[before:]
    assert (record.type, record.subtype, record.address) == ("110114", "login-refused", ADDRESS)
    assert token is None or token not in str(record)
    return record
