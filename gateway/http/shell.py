"""What lies around the API, as plain ASGI: metrics, security headers, authentication, the limit of a body's size.

Nothing inside is reached without the key, paths that do not exist included; only health is open.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import MutableHeaders

from gateway.http.access import TOKEN_ENDPOINT, Access, refused
from gateway.http.problems import internal_problem, problem
from gateway.operations.errors import BodyTooLarge, BodyTooSlow, PathserveError, TooManyRequests
from gateway.operations.limits import RequestLimit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger("gateway.http")

OPEN_PATHS = frozenset({"/livez", "/readyz"})
MAX_BODY_BYTES = 1_000_000
BODY_S = 30.0
"""In which a body has arrived."""
_DRAIN_BYTES = 64_000_000
_ALLOWANCE = "pathserve.allowance"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

REGISTRY = CollectorRegistry()
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time of a request until its answer was sent",
    ["route", "method", "code"],
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60),
)


REQUESTS_LIMITED = Counter(
    "http_requests_limited", "Requests refused because their caller made too many", registry=REGISTRY
)


class Shell:
    """Wraps the API; `access` says who asks, `limit` how often each may. The principal is in the scope's state for what
    lies inside."""

    def __init__(self, app: App, access: Access, limit: RequestLimit) -> None:
        self._app = app
        self._access = access
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        status = 0
        stream = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                stream = headers.get("content-type", "").startswith("text/event-stream")
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                for name, value in scope.get(_ALLOWANCE, ()):
                    headers[name] = value
            await send(message)

        try:
            await self._admitted(scope, receive, send_with_headers)
        except Exception:
            log.exception("request ended by an unexpected error")
            if status == 0:
                await internal_problem()(scope, receive, send_with_headers)
        finally:
            # A stream lasts as long as its analysis: its time says nothing about the server.
            if not stream:
                route = getattr(scope.get("route"), "path", "unmatched")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                REQUEST_SECONDS.labels(route, method, str(status)).observe(time.monotonic() - began)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS and (scope["method"], scope["path"]) != TOKEN_ENDPOINT:
            try:
                await self._identify(scope)
            except PathserveError as refusal:
                await refused(refusal)(scope, receive, send)
                return
        try:
            body = await _read_body(receive)
        except PathserveError as refusal:
            await problem(refusal, headers={"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _identify(self, scope: Scope) -> None:
        """Put who asks into the scope's state. Raises as `Access.principal`, and TooManyRequests."""
        principal = await self._access.principal(scope)
        limit, left = self._limit.per_s, 0
        try:
            left = self._limit.check(principal.subject)
        except TooManyRequests:
            REQUESTS_LIMITED.inc()
            raise
        finally:
            # draft-ietf-httpapi-ratelimit-headers
            scope[_ALLOWANCE] = (
                ("RateLimit-Policy", f'"caller";q={limit};w=1'),
                ("RateLimit", f'"caller";r={left};t=1'),
            )
        scope.setdefault("state", {})["principal"] = principal


async def _read_body(receive: Receive) -> bytes:
    """The whole body. Raises BodyTooLarge, BodyTooSlow.

    What is too large is read on and thrown away up to a bound: a client that is still sending does not see the answer.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    parts.append(part)
                else:
                    parts.clear()
                if not message.get("more_body", False) or size > _DRAIN_BYTES:
                    break
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {BODY_S:.0f} s. Send it again, faster.") from None
    if size > MAX_BODY_BYTES:
        raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES:,} bytes. Send a smaller one.")
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
