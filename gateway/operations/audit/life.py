"""What the trail says of a process of ours, and the signed notes that it makes of the trail's end while it lives."""

import socket
import threading
from pathlib import Path
from types import TracebackType

import structlog

from gateway.operations.audit.anchors import Anchors
from gateway.operations.audit.events import Action, AuditEvent, EventType
from gateway.operations.audit.trail import AuditTrail
from gateway.operations.errors import PathserveError

log = structlog.get_logger("gateway.operations.audit")

ANCHOR_S = 300.0
"""What is rewritten before it is this old need not be found out."""
END_S = 3.0
"""How long a process that ends waits for a database that does not answer."""


class AuditLife:
    """Around the life of a server or worker: its start and its end are records, the trail's end is anchored meanwhile.

    Nothing here fails a process: what cannot be written is logged. A process that is killed has no end in the trail.
    """

    def __init__(self, trail: AuditTrail, state: Path, kind: str, name: str | None = None) -> None:
        """`kind`: server, worker. `name`: what it is called, else its host."""
        self._trail = trail
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
        self._thread.join(END_S)

    def _keep(self) -> None:
        while True:
            self._anchor()
            if self._ended.wait(ANCHOR_S):
                break
        self._note("application-stopped")
        self._anchor()

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
            self._trail.append(event)
        except PathserveError as failed:
            log.error("the audit trail could not be written", name=subtype, reason=failed.reason)

    def _anchor(self) -> None:
        try:
            seq, digest = self._trail.head()
            if seq > self._anchored:
                self._anchors.add(seq, digest)
                self._anchored = seq
        except PathserveError as failed:
            log.error("the end of the audit trail could not be anchored", reason=failed.reason)
