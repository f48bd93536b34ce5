"""`grpc.health.v1`: open to everybody, follows readiness, says nothing but SERVING and NOT_SERVING.

Not the library's servicer: there, the first of several watchers that leaves takes the others' notices away.
"""

# Methods have the names of the .proto.
# ruff: noqa: N802

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2_grpc import HealthServicer  # type: ignore[import-untyped]

from gateway.grpc.threads import in_thread
from gateway.operations.errors import PathserveError

_LOOK_S = 1.0
_MOST_WATCHERS = 100


class Health(HealthServicer):  # type: ignore[misc]
    """The same for each of the services, and for the server (the empty name)."""

    def __init__(self, services: frozenset[str], ready: Callable[[], bool]) -> None:
        """`ready` is asked every second; it may block, and raise an error of our tree."""
        self._services = services | {""}
        self._ready = ready
        self._serving = False
        self._changed = asyncio.Condition()
        self._watchers = 0

    async def look(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            try:
                serving = await in_thread(self._ready)
            except PathserveError:  # the database cannot be used; it is in the log
                serving = False
            await self._set(serving)
            await asyncio.sleep(_LOOK_S)

    async def leave(self) -> None:
        """From now on it does not serve; `look` has to be cancelled before."""
        await self._set(False)

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no service of this name.")
        return self._answer(request.service)

    async def Watch(self, request: Any, context: Any) -> None:
        if self._watchers >= _MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch already. Use Check.")
        self._watchers += 1
        try:
            while True:
                answer = self._answer(request.service)
                await context.write(answer)
                async with self._changed:
                    await self._changed.wait_for(lambda: self._answer(request.service) != answer)  # noqa: B023
        finally:
            self._watchers -= 1

    def _answer(self, service: str) -> Any:
        if service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        status = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    async def _set(self, serving: bool) -> None:
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()
