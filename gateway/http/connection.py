"""One connection: how long a client may take over the head of a request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""From the first byte of a request, or from the connection's begin, until its head is complete."""


class TimedProtocol(H11Protocol):
    """Closes a connection whose client sends a request's head too slowly, or none: such clients would hold all
    connections at little cost. Of an idle one between requests the server's own keep-alive time is the bound."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._forget_head()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
