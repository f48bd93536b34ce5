"""The events of all streams of this process, by one look at the database for all of them.

The worker writes events in another process, so somebody must look; here one task does, for as long as anybody listens.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.events import Event
from gateway.operations.errors import PathserveError

LOOK_S = 0.05
"""An event reaches its stream within this and two queries."""
_TROUBLED_S = 1.0
_STOPPING_S = 0.5


@dataclass(eq=False, slots=True)
class _Listener:
    analysis_id: str
    after: int
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Feed:
    """Tells streams what is new. Belongs to one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def followed(self) -> int:
        """How many streams there are now."""
        return len(self._listeners)

    async def follow(
        self, analysis_id: str, after: int, stopping: Callable[[], bool], idle_s: float
    ) -> AsyncGenerator[tuple[Event, ...]]:
        """The events after that number, in order, as they come; nothing, once in `idle_s` seconds without one.

        Ends when `stopping` says so; while the database cannot be used there is nothing to tell.
        """
        listener = _Listener(analysis_id, after)
        self._listeners.add(listener)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        listener.woken.set()
        now_s = asyncio.get_running_loop().time
        told_s = now_s()
        try:
            while not stopping():
                events: tuple[Event, ...] = ()
                if await _woken(listener.woken, _STOPPING_S):
                    listener.woken.clear()
                    events = await self._read(listener)
                if events or now_s() - told_s >= idle_s:
                    told_s = now_s()
                    yield events
        finally:
            self._listeners.discard(listener)

    async def _read(self, listener: _Listener) -> tuple[Event, ...]:
        try:
            events = await anyio.to_thread.run_sync(self._ledger.events, listener.analysis_id, listener.after)
        except PathserveError:  # it is in the log
            await asyncio.sleep(_TROUBLED_S)
            return ()
        if events:
            listener.after = events[-1].seq
        return events

    async def _look(self) -> None:
        # A thread of its own: those of the requests may all wait for the database.
        limiter = anyio.CapacityLimiter(1)
        while self._listeners:
            ids = {listener.analysis_id for listener in self._listeners}
            try:
                last = await anyio.to_thread.run_sync(self._ledger.last_events, ids, limiter=limiter)
            except PathserveError:
                await asyncio.sleep(_TROUBLED_S)
                continue
            for listener in self._listeners:
                if last.get(listener.analysis_id, 0) > listener.after:
                    listener.woken.set()
            await asyncio.sleep(LOOK_S)


async def _woken(event: asyncio.Event, within_s: float) -> bool:
    # Not `wait_for`: up to Python 3.11 it forgets a cancellation that comes together with the event, and then a stream
    # whose call has ended goes on unseen (python/cpython#86296).
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
