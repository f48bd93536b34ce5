"""What the routers need of their process, given to them by `create_app`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from gateway.analyses.ledger import Ledger, WorkerStatus
from gateway.domain.uids import is_analysis_id
from gateway.http.access import Access
from gateway.operations.errors import NotFound
from gateway.operations.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping` is set when the server begins to shut down: streams end then. `started`: when this process began.

    `worker_since` is when the worker that runs now was started by this server; None while it has none running.
    """

    settings: Settings
    ledger: Ledger
    access: Access
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    stopping: threading.Event = field(default_factory=threading.Event)
    worker_since: Callable[[], datetime | None] | None = None

    def worker(self) -> WorkerStatus | None:
        """The worker that lives now. Raises StateError.

        A heartbeat from before its process began may be that of a worker that was killed.
        """
        since = self.started if self.worker_since is None else self.worker_since()
        if since is None:
            return None
        found = self.ledger.worker()
        return found if found is not None and found.beat >= since and found.alive(datetime.now(UTC)) else None

    def artifacts(self, analysis_id: str) -> Path:
        return self.settings.state / "analyses" / analysis_id / "artifacts"


def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


def _analysis_id(analysis_id: str) -> str:
    if not is_analysis_id(analysis_id):
        raise NotFound("There is no analysis with this id.")
    return analysis_id


Here = Annotated[Context, Depends(_context)]
AnalysisId = Annotated[str, Depends(_analysis_id)]
