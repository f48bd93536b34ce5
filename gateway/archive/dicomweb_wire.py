"""HTTP with one server in bounded time: connecting, TLS, sending, and waiting for an answer each have their limit."""

import logging
import math
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

# httpx logs every URL at INFO, and our URLs hold UIDs, which lead to a patient; httpcore logs headers at DEBUG.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_CONNECTIONS = 8
_WATCH_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much we wait for; seconds and bytes.

    `connect_s` is for TCP, and again for TLS; `read_s` for the whole head of an answer, and for a silence within its
    body; `write_s` for what is sent, beyond the time that it takes at `slowest_bytes_s`, which holds for both ways.
    """

    connect_s: float = 5.0
    read_s: float = 30.0
    write_s: float = 30.0
    answer_bytes: int = 32 * 2**20
    instance_bytes: int = 64 * 2**30
    slowest_bytes_s: float = 1024.0
    attempts: int = 3
    backoff_s: float = 0.5
    retry_after_s: float = 10.0
    instances: int = 20_000
    series: int = 200
    visible_s: float = 15.0


def never() -> bool:
    """The `cancelled` of an operation that nobody cancels."""
    return False


class Wire:
    """A pool of connections; close it (context manager) when the conversation is over. Thread-safe.

    What is sent goes to the named server only: redirects are not followed, proxies and netrc of the environment are not
    used. Nothing is asked for compressed: gzip of JPEG costs ten times the time of the transfer.
    """

    def __init__(self, limits: Limits, tls: ssl.SSLContext, cancelled: Callable[[], bool] = never) -> None:
        """`cancelled` is asked some times a second while an answer is waited for, or read."""
        self._limits = limits
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._client = httpx.Client(
            headers={"Accept-Encoding": "identity", "User-Agent": "pathserve"},
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            follow_redirects=False,
            trust_env=False,
            verify=tls,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @contextmanager
    def answer(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        params: Sequence[tuple[str, str]] = (),
        content: Iterable[bytes] | None = None,
        content_bytes: int = 0,
        patience: float = 1.0,
    ) -> Iterator[httpx.Response]:
        """One answer, its body unread; `patience` times `read_s` is waited for it.

        Raises httpx.HTTPError, httpx.StreamError, httpx.InvalidURL.
        """
        read_s = self._limits.read_s * patience
        sending_s = self._limits.write_s + content_bytes / self._limits.slowest_bytes_s

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
                with self._lock:
                    self._sockets.add(info["return_value"].get_extra_info("socket"))
            elif event == "http11.send_request_headers.started" and content is not None:
                watch.begin(sending_s)
            elif event == "http11.receive_response_headers.started":
                watch.begin(read_s)

        with _Watch(self._cut, self._cancelled) as watch:
            try:
                with self._client.stream(
                    method,
                    url,
                    headers=dict(headers),
                    params=list(params) or None,
                    content=content,
                    timeout=httpx.Timeout(read_s, connect=self._limits.connect_s, write=self._limits.write_s),
                    extensions={"trace": trace},
                ) as response:
                    watch.begin(math.inf)
                    yield response
            except httpx.TransportError as error:
                if watch.expired:
                    raise httpx.ReadTimeout("the server took too long") from error
                raise

    def _cut(self) -> None:
        """Cut all connections: which of them serves a request is not told."""
        with self._lock:
            for connection in list(self._sockets):
                with suppress(OSError):  # closed already
                    # The base class's: that of a TLS socket would take its state from the thread that reads.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Watch:
    """Cuts when a phase takes too long, or when nobody wants the answer any more. Context manager: one request.

    The client's own timeouts begin anew with every byte, so that a server that sends a byte now and then would hold us
    for ever; and they know of no cancellation.
    """

    def __init__(self, cut: Callable[[], None], cancelled: Callable[[], bool]) -> None:
        self.expired = False
        self._cut = cut
        self._cancelled = cancelled
        self._until = math.inf
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacs-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def begin(self, seconds: float) -> None:
        """A new phase, in place of the one before."""
        self._until = time.monotonic() + seconds

    def _run(self) -> None:
        while not self._over.wait(_WATCH_S):
            if time.monotonic() > self._until or self._cancelled():
                self.expired = True
                self._cut()
                return
