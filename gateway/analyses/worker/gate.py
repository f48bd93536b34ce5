"""Who may be at work in this process: an analysis in progress at a death of its worker runs with nothing beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LOOK_S = 0.05


class Gate:
    """Lets any number in, or one that is alone. Of one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._waiting = 0
        self._closed = False

    @asynccontextmanager
    async def entered(self, alone: bool) -> AsyncIterator[None]:
        """Wait for the turn to come. Who is alone goes before those who come after it, or it would wait for ever."""
        if alone:
            self._waiting += 1
            try:
                while self._inside:
                    await asyncio.sleep(_LOOK_S)
                self._closed = True
            finally:
                self._waiting -= 1
        else:
            while self._closed or self._waiting:
                await asyncio.sleep(_LOOK_S)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if alone:
                self._closed = False
