"""What may wait, for a disk or for another server, waits in threads: the event loop never does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_POOL = ThreadPoolExecutor(8, thread_name_prefix="grpc")
# Their own: logins that wait for an identity provider leave the others' alone.
_LOGINS = ThreadPoolExecutor(16, thread_name_prefix="grpc-login")


async def in_thread(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The result of a blocking call. Where the waiting task is cancelled, the call goes on to its end nevertheless."""
    return await _run(_POOL, lambda: call(*arguments, **named))


async def in_login_thread(call: Callable[..., T], *arguments: Any) -> T:
    """As `in_thread`, for what finds out who calls."""
    return await _run(_LOGINS, lambda: call(*arguments))


async def _run(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, call)
