"""A real `serve` with the stand-in worker, as tests start it."""

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

from gateway.http.serve import bind, configured
from tests.http import standin_serve
from tests.support.forked import Forked
from tests.support.http import NO_TLS

CHECKOUT = Path(__file__).resolve().parents[2]
KEY = "a-key-for-tests"


def until(met: Callable[[], Any], timeout_s: float = 40.0) -> Any:
    limit = time.monotonic() + timeout_s
    while not (found := met()):
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def wired(app: Any) -> Iterator[tuple[str, int]]:
    """The address of a server in a thread of this process."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(configured(app, None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        until(lambda: server.started)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


class Server:
    """One start of `serve` on a state folder."""

    def __init__(self, state: Path, workers: int = 1, port: int = 0, key: str | None = KEY, **environment: str) -> None:
        self.state = state
        self.stderr = state.parent / f"stderr-{time.monotonic_ns()}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PATHSERVE_")}
        clean |= {"PATHSERVE_STATE": str(state), "PATHSERVE_METRICS_PORT": "0", "PYTHONPATH": str(CHECKOUT)}
        if key is not None:
            clean["PATHSERVE_API_KEY"] = key
        self.process = Forked(
            standin_serve.main,
            [str(port), str(workers)],
            environment=clean | environment,
            folder=state.parent,
            out=self.stderr.with_name(f"{self.stderr.name}.out"),
            error=self.stderr,
        )
        self.url = until(lambda: self._said(r"serving on (https?://\S+)") or self.process.poll() is not None)
        assert isinstance(self.url, str), self.stderr.read_text()
        self.key = key or self._said(r"API key \(.*\): (\S+)")

    def _said(self, pattern: str) -> str | None:
        found = re.search(pattern + r"\n", self.stderr.read_text())
        return found.group(1) if found else None

    @property
    def metrics_url(self) -> str:
        return str(until(lambda: self._said(r"metrics on (http://\S+)")))

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} | more.pop("headers", {})
        return httpx.request(
            method, self.url + path, headers=headers, timeout=20, trust_env=False, verify=NO_TLS, **more
        )

    def order(self) -> str:
        body = {
            "protocol": "tissue-classification",
            "patient": {"id": "PID-SECRET"},
            "specimens": [{"slides": [{"study": "1.2.3"}]}],
        }
        answer = self.request("POST", "/v1/analyses", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def state_of(self, analysis_id: str) -> str:
        return str(self.request("GET", f"/v1/analyses/{analysis_id}").json()["state"])

    def calls(self, analysis_id: str) -> list[str]:
        path = self.state / "analyses" / analysis_id / "calls.log"
        return path.read_text().splitlines() if path.exists() else []

    def ready(self) -> bool:
        return self.request("GET", "/readyz").status_code == 200

    def worker(self) -> psutil.Process:
        def find() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children()
            return next((each for each in children if "standin.py" in " ".join(each.cmdline())), None)

        found: psutil.Process = until(find)
        return found

    def kill(self) -> None:
        """End it and all of its processes, whatever they do."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def terminate(self) -> float:
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(15) == 0
        return time.monotonic() - began
