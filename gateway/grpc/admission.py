"""What lies around every method: who calls, how often, the message itself, and errors as typed statuses.

Nothing of a call is parsed before its caller is known; only health is open.
"""

import asyncio
import contextvars
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from gateway.domain.principal import Principal
from gateway.grpc.errors import internal, status_of
from gateway.grpc.metrics import CALL_SECONDS, STREAMS
from gateway.grpc.threads import in_login_thread
from gateway.operations.auth import Authenticator, forwarded_address
from gateway.operations.errors import InvalidInput, PathserveError, rim_of
from gateway.operations.limits import RequestLimit

log = structlog.get_logger("gateway.grpc")

_CALLER: contextvars.ContextVar[Principal] = contextvars.ContextVar("caller")


def caller() -> Principal:
    """Who makes the call that is being answered."""
    return _CALLER.get()


class Admission(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every method, those of reflection included; the services named in `open_to_all` need no caller."""

    def __init__(
        self, authenticator: Authenticator, limit: RequestLimit, open_to_all: frozenset[str], *, proxied: bool
    ) -> None:
        """`proxied`: a proxy of ours ends TLS, and says last in X-Forwarded-For who asked it."""
        self._authenticator = authenticator
        self._limit = limit
        self._open_to_all = open_to_all
        self._proxied = proxied

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:  # there is no such method
            return None
        _, service, method = details.method.split("/")
        call = _Call(self, service, method, service in self._open_to_all, handler)
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(call.unary, None, handler.response_serializer)
        if not handler.request_streaming:
            return grpc.unary_stream_rpc_method_handler(call.stream, None, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(call.both_ways, None, handler.response_serializer)

    async def admit(self, context: Any) -> Principal:
        """The caller. Raises Unauthenticated, Forbidden, TooManyRequests, StateError."""
        # Two of them are joined as HTTP says (RFC 9110 5.3), and so are no token.
        authorization = ", ".join(_values(context, "authorization"))
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        shown = (authorization or None, None if pem is None else ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
        address = address_of(context.peer())
        if self._proxied:
            address = forwarded_address(_values(context, "x-forwarded-for")) or address
        found = self._authenticator.known(*shown, address)
        if found is None:
            found = await in_login_thread(self._authenticator.principal, *shown, address)
        self._limit.check(found.subject)
        return found


class _Call:
    """One method, wrapped: each of the three is its behaviour for one kind of method."""

    def __init__(self, admission: Admission, service: str, method: str, is_open: bool, handler: Any) -> None:
        self._admission = admission
        self._labels = (service, method)
        self._open = is_open
        self._handler = handler

    async def unary(self, raw: bytes, context: Any) -> Any:
        began = time.monotonic()
        code = "OK"
        try:
            async with self._guarded(raw, context) as request:
                return await self._handler.unary_unary(request, context)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = grpc.StatusCode(context.code()).name
            raise
        finally:
            CALL_SECONDS.labels(*self._labels, code).observe(time.monotonic() - began)

    async def stream(self, raw: bytes, context: Any) -> None:
        with self._counted():
            async with self._guarded(raw, context) as request:
                await self._handler.unary_stream(request, context)

    async def both_ways(self, raws: AsyncIterator[bytes], context: Any) -> None:
        async def requests() -> AsyncIterator[Any]:
            async for raw in raws:
                yield self._message(raw)

        with self._counted():
            async with self._guarded(None, context):
                async for answer in self._handler.stream_stream(requests(), context):
                    await context.write(answer)

    @asynccontextmanager
    async def _guarded(self, raw: bytes | None, context: Any) -> AsyncIterator[Any]:
        request = None
        try:
            if not self._open:
                _CALLER.set(await self._admission.admit(context))
            request = None if raw is None else self._message(raw)
            yield request
        except PathserveError as error:
            await self._abort(context, error, request)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            log.exception("call ended by an unexpected error", method="/".join(self._labels))
            await self._abort(context, internal(), request)

    async def _abort(self, context: Any, error: PathserveError, request: Any) -> None:
        if rim_of(error).http >= 500:
            log.error("call failed", reason=error.reason)
        status = rpc_status.to_status(status_of(error, getattr(request, "id", "")))
        await context.abort(status.code, status.details, status.trailing_metadata)

    def _message(self, raw: bytes) -> Any:
        try:
            return self._handler.request_deserializer(raw)
        except DecodeError:
            raise InvalidInput(
                "The message cannot be read as this method's request. Make it with the .proto files of this version."
            ) from None

    @contextmanager
    def _counted(self) -> Any:
        with STREAMS.labels(*self._labels).track_inprogress():
            yield


def _values(context: Any, name: str) -> list[str]:
    return [str(value) for key, value in context.invocation_metadata() if key == name]


def address_of(peer: str) -> str:
    """The host of a peer as gRPC writes it: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:…`."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
