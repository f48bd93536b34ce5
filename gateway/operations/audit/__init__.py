"""The audit trail: who ordered, read, released, signed, sent or changed what; append-only, each row chained."""

from gateway.operations.audit.events import Action, AuditEvent, EventType, Outcome
from gateway.operations.audit.formats import FORMATS
from gateway.operations.audit.life import AuditLife
from gateway.operations.audit.records import AuditQuery, AuditRecord
from gateway.operations.audit.trail import AuditTrail, append

__all__ = [
    "FORMATS",
    "Action",
    "AuditEvent",
    "AuditLife",
    "AuditQuery",
    "AuditRecord",
    "AuditTrail",
    "EventType",
    "Outcome",
    "append",
]
