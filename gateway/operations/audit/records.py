"""Reading the audit trail, a batch at a time: whole tables never lie in memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.operations.audit.canonical import COLUMNS
from gateway.operations.audit.table import AUDIT

BATCH = 2000

_READ = sa.select(
    *(sa.type_coerce(AUDIT.c.detail, sa.Text) if name == "detail" else AUDIT.c[name] for name in (*COLUMNS, "hash"))
)
"""Every column as it lies in the table: the details are their text."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record as it was written. `detail` is the JSON text that was hashed."""

    seq: int
    time: datetime
    tenant: str
    type: str
    subtype: str
    action: str
    outcome: str
    actor: str
    actor_kind: str
    address: str | None
    entity_kind: str | None
    entity: str | None
    detail: str
    previous: str
    hash: str

    @property
    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.detail)
        return found


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which records: of one tenant, of a time (`since` <= time < `until`), of one entity (its kind and its name);
    None = any."""

    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    entity: tuple[str, str] | None = None


def page(connection: sa.Connection, query: AuditQuery, after: int = 0, limit: int = BATCH) -> list[AuditRecord]:
    """Up to `limit` records after number `after`, in their order."""
    wanted = _READ.where(AUDIT.c.seq > after).order_by(AUDIT.c.seq).limit(limit)
    if query.tenant is not None:
        wanted = wanted.where(AUDIT.c.tenant == query.tenant)
    if query.since is not None:
        wanted = wanted.where(AUDIT.c.time >= query.since)
    if query.until is not None:
        wanted = wanted.where(AUDIT.c.time < query.until)
    if query.entity is not None:
        wanted = wanted.where(AUDIT.c.entity_kind == query.entity[0], AUDIT.c.entity == query.entity[1])
    return [AuditRecord(*row) for row in connection.execute(wanted)]


def records(engine: sa.Engine, query: AuditQuery, last: int) -> Iterator[AuditRecord]:
    """All records up to number `last`; each batch is a transaction of its own, so that writers are not held up."""
    after = 0
    while True:
        with engine.connect() as connection:
            batch = page(connection, query, after)
        for record in batch:
            if record.seq > last:
                return
            yield record
        if len(batch) < BATCH:
            return
        after = batch[-1].seq
