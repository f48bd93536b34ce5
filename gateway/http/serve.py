"""`pathserve serve`: the API in this process, one worker beside it, metrics on their own port."""

import contextlib
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest

from gateway.analyses.ledger import Ledger
from gateway.analyses.service import Service
from gateway.http.app import create_app
from gateway.http.context import Context
from gateway.http.ledger_metrics import LedgerCollector
from gateway.http.shell import REGISTRY
from gateway.http.supervisor import Supervisor
from gateway.http.tls import CertifiedProtocol
from gateway.operations.audit import AuditLife
from gateway.operations.auth import LOGINS_REFUSED, Authenticator, load_api_key, server_context
from gateway.operations.errors import InvalidSetting
from gateway.operations.limits import RequestLimit
from gateway.operations.logging import configure_logging
from gateway.operations.metrics import MetricsListener, WorkerMetrics
from gateway.operations.outbound import is_loopback
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state

log = structlog.get_logger("gateway.http.serve")

_BACKLOG = 2048
STREAMS_S = 3
"""How long open connections (event streams above all) have to end at a shutdown."""


def worker_command() -> list[str]:
    """The worker that `serve` brings: it ends when this process is gone."""
    return [sys.executable, "-m", "gateway.analyses.worker", str(os.getpid())]


@dataclass(frozen=True, slots=True)
class Door:
    """A further door to the use-cases.

    `open` keeps it open as long as its block, and gives its port; it takes the settings, the host, the use-cases, who
    may come in and how often, and whether the server is ready. `metrics` are shown beside those of the API.
    """

    open: Callable[
        [Settings, str, Service, Authenticator, RequestLimit, Callable[[], bool]], AbstractContextManager[int]
    ]
    metrics: CollectorRegistry


def serve(host: str, port: int, workers: int, command: Sequence[str] | None = None, doors: Sequence[Door] = ()) -> int:
    """Serve until SIGTERM or SIGINT. Port 0 takes any free one. Returns the exit status.

    `doors` are opened before the API answers, and closed after it.

    Raises InvalidSetting where the address cannot be bound, or may not be without TLS; StateError, DiskFull.
    """
    settings = load_settings()
    prepare_state(settings)
    configure_logging("serve", settings.log_level, settings.state / "logs")
    # Ours from the first moment: a signal during the start counts, and the server, which restores these handlers at
    # its end and sends itself the signal again, finds them.
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    tls = server_context(settings)
    if tls is None and not settings.tls_elsewhere and not is_loopback(host):
        raise InvalidSetting(
            f"On {host} keys and patients' data would travel in the clear: set PATHSERVE_TLS_CERTIFICATE, or "
            "PATHSERVE_TLS_ELSEWHERE where a proxy before this server ends TLS, or serve on 127.0.0.1."
        )
    # Before the key is made: one that nobody has been shown would lock everybody out.
    listener = bind(host, port)
    address = f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}"
    address += f":{listener.getsockname()[1]}"
    settings = settings.model_copy(update={"public_url": settings.public_url or address})
    ledger = Ledger.open(settings.ledger_url, settings.state, settings.webhooks)
    key, fresh = load_api_key(settings.api_key, settings.state)
    if fresh is not None:
        print(f"pathserve: API key (shown once, keep it): {fresh}", file=sys.stderr, flush=True)
    REGISTRY.register(LedgerCollector(ledger))
    REGISTRY.register(LOGINS_REFUSED)
    worker_metrics = WorkerMetrics()
    registries = (REGISTRY, *(door.metrics for door in doors), worker_metrics.registry)
    metrics = MetricsListener(settings.metrics_port, *registries)
    supervisor = Supervisor(command or worker_command(), worker_metrics.environment(), workers) if workers else None
    app, context = create_app(settings, ledger, key, lambda: b"".join(map(generate_latest, registries)))
    server = _Server(configured(app, tls), supervisor, context, ended)
    # Who reads the next line and comes at once is kept waiting for a moment, not refused.
    listener.listen(_BACKLOG)
    print(f"pathserve: serving on {address}", file=sys.stderr)
    if metrics.port is not None:
        print(f"pathserve: metrics on http://127.0.0.1:{metrics.port}/metrics", file=sys.stderr, flush=True)
    try:
        if supervisor is not None:
            supervisor.start()
        with AuditLife(ledger.trail, settings.state, "server"), contextlib.ExitStack() as opened:
            for door in doors:
                opened.enter_context(
                    door.open(
                        settings, host, context.service, context.access.authenticator, context.limit, context.ready
                    )
                )
            server.run(sockets=[listener])
    finally:
        if supervisor is not None:
            supervisor.terminate()
            supervisor.join()
        context.service.close()
        metrics.close()
        worker_metrics.close()
        ledger.close()
    return 0


class _Server(uvicorn.Server):
    """Tells the worker and the streams of a shutdown in the moment of the signal, so that all end side by side."""

    def __init__(
        self,
        config: uvicorn.Config,
        supervisor: Supervisor | None,
        context: Context,
        ended: threading.Event,
    ) -> None:
        super().__init__(config)
        self._supervisor = supervisor
        self._context = context
        self._ended = ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ended.is_set():
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._context.stopping.set()
        self._context.service.stop()
        if self._supervisor is not None:
            self._supervisor.terminate()
        super().handle_exit(sig, frame)


def configured(app: object, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=CertifiedProtocol,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STREAMS_S,
        h11_max_incomplete_event_size=64_000,
    )


def bind(host: str, port: int) -> socket.socket:
    with contextlib.suppress(OSError):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer on a kept connection
        # waits 40 ms for the client's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.set_inheritable(False)
        except OSError:
            listener.close()
            raise
        return listener
    raise InvalidSetting(f"The address {host} port {port} cannot be used; another program may hold it. Choose another.")
