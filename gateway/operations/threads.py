"""Calls in threads whose end is waited for, whatever becomes of the task that made them."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(function: Callable[[], T], cancelled: Callable[[], object] = lambda: None) -> T:
    """Run in a thread and wait for its end, however often the caller is cancelled: nothing goes on behind our back.

    `cancelled` is called each time, so that the thread can be told.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function))
    error: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as again:  # it may come again while we wait
            error = again
            cancelled()
    if error is not None:
        task.exception()  # looked at: nobody else will
        raise error
    return task.result()
