"""HTTP over TLS: the client's certificate goes into the scope of its requests."""

import asyncio
from typing import Any

from gateway.http.access import CERTIFICATE
from gateway.http.connection import TimedProtocol


class CertifiedProtocol(TimedProtocol):
    """Adds the verified client certificate (DER), where one was shown, to the ASGI scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if certificate is None:
            return
        app = self.app

        async def with_certificate(scope: Any, receive: Any, send: Any) -> None:
            scope[CERTIFICATE] = certificate
            await app(scope, receive, send)

        self.app = with_certificate
