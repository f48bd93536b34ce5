"""What the routers need of their process, given to them by `create_app`."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from gateway.analyses.ledger import Ledger
from gateway.domain.uids import is_analysis_id
from gateway.operations.errors import NotFound
from gateway.operations.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping` is set when the server begins to shut down: streams end then. `started`: when this process began."""

    settings: Settings
    ledger: Ledger
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    stopping: threading.Event = field(default_factory=threading.Event)

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
