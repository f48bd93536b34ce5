"""What the trail says of a process of ours, and the signed notes that it makes of the trail's end while it lives."""

import socket
import threading
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa
import structlog

from gateway.operations.audit.anchors import Anchors
from gateway.operations.audit.events import Action, AuditEvent, EventType
from gateway.operations.audit.table import AUDIT_HEAD
from gateway.operations.audit.trail import append
from gateway.operations.database import database_errors
from gateway.operations.errors import PathserveError

log = structlog.get_logger("gateway.operations.audit")

ANCHOR_S = 300.0
"""What is rewritten before it is this old need not be found out."""


class AuditLife:
    """Around the life of a server or worker: its start and its end are records, the trail's end is anchored meanwhile.

    Nothing here fails a process: what cannot be written is logged. A process that is killed has no end in the trail.
    """

    def __init__(self, engine: sa.Engine, state: Path, kind: str, name: str | None = None) -> None:
        """`kind`: server, worker. `name`: what it is called, else its host."""
        self._writer = engine.execution_options(ledger_writes=True)
        self._engine = engine
        self._anchors = Anchors(state)
        self._kind = kind
        self._name = name or socket.gethostname()
        self._anchored = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="audit-anchors", daemon=True)

    def __enter__(self) -> "AuditLife":
        self._note("application-started")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._note("application-stopped")
        self._anchor()

    def _keep(self) -> None:
        while True:
            self._anchor()
            if self._ended.wait(ANCHOR_S):
                return

    def _note(self, subtype: str) -> None:
        event = AuditEvent(
            type=EventType.APPLICATION_ACTIVITY,
            subtype=subtype,
            action=Action.EXECUTE,
            actor=self._kind,
            entity_kind=self._kind,
            entity=self._name,
        )
        try:
            with database_errors(), self._writer.begin() as connection:
                append(connection, event)
        except PathserveError as failed:
            log.error("the audit trail could not be written", name=subtype, reason=failed.reason)

    def _anchor(self) -> None:
        try:
            with database_errors(), self._engine.connect() as connection:
                head = connection.execute(sa.select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == 1)).one()
            if head.seq > self._anchored:
                self._anchors.add(head.seq, head.hash)
                self._anchored = head.seq
        except PathserveError as failed:
            log.error("the end of the audit trail could not be anchored", reason=failed.reason)
