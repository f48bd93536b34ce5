"""What the routers need of their process and of the request: given by `create_app` and by the shell."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Header, Request

from gateway.analyses.feed import Feed
from gateway.analyses.service import Service
from gateway.domain.principal import Principal
from gateway.domain.uids import is_analysis_id
from gateway.http.access import Access
from gateway.operations.errors import NotFound
from gateway.operations.limits import RequestLimit

_TAG = re.compile(r'"([!#-~]+)"')


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping` is set when the server begins to shut down: streams end then. `started`: when this process began.

    `metrics` gives what `/metrics` shows, in the format of Prometheus.
    """

    service: Service
    access: Access
    limit: RequestLimit
    feed: Feed
    metrics: Callable[[], bytes]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    stopping: threading.Event = field(default_factory=threading.Event)

    def ready(self) -> bool:
        """Whether an order would be worked on now; not any more once the server stops."""
        return not self.stopping.is_set() and self.service.living.readiness().ready


async def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


async def _principal(request: Request) -> Principal:
    found: Principal = request.state.principal
    return found


async def _analysis_id(analysis_id: str) -> str:
    if not is_analysis_id(analysis_id):
        raise NotFound("There is no analysis with this id.")
    return analysis_id


async def _if_match(
    if_match: Annotated[
        str | None, Header(description="Change it only where this is its ETag still: one of them, or * for any")
    ] = None,
) -> str | None:
    """The version that `If-Match` asks for (RFC 9110 13.1.1); None where it asks for none, or for any.

    What is no strong ETag is no version's: the precondition fails.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    tag = _TAG.fullmatch(if_match.strip())
    return tag[1] if tag else ""


Here = Annotated[Context, Depends(_context)]
By = Annotated[Principal, Depends(_principal)]
AnalysisId = Annotated[str, Depends(_analysis_id)]
IfMatch = Annotated[str | None, Depends(_if_match)]
