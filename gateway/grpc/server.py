"""The gRPC server: its own thread and event loop beside the REST API's, so that neither waits for the other."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import grpc
import structlog
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from gateway.analyses.service import Service
from gateway.grpc.admission import Admission
from gateway.grpc.analyses import Analyses
from gateway.grpc.catalogue import Catalogue
from gateway.grpc.follow import Followers
from gateway.grpc.health import Health
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2, catalog_service_pb2
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import add_AnalysisServiceServicer_to_server
from gateway.grpc.proto.pathserve.v1.catalog_service_pb2_grpc import add_CatalogServiceServicer_to_server
from gateway.operations.auth import Authenticator, server_context
from gateway.operations.errors import InvalidSetting
from gateway.operations.limits import RequestLimit
from gateway.operations.settings import Settings

log = structlog.get_logger("gateway.grpc")

SERVICES = frozenset(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((analysis_service_pb2, "AnalysisService"), (catalog_service_pb2, "CatalogService"))
)
HEALTH = "grpc.health.v1.Health"

MAX_MESSAGE_BYTES = 1_000_000
"""Of a request; as of a body of the REST API."""
STREAMS_S = 3.0
"""How long open calls have to end at a shutdown."""
SETTLE_S = 1.0
"""How long what they leave behind has."""
_START_S = 10.0
_MOST_CALLS = 1000
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 250),
    # A client that pings more often than every 10 s is sent away; a connection that no longer answers is noticed.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    # Without this a second server takes half of the calls at the same port.
    ("grpc.so_reuseport", 0),
]


@contextlib.contextmanager
def open_grpc(
    settings: Settings,
    host: str,
    service: Service,
    authenticator: Authenticator,
    limit: RequestLimit,
    ready: Callable[[], bool],
) -> Iterator[int]:
    """Serve at `host` and PATHSERVE_GRPC_PORT until the block ends; gives the port. Ends within five seconds.

    `ready`: whether an order would be worked on now; it may block. Raises InvalidSetting where the address or the
    certificates cannot be used.
    """
    server = _Server(settings, host, service, authenticator, limit, ready)
    server.start()
    try:
        print(f"pathserve: gRPC on {host}:{server.port}", file=sys.stderr, flush=True)
        yield server.port
    finally:
        server.stop()


class _Server:
    def __init__(
        self,
        settings: Settings,
        host: str,
        service: Service,
        authenticator: Authenticator,
        limit: RequestLimit,
        ready: Callable[[], bool],
    ) -> None:
        self.port = 0
        self._settings = settings
        self._host = f"[{host}]" if ":" in host else host
        self._service = service
        self._admission = Admission(authenticator, limit, frozenset({HEALTH}), proxied=settings.tls_elsewhere)
        self._ready = ready
        self._credentials = _credentials(settings)
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._began = threading.Event()
        self._trouble: BaseException | None = None

    def start(self) -> None:
        self._thread.start()
        if not self._began.wait(_START_S):
            raise InvalidSetting("The gRPC server does not start; see the log.")
        if self._trouble is not None:
            raise self._trouble

    def stop(self) -> None:
        if self._loop is not None and self._over is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._trouble = error
            if self._began.is_set():
                log.exception("the gRPC server ended by an unexpected error")
        finally:
            self._began.set()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        followers = Followers(self._service)
        health = Health(SERVICES, self._ready)
        server = grpc.aio.server(interceptors=[self._admission], options=_OPTIONS, maximum_concurrent_rpcs=_MOST_CALLS)
        add_AnalysisServiceServicer_to_server(Analyses(self._service, followers), server)  # type: ignore[no-untyped-call]
        add_CatalogServiceServicer_to_server(Catalogue(self._service), server)  # type: ignore[no-untyped-call]
        add_HealthServicer_to_server(health, server)
        reflection.enable_server_reflection([*SERVICES, HEALTH, reflection.SERVICE_NAME], server)
        self.port = self._bind(server)
        await server.start()
        looking = asyncio.create_task(health.look())
        self._began.set()
        await self._over.wait()
        looking.cancel()
        followers.stopping.set()
        await health.leave()
        await server.stop(STREAMS_S)
        await followers.settle(SETTLE_S)

    def _bind(self, server: grpc.aio.Server) -> int:
        address = f"{self._host}:{self._settings.grpc_port}"
        try:
            if self._credentials is None:
                return int(server.add_insecure_port(address))
            return int(server.add_secure_port(address, self._credentials))
        except RuntimeError:
            raise InvalidSetting(
                f"gRPC cannot be served at {self._host} port {self._settings.grpc_port}; another program may hold it. "
                "Choose another PATHSERVE_GRPC_PORT."
            ) from None


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS by the same files as REST; None without. Raises InvalidSetting.

    With authorities of client certificates every client needs one: gRPC for Python knows no certificate that is asked
    for but not needed.
    """
    if server_context(settings) is None or settings.tls_certificate is None:  # and says what is wrong with the files
        return None
    certificate, key = settings.tls_certificate, settings.tls_key or settings.tls_certificate
    authorities = settings.tls_client_authorities
    roots = None if authorities is None else authorities.read_bytes()
    pair = (key.read_bytes(), certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
