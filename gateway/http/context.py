"""What the routers need of their process and of the request: given by `create_app` and by the shell."""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request

from gateway.analyses.feed import Feed
from gateway.analyses.service import Service
from gateway.domain.principal import Principal
from gateway.domain.uids import is_analysis_id
from gateway.http.access import Access
from gateway.operations.errors import NotFound, PreconditionFailed
from gateway.operations.limits import RequestLimit

Changed = TypeVar("Changed")

_TAG = re.compile(r'"([!#-~]+)"')
_MOST_TAGS = 8


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping` is set when the server begins to shut down: streams end then.

    `metrics` gives what `/metrics` shows, in the format of Prometheus.
    """

    service: Service
    access: Access
    limit: RequestLimit
    feed: Feed
    metrics: Callable[[], bytes]
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


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that `If-Match` asks for (RFC 9110 13.1.1); None alone where it asks for none, or for any."""

    asked: tuple[str | None, ...]

    def change(self, change: Callable[[str | None], Changed]) -> Changed:
        """Make a change that is given its version. Raises PreconditionFailed where it has none of those."""
        for version in self.asked[:-1]:
            with suppress(PreconditionFailed):
                return change(version)
        return change(self.asked[-1])


async def _if_match(
    if_match: Annotated[
        str | None, Header(description="Change it only where one of these is its ETag still; * for any")
    ] = None,
) -> Versions:
    """What is no strong ETag is no version's: the precondition fails."""
    if if_match is None or if_match.strip() == "*":
        return Versions((None,))
    tags = [match[1] for each in if_match.split(",") if (match := _TAG.fullmatch(each.strip()))]
    return Versions(tuple(tags[:_MOST_TAGS]) or ("",))


Here = Annotated[Context, Depends(_context)]
By = Annotated[Principal, Depends(_principal)]
AnalysisId = Annotated[str, Depends(_analysis_id)]
IfMatch = Annotated[Versions, Depends(_if_match)]
