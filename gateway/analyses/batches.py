"""Tiles from the slide to Triton and the answers to disk, with both kept busy and little of it in memory."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gateway.operations.errors import Cancelled
from gateway.slides import TileBatch
from gateway.slides.window_stream import WindowBatch

REQUEST_TILES = 32
"""Tiles in one request to Triton."""

IN_FLIGHT = 2
"""Requests in flight: one for each instance of the engine on two cores. Together they are the durable batch of
`REQUEST_TILES * IN_FLIGHT` tiles, the most that is computed again after a kill."""

A = TypeVar("A")
Kept = TypeVar("Kept", contravariant=True)


class Store(Protocol[Kept]):
    """Where answers are kept: complete up to the plan's picture `done`."""

    @property
    def done(self) -> int: ...

    def append(self, answer: Kept, missing: int, /) -> None: ...


async def run_batches(
    batches: Iterator[TileBatch | WindowBatch],
    infer: Callable[[npt.NDArray[np.uint8]], Coroutine[Any, Any, A]],
    store: Store[A],
    *,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Send every batch through `infer` and append the answers to `store` in order.

    The next batch is decoded while the last ones are computed. An answer that comes early waits for its predecessor,
    so the store is always a prefix of the plan. Raises what `infer` and the iterator raise, and Cancelled.
    """
    pending: deque[tuple[TileBatch | WindowBatch, asyncio.Task[A]]] = deque()

    async def settle() -> None:
        batch, answer = pending[0]
        await asyncio.to_thread(store.append, await answer, batch.frames_missing)
        pending.popleft()
        progress(store.done)

    following: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(next, batches, None))
    try:
        while (batch := await following) is not None:
            if cancelled():
                raise Cancelled("The analysis was cancelled.")
            following = asyncio.create_task(asyncio.to_thread(next, batches, None))
            if len(pending) == IN_FLIGHT:
                await settle()
            pending.append((batch, asyncio.create_task(infer(batch.images_BHWC))))
        while pending:
            await settle()
    finally:
        answers = [answer for _, answer in pending]
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, following, return_exceptions=True)  # the iterator must not be left running
        close = getattr(batches, "close", None)
        if close is not None:
            close()
