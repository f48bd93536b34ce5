"""Who makes a request: what it shows, brought to the authenticator without holding up the requests beside it."""

import math
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.datastructures import Headers

from gateway.domain.principal import Principal
from gateway.http.problems import ProblemResponse, problem
from gateway.operations.auth import TOKEN_PATH, Authenticator, Form, Grant, forwarded_address
from gateway.operations.errors import PathserveError, Unauthenticated

CERTIFICATE = "pathserve.certificate"
"""The ASGI scope's key of the verified client certificate (DER)."""
TOKEN_ENDPOINT = ("POST", TOKEN_PATH)
"""The one route besides health without a principal: its body says who asks."""
_THREADS = 16
_T = TypeVar("_T")


class Access:
    """Authenticates requests. `proxied`: a proxy of ours ends TLS, and says last in X-Forwarded-For who asked it."""

    def __init__(self, authenticator: Authenticator, *, proxied: bool) -> None:
        self.authenticator = authenticator
        self._proxied = proxied
        # Its own threads: logins that wait for a database or an identity provider leave the API's alone.
        self._limiter: anyio.CapacityLimiter | None = None

    async def principal(self, scope: MutableMapping[str, Any]) -> Principal:
        """Raises as `Authenticator.principal`."""
        found = Headers(scope=scope).getlist("authorization")
        # Two of them are joined as HTTP says (RFC 9110 5.3), and so are no token.
        shown = (", ".join(found) if found else None, scope.get(CERTIFICATE), self.address(scope))
        known = self.authenticator.known(*shown)
        if known is not None:
            return known
        return await self._threaded(lambda: self.authenticator.principal(*shown))

    async def grant(self, scope: MutableMapping[str, Any], form: Form) -> Grant:
        """Raises as `Authenticator.grant`."""
        address = self.address(scope)
        return await self._threaded(lambda: self.authenticator.grant(form, address))

    async def _threaded(self, work: Callable[[], _T]) -> _T:
        if self._limiter is None:  # it belongs to the running loop
            self._limiter = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    def address(self, scope: MutableMapping[str, Any]) -> str:
        """Where a request comes from, as an IP address; empty where nobody can tell."""
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        if self._proxied:
            return forwarded_address(Headers(scope=scope).getlist("x-forwarded-for")) or peer
        return peer


def refused(error: PathserveError) -> ProblemResponse:
    """The answer to a request whose principal could not be told (RFC 6750 3, RFC 9110 10.2.3)."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
    if error.retryable:
        headers["Retry-After"] = str(max(1, math.ceil(error.after_s)))
    return problem(error, headers=headers)
