"""A webhook's target: a real HTTP server in a process of its own, that verifies each signature and fails on demand."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.gateway import eventually
from tests.support.http import NO_TLS
from tests.support.orthanc import free_port

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMhIQ=="
OLD_SECRET = "whsec_" + "dGhlIHNlY3JldCB0aGF0IGlzIGJlaW5nIHJvdGF0ZWQh"


@dataclass
class Receiver:
    """The server as its tests see it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def fail_with(self, *answers: int | dict[str, Any]) -> None:
        """Answer the next requests so, the ones after that with 204: a status, or {"status", "headers", "sleep_s"}."""
        asked = [{"status": each} if isinstance(each, int) else each for each in answers]
        self._ask("PUT", "/answers", json=asked)

    def received(self) -> list[dict[str, Any]]:
        """Every request with a right signature: {"id", "status" that it got, "body", "headers"}, in order."""
        return list(self._ask("GET", "/received").json()["received"])

    def refused(self) -> int:
        """How many requests had no right signature."""
        return int(self._ask("GET", "/received").json()["refused"])

    def taken(self) -> Counter[str]:
        """Webhook ids that were answered 2xx, and how often: more than once only where our answer was lost."""
        return Counter(each["id"] for each in self.received() if 200 <= each["status"] < 300)

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.request(method, url, trust_env=False, verify=NO_TLS, **more).raise_for_status()


@contextmanager
def running_receiver(secret: str = SECRET) -> Iterator[Receiver]:
    """A receiver that knows one secret."""
    receiver = Receiver(free_port())
    process = subprocess.Popen([sys.executable, "-m", "tests.delivery.receiver", str(receiver.port), secret])
    try:

        def answers() -> bool:
            assert process.poll() is None
            try:
                return receiver.received() == []
            except httpx.TransportError:
                return False

        eventually(answers, "the receiver answers", 20)
        yield receiver
    finally:
        process.kill()
        process.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, secret: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.verifier = Webhook(secret)
        self.lock = threading.Lock()
        self.answers: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.refused = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            try:
                said = self.server.verifier.verify(body, headers)
            except WebhookVerificationError:
                self.server.refused += 1
                self._answer(401)
                return
            answer = self.server.answers.pop(0) if self.server.answers else {"status": 204}
            noted = {"id": headers["webhook-id"], "status": answer["status"], "body": said, "headers": headers}
            self.server.received.append(noted)
        threading.Event().wait(answer.get("sleep_s", 0))
        self._answer(answer["status"], answer.get("headers", {}))

    def do_PUT(self) -> None:
        self.server.answers = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(204)

    def do_GET(self) -> None:
        with self.server.lock:
            document = {"received": self.server.received, "refused": self.server.refused}
        self._answer(200, {"content-type": "application/json"}, json.dumps(document).encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def main(arguments: Sequence[str]) -> None:
    port, secret = arguments
    _Server(int(port), secret).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
