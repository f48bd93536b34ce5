"""Adding to the audit trail: in the transaction of what is told, so that neither is there without the other."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from gateway.operations.audit.events import AuditEvent
from gateway.operations.audit.table import AUDIT, AUDIT_HEAD


def append(connection: sa.Connection, *events: AuditEvent) -> None:
    """Chain the events to the trail, within the caller's transaction (which locks the trail's end until it ends)."""
    head = connection.execute(sa.select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == 1).with_for_update()).one()
    seq, previous = head.seq, head.hash
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for event in events:
        seq += 1
        row = {
            "seq": seq,
            "time": now,
            "tenant": event.tenant,
            "type": event.type.value,
            "subtype": event.subtype,
            "action": event.action.value,
            "outcome": event.outcome.value,
            "actor": event.actor,
            "actor_kind": event.actor_kind,
            "address": event.address,
            "entity_kind": event.entity_kind,
            "entity": event.entity,
            "detail": dict(event.detail),
            "previous": previous,
        }
        previous = digest_of(row)
        rows.append(row | {"hash": previous})
    connection.execute(AUDIT.insert(), rows)
    connection.execute(AUDIT_HEAD.update().where(AUDIT_HEAD.c.id == 1).values(seq=seq, hash=previous))


def digest_of(row: dict[str, Any]) -> str:
    """SHA-256 over every column but `hash`, in canonical JSON; `row["time"]` is aware."""
    values = {key: value for key, value in row.items() if key != "hash"}
    values["time"] = row["time"].astimezone(UTC).isoformat(timespec="microseconds")
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()
