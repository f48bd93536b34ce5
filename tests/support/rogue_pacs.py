"""A DICOMweb server that lists one slide instance rightly and misbehaves where a test tells it to."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STUDY, SERIES, SOP = "2.25.1001", "2.25.1002", "2.25.1003"
BOUNDARY = "edge-of-a-part"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


class Request(BaseHTTPRequestHandler):
    """One request; an answer writes what it likes to it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        self._dispatch()

    def do_POST(self) -> None:
        self._dispatch()

    def _dispatch(self) -> None:
        pacs = self.server.pacs
        pacs.requests.append((self.command, self.path, dict(self.headers.items())))
        path = self.path.partition("?")[0]
        self.close_connection = True
        try:
            if self.command == "POST":
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                pacs.store(self)
            elif path.endswith("/series") or path.endswith("/studies"):
                pacs.list_series(self)
            elif path.endswith("/instances"):
                pacs.list_instances(self)
            else:
                pacs.retrieve(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as several tests want it to

    def answer(self, status: int, content_type: str, body: bytes, *, length: int | None = None, **headers: str) -> None:
        """Send one answer; `length` overrides what Content-Length says."""
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Answer = Callable[[Request], None]


def dicom_json(*matches: dict[str, list[Any]]) -> Answer:
    """An answer of matches, each tag with its values."""
    body = json.dumps([{tag: {"vr": "UI", "Value": found} for tag, found in match.items()} for match in matches])
    return lambda request: request.answer(200, "application/dicom+json", body.encode())


def once_listed(answer: Answer) -> Answer:
    """The answer for the first page, an empty page for later ones."""

    def paged(request: Request) -> None:
        if "offset=0" in request.path or "offset" not in request.path:
            answer(request)
        else:
            dicom_json()(request)

    return paged


def multipart(body: bytes, *, end: bytes = f"\r\n--{BOUNDARY}--\r\n".encode(), headers: bytes = b"") -> bytes:
    """A multipart body of one part."""
    return f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n".encode() + headers + b"\r\n" + body + end


@dataclass
class RoguePacs:
    """What the server answers to each kind of request, and what it was asked."""

    retrieve: Answer = lambda request: request.answer(404, "", b"")
    list_series: Answer = field(
        default_factory=lambda: once_listed(dicom_json({"0020000E": [SERIES], "00080060": ["SM"], "00201209": [1]}))
    )
    list_instances: Answer = field(
        default_factory=lambda: once_listed(dicom_json({"00080018": [SOP], "00080060": ["SM"]}))
    )
    store: Answer = lambda request: request.answer(200, "application/dicom+json", b"{}")
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"dicomweb://pacs:secret@127.0.0.1:{self.port}/dicom-web"

    def asked(self, part: str) -> int:
        """How many requests named this in their path."""
        return sum(part in path for _, path, _ in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pacs: RoguePacs


@contextmanager
def running(pacs: RoguePacs, tls: ssl.SSLContext | None = None) -> Iterator[RoguePacs]:
    """The server, on a free loopback port, until the block ends."""
    with _Server(("127.0.0.1", 0), Request) as server:
        server.pacs = pacs
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        pacs.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield pacs
        finally:
            server.shutdown()
            thread.join()
