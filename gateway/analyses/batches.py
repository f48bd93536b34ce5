"""Tiles from the slide to Triton and the answers to disk, with both kept busy and little of it in memory."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gateway.analyses.work import Work
from gateway.inference import Contract
from gateway.operations.errors import Cancelled
from gateway.operations.threads import to_the_end
from gateway.slides import TileBatch
from gateway.slides.window_stream import WindowBatch

REQUEST_TILES = 32
"""Tiles in one request to Triton."""

REQUEST_WINDOWS = 4
"""Windows in one request to the models of masks, at the most. Between image encoder and decoder a window takes 5.5 MB:
moving eight or sixteen at once costs the server up to as much again as the engines, four hardly anything."""

IN_FLIGHT = 2
"""Requests in flight: one for each instance of the engine on two cores. Together they are the durable batch of
`REQUEST_TILES * IN_FLIGHT` tiles, the most that is computed again after a kill."""

_DECODED = 64
"""Masks in one request at the most: windows × prompts."""

A = TypeVar("A")
Kept = TypeVar("Kept", contravariant=True)


def windows_a_request(*contracts: Contract, prompts: int) -> int:
    """How many windows are asked at once of models of masks, each window of so many prompts."""
    return max(1, min(REQUEST_WINDOWS, _DECODED // prompts, *(each.max_batch_size for each in contracts)))


class Store(Protocol[Kept]):
    """Where answers are kept: complete up to the plan's picture `done`. `missing`: (row, column) of the frames that
    were missing under the pictures, and under none before."""

    @property
    def done(self) -> int: ...

    def append(self, answer: Kept, missing: Sequence[tuple[int, int]], /) -> None: ...


async def run_batches(
    batches: Iterator[TileBatch | WindowBatch],
    infer: Callable[[npt.NDArray[np.uint8]], Coroutine[Any, Any, A]],
    store: Store[A],
    *,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
    in_flight: int = IN_FLIGHT,
) -> None:
    """Send every batch through `infer` and append the answers to `store` in order.

    The next batch is decoded while the last ones are computed. An answer that comes early waits for its predecessor,
    so the store is always a prefix of the plan. Raises what `infer` and the iterator raise, and Cancelled.
    """
    pending: deque[tuple[TileBatch | WindowBatch, asyncio.Task[A]]] = deque()
    work = Work()  # no thread may be left with the store

    async def settle() -> None:
        batch, computed = pending[0]
        answer = await computed
        await work.done(lambda: store.append(answer, batch.missing))
        pending.popleft()
        progress(store.done)

    def read() -> asyncio.Task[Any]:
        return asyncio.create_task(to_the_end(lambda: next(batches, None)))  # nor with the iterator

    following = read()
    try:
        while (batch := await following) is not None:
            if cancelled():
                raise Cancelled("The analysis was cancelled.")
            following = read()
            if len(pending) == in_flight:
                await settle()
            pending.append((batch, asyncio.create_task(infer(batch.images_BHWC))))
        while pending:
            await settle()
    finally:
        answers = [answer for _, answer in pending]
        for answer in answers:
            answer.cancel()
        try:
            await asyncio.gather(*answers, following, return_exceptions=True)
        finally:  # it may be cancelled once more while it waits
            close = getattr(batches, "close", None)
            if close is not None:
                close()
