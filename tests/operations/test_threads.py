"""A call in a thread is waited for, whatever becomes of the task that made it."""

import asyncio
import threading
import time

import pytest

from gateway.operations.threads import to_the_end


async def test_who_is_cancelled_again_and_again_leaves_nothing_running() -> None:
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        time.sleep(0.4)
        ended.set()

    task = asyncio.create_task(to_the_end(work))
    await asyncio.to_thread(began.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
