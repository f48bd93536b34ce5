"""The ledger and the files are read and written in threads, so that the event loop never waits for a disk."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_LIMIT = 8
_POOL = ThreadPoolExecutor(_LIMIT, thread_name_prefix="grpc")


async def in_thread(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The result of a blocking call. Where the waiting task is cancelled, the call goes on to its end nevertheless."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_POOL, lambda: context.run(call, *arguments, **named))
