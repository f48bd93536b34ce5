"""The audit trail: who ordered, read, released, signed, sent or changed what; append-only, each row chained."""

from gateway.operations.audit.events import Action, AuditEvent, EventType, Outcome
from gateway.operations.audit.trail import append

__all__ = ["Action", "AuditEvent", "EventType", "Outcome", "append"]
