"""A token server (OAuth 2.0 client credentials) and the check of its tokens, as a real HTTP server."""

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

CLIENT, SECRET = "pathserve at site 1", "s:ecret/+%"


@dataclass
class TokenServer:
    """What it issues. `answer`, where set, is what it says instead: status, content type, body."""

    lifetime_s: float | None = 3600.0
    answer: tuple[int, str, bytes] | None = None
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    checked: int = 0
    port: int = 0
    _good: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    @property
    def check_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/check"

    def revoke(self) -> None:
        """All tokens issued so far become bad, before their time."""
        with self._lock:
            self._good.clear()

    def issue(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        with self._lock:
            self.asked.append(form)
            if (unquote(user), unquote(password)) != (CLIENT, SECRET):
                return 401, {"error": "invalid_client", "error_description": "<b>no</b>"}
            if form.get("grant_type") != ["client_credentials"]:
                return 400, {"error": "unsupported_grant_type"}
            token = secrets.token_urlsafe(16)
            self._good[token] = time.monotonic() + (self.lifetime_s or 3600.0)
            granted: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
            return 200, granted if self.lifetime_s is None else {**granted, "expires_in": self.lifetime_s}

    def is_good(self, authorization: str) -> bool:
        with self._lock:
            self.checked += 1
            return self._good.get(authorization.removeprefix("Bearer "), 0.0) > time.monotonic()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        tokens = self.server.tokens
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
        if tokens.answer is not None:
            tokens.asked.append(form)
            self._say(*tokens.answer)
            return
        status, body = tokens.issue(self.headers.get("Authorization", ""), form)
        self._say(status, "application/json", json.dumps(body).encode())

    def do_GET(self) -> None:
        good = self.server.tokens.is_good(self.headers.get("Authorization", ""))
        self._say(204 if good else 401, "", b"")

    def _say(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tokens: TokenServer


@contextmanager
def running_tokens(tokens: TokenServer) -> Iterator[TokenServer]:
    """The server, on a free loopback port, until the block ends."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.tokens = tokens
        tokens.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield tokens
        finally:
            server.shutdown()
            thread.join()
