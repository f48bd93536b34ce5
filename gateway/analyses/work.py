"""What one request does in threads and in Triton: bounded, in order, and over before what it uses is closed."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from gateway.operations.threads import to_the_end

T = TypeVar("T")


class Work:
    """The calls of one request in threads. `stopped` tells them that nobody waits for them any more."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.stopped = self._stop.is_set

    async def done(self, call: Callable[[], T]) -> T:
        """The result of a call in a thread. A task that is cancelled meanwhile ends when the call has ended."""
        return await to_the_end(call, self._stop.set)


async def in_order(calls: AsyncIterator[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """The results of calls in their order, at most `at_once` of them under way. One that fails ends the others."""
    pending: deque[asyncio.Task[T]] = deque()
    results: list[T] = []
    try:
        async for call in calls:
            if len(pending) == at_once:
                try:
                    results.append(await pending.popleft())
                except BaseException:
                    call.close()
                    raise
            pending.append(asyncio.create_task(call))
        while pending:
            results.append(await pending.popleft())
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return results
