"""`/metrics` on its own loopback port: this process's registry, and what the worker processes left in their folder."""

import os
import re
import shutil
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import structlog
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

log = structlog.get_logger("gateway.operations.metrics")

WORKER_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FOLDER = "pathserve-metrics-"


class MetricsListener:
    """Serves `GET /metrics` of the given registries; a taken port is a warning, never the end of the process."""

    def __init__(self, port: int, *registries: CollectorRegistry) -> None:
        self.port: int | None = None
        self._server: ThreadingHTTPServer | None = None
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(registries))
        except OSError:
            log.warning("metrics port is taken; going on without /metrics", port=port)
            return
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("metrics are served on 127.0.0.1", port=self.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class WorkerMetrics:
    """A folder outside the state in which worker processes keep their metrics, so that they outlive a restart."""

    def __init__(self) -> None:
        _clear_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(self.registry, path=str(self.folder))  # type: ignore[no-untyped-call]

    def environment(self) -> dict[str, str]:
        """The environment of a worker process that keeps its metrics here."""
        return os.environ | {WORKER_FOLDER_VARIABLE: str(self.folder)}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear_abandoned() -> None:
    """Remove the folders of servers of this user that a kill kept from removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        owner = re.match(rf"{_FOLDER}(\d+)-", folder.name)
        if owner is not None and not psutil.pid_exists(int(owner[1])) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _handler(registries: tuple[CollectorRegistry, ...]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = b"".join(generate_latest(registry) for registry in registries)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
