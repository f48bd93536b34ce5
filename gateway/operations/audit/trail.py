"""Adding to the audit trail: in the transaction of what is told, so that neither is there without the other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from gateway.operations.audit.canonical import canonical, digest_of, fit_detail, fit_text, now
from gateway.operations.audit.events import AuditEvent
from gateway.operations.audit.records import BATCH, AuditQuery, AuditRecord, page
from gateway.operations.audit.table import AUDIT, AUDIT_HEAD

Transaction = Callable[[], AbstractContextManager[sa.Connection]]


def append(connection: sa.Connection, *events: AuditEvent) -> None:
    """Chain the events to the trail, within the caller's transaction (which locks the trail's end until it ends).

    On SQLite that transaction has begun as a writer's. Two statements, however many events; the table's trigger moves
    the head. What does not fit a column is cut, never refused: an operation must not fail for its record.
    """
    if not events:
        return
    head = connection.execute(sa.select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == 1).with_for_update()).one()
    previous, time = head.hash, now()
    rows: list[dict[str, Any]] = []
    for seq, event in enumerate(events, head.seq + 1):
        detail = fit_detail(event.detail)
        row = {
            "seq": seq,
            "time": time,
            "tenant": fit_text(event.tenant, 64),
            "type": event.type.value,
            "subtype": fit_text(event.subtype, 64),
            "action": event.action.value,
            "outcome": event.outcome.value,
            "actor": fit_text(event.actor, 255),
            "actor_kind": fit_text(event.actor_kind, 16),
            "address": None if event.address is None else fit_text(event.address, 64),
            "entity_kind": None if event.entity_kind is None else fit_text(event.entity_kind, 32),
            "entity": None if event.entity is None else fit_text(event.entity, 255),
            "previous": previous,
        }
        previous = digest_of({**row, "detail": canonical(detail)})
        rows.append({**row, "detail": detail, "hash": previous})
    connection.execute(AUDIT.insert(), rows)


class AuditTrail:
    """The trail of one database, for what is told by itself. Every method is one transaction.

    All raise StateError (DatabaseUnavailable, StateBusy) and DiskFull.
    """

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    def append(self, *events: AuditEvent) -> None:
        """As `append`, in a transaction of its own."""
        with self._write() as connection:
            append(connection, *events)

    def head(self) -> tuple[int, str]:
        """The number and the hash of the last record; 0 where there is none."""
        with self._read() as connection:
            head = connection.execute(sa.select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == 1)).one()
            return head.seq, head.hash

    def page(self, query: AuditQuery, after: int = 0, limit: int = BATCH) -> list[AuditRecord]:
        """Up to `limit` records after number `after`, in their order."""
        with self._read() as connection:
            return page(connection, query, after, limit)
