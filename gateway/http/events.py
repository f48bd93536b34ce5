"""`/v1/analyses/{id}/events`: what happens to an analysis, as server-sent events.

The id of an event is its number in the ledger, so `Last-Event-ID` replays without loss (WHATWG HTML 9.2).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from gateway.analyses.ledger import Event
from gateway.domain.analysis import State
from gateway.http.context import AnalysisId, Context, Here
from gateway.operations.errors import InvalidInput

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])

POLL_S = 0.25
PING_S = 15.0


@router.get(
    "/{analysis_id}/events",
    response_class=StreamingResponse,
    summary="Follow an analysis",
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "Nothing follows that event: the analysis has ended"},
    },
)
def follow(here: Here, analysis_id: AnalysisId, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """Events `state`, `step` and `progress` from the beginning, or after `Last-Event-ID`; ends with the final state."""
    after = 0
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 9):
            raise InvalidInput("Last-Event-ID is the id of an event of this stream: a number.")
        after = int(last_event_id)
    ended = here.ledger.get(analysis_id).analysis.state.final
    if after and ended and not here.ledger.events(analysis_id, after, limit=1):
        # A browser takes the end of a stream for a fault and comes back until it is told this (WHATWG HTML 9.2.3).
        return Response(status_code=204)
    return StreamingResponse(
        _stream(here, analysis_id, after), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _stream(here: Context, analysis_id: str, after: int) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    last_s = time.monotonic()
    while True:
        # The state is read first: what it says is then surely among the events read after it.
        final = (await run_in_threadpool(here.ledger.get, analysis_id)).analysis.state.final
        events = await run_in_threadpool(here.ledger.events, analysis_id, after)
        for event in events:
            after = event.seq
            yield encode(event)
            if event.kind == "state" and State(event.data["state"]).final:
                return
        if events:
            last_s = time.monotonic()
            continue
        if final or here.stopping.is_set():
            return
        if time.monotonic() - last_s > PING_S:
            last_s = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)


def encode(event: Event) -> str:
    """One event in the stream's format; JSON has no line breaks of its own."""
    data = json.dumps({"time": event.time.isoformat(), **event.data}, ensure_ascii=False)
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n"
