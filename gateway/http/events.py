"""`/v1/analyses/{id}/events`: what happens to an analysis, as server-sent events.

The id of an event is its number in the ledger, so `Last-Event-ID` replays without loss (WHATWG HTML 9.2).
"""

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from gateway.analyses.ledger.events import Event
from gateway.domain.analysis import State
from gateway.domain.principal import Principal, Scope
from gateway.http.context import AnalysisId, By, Context, Here
from gateway.http.routing import Router, needs
from gateway.http.views import PREFIX
from gateway.operations.errors import TooManyRequests

router = Router(tags=["analyses"])

PING_S = 15.0
MOST_STREAMS = 500
"""At once, of all callers together: each holds a connection, and those of a process are counted."""
_EXAMPLE = 'id: 1\nevent: state\ndata: {"time": "2026-11-26T08:15:00+00:00", "state": "accepted"}\n\n'


@router.get(
    f"{PREFIX}/{{analysis_id}}/events",
    response_class=StreamingResponse,
    summary="Follow an analysis",
    openapi_extra=needs(Scope.ANALYSES_READ),
    responses={
        200: {"content": {"text/event-stream": {"example": _EXAMPLE}}},
        204: {"description": "Nothing follows that event: the analysis has ended"},
    },
)
async def follow(
    here: Here,
    by: By,
    request: Request,
    analysis_id: AnalysisId,
    last_event_id: Annotated[
        str | None, Header(pattern="^[0-9]{1,9}$", description="Only what follows the event of this id")
    ] = None,
) -> Response:
    """Events `state`, `step`, `progress` and what else happens to it, from the beginning or after `Last-Event-ID`; ends
    when the analysis has ended."""
    after = int(last_event_id or 0)
    ended = await run_in_threadpool(_ended, here, by, analysis_id)
    if after and ended and not await run_in_threadpool(here.service.events, by, analysis_id, after):
        # A browser takes the end of a stream for a fault and comes back until it is told this (WHATWG HTML 9.2.3).
        return Response(status_code=204)
    media_type, headers = "text/event-stream", {"X-Accel-Buffering": "no"}
    if request.method == "HEAD":
        return Response(media_type=media_type, headers=headers)
    if here.feed.followed >= MOST_STREAMS:
        raise TooManyRequests("Too many streams are open. Ask for the analysis itself, or end other streams.", PING_S)
    return StreamingResponse(_stream(here, by, analysis_id, after, ended), media_type=media_type, headers=headers)


async def _stream(here: Context, by: Principal, analysis_id: str, after: int, ended: bool) -> AsyncIterator[str]:
    """`ended`: the analysis had ended before anything of this was read."""
    yield "retry: 2000\n\n"
    following = here.feed.follow(analysis_id, after, here.stopping.is_set, PING_S)
    try:
        async for events in following:
            yield "".join(map(encode, events)) or ": still here\n\n"
            for event in events:
                if event.kind == "state":
                    ended = State(event.data["state"]).final
            # What has failed may be tried again: an end that is told may be over. Where nothing comes, an end may have
            # been told before (`Last-Event-ID`), or the analysis is no longer kept.
            if (ended or not events) and await run_in_threadpool(here.service.is_over, by, analysis_id):
                return
    finally:
        await following.aclose()


def _ended(here: Context, by: Principal, analysis_id: str) -> bool:
    return here.service.get(by, analysis_id).analysis.state.final


def encode(event: Event) -> str:
    """One event in the stream's format; JSON has no line breaks of its own."""
    data = json.dumps({"time": event.time.isoformat(), **event.data}, ensure_ascii=False)
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n"
