"""The audit trail: who ordered, read, released, signed, sent or changed what; append-only, each row chained."""

from gateway.operations.audit.events import Action, AuditEvent, EventType, Outcome, local_user
from gateway.operations.audit.formats import FORMATS
from gateway.operations.audit.life import AuditLife
from gateway.operations.audit.records import AuditQuery, AuditRecord, page
from gateway.operations.audit.trail import append

__all__ = [
    "FORMATS",
    "Action",
    "AuditEvent",
    "AuditLife",
    "AuditQuery",
    "AuditRecord",
    "EventType",
    "Outcome",
    "append",
    "local_user",
    "page",
]
