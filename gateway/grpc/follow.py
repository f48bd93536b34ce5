"""The streams of events: following an analysis, and running one for as long as a call lives."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import structlog

from gateway.analyses.ledger.events import Event
from gateway.analyses.ledger.records import Record
from gateway.analyses.service import Service
from gateway.domain.analysis import State
from gateway.domain.order import Order
from gateway.domain.principal import Principal, Scope
from gateway.grpc import views
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2 import RunAnalysisResponse
from gateway.grpc.threads import in_thread
from gateway.operations.errors import Conflict, NotFound, PathserveError, StateBusy

log = structlog.get_logger("gateway.grpc")

_IDLE_S = 15.0
"""How often a stream to which nothing happens looks whether its analysis has ended, or is no longer kept."""
_CANCEL_PAUSE_S, _LONGEST_CANCEL_PAUSE_S = 0.5, 30.0


class Followers:
    """All streams of events of this server. `stopping` is set when it begins to end: they end then."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._feed = service.feed()
        self.stopping = asyncio.Event()
        self._abandoned: set[asyncio.Task[None]] = set()

    async def watch(self, by: Principal, analysis_id: str, after: int, context: Any) -> None:
        """Write the analysis's events, from the one after that number to its end."""
        async with aclosing(self._events(by, analysis_id, after)) as events:
            async for event in events:
                await context.write(views.event(event))

    async def run(self, by: Principal, order: Order, key: str | None, context: Any) -> None:
        """Accept the order, write the analysis, its events and how it ended. The analysis ends with the call."""
        await in_thread(self._service.require, by, Scope.ANALYSES_READ, "analysis-run")
        # A call may end while its order is being written down: this goes on, so that it is known what to cancel.
        accepting = asyncio.ensure_future(in_thread(self._service.create, by, order, key))
        try:
            record, _ = await asyncio.shield(accepting)
            await context.write(RunAnalysisResponse(analysis=views.analysis(record)))
            async with aclosing(self._events(by, record.analysis.id, 0)) as events:
                async for event in events:
                    await context.write(RunAnalysisResponse(event=views.event(event)))
            ended = await in_thread(self._service.get, by, record.analysis.id)
            await context.write(RunAnalysisResponse(analysis=views.analysis(ended)))
        except BaseException:
            if not self.stopping.is_set():
                task = asyncio.create_task(self._abandon(by, accepting))
                self._abandoned.add(task)
                task.add_done_callback(self._abandoned.discard)
            raise

    async def settle(self, within_s: float) -> None:
        """Wait until every call that has ended has cancelled its analysis."""
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=within_s)

    async def _events(self, by: Principal, analysis_id: str, after: int) -> AsyncGenerator[Event, None]:
        """The events until the analysis has ended. Raises as `Service.get`, and StateBusy where the server stops."""
        ended = (await in_thread(self._service.get, by, analysis_id)).analysis.state.final
        if ended and not await in_thread(self._service.events, by, analysis_id, after):
            return
        async with aclosing(self._feed.follow(analysis_id, after, self.stopping.is_set, _IDLE_S)) as following:
            async for events in following:
                for event in events:
                    yield event
                    if event.kind == "state":
                        ended = State(event.data["state"]).final
                # What has failed may be tried again: an end that is told may be over.
                if (ended or not events) and await in_thread(self._service.is_over, by, analysis_id):
                    return
        raise StateBusy("The server is stopping. The analysis goes on: follow it with WatchAnalysis.")

    async def _abandon(self, by: Principal, accepting: "asyncio.Future[tuple[Record, bool]]") -> None:
        """Cancel the analysis of a call that has ended; again and again while that fails, and once more when the server
        begins to end."""
        try:
            record, _ = await accepting
        except PathserveError:
            return  # it was not accepted
        pause_s = _CANCEL_PAUSE_S
        while True:
            last = self.stopping.is_set()
            try:
                await in_thread(self._service.cancel, by, record.analysis.id)
                return
            except (Conflict, NotFound):
                return  # it has ended, its delivery has begun, or it is no longer kept
            except Exception as error:
                log.error(
                    "the analysis of an ended call is not cancelled yet",
                    analysis_id=record.analysis.id,
                    trouble=type(error).__name__,
                )
            if last:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self.stopping.wait()
            pause_s = min(2 * pause_s, _LONGEST_CANCEL_PAUSE_S)
