"""Orders accepted per second by the real server, each on disk, against a bare FastAPI route with one INSERT.

Both are uvicorn processes on the same kind of database, asked in turn by the same client: as many connections as a busy
hospital has, kept alive, each sending the next order when the last was answered. Ours keeps an idempotency key, the
order, an event and an audit record of each. The ratio is the median of the rounds', as the machine's speed drifts.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.analyses.ledger import Ledger
from gateway.analyses.order_form import EXAMPLE
from gateway.domain.analysis import Progress, Step
from tests.benchmarks.rows import Row
from tests.support.gateway import KEY, PATHSERVE, eventually
from tests.support.orthanc import free_port
from tests.support.postgres import running_postgres

CLIENTS, ROUND_S, ROUNDS = 16, 4.0, 5
GOAL = 0.6
EVENTS = 100


def measure(work: Path) -> list[Row]:
    """Orders per second and their latency on SQLite and PostgreSQL, status reads meanwhile, the delay of events."""
    rows = _measure("SQLite", work / "sqlite", None)
    with running_postgres() as server:
        rows += _measure("PostgreSQL", work / "postgresql", server.new_database())
    return rows


def _measure(name: str, state: Path, url: str | None) -> list[Row]:
    state.mkdir(parents=True)
    url = url or f"sqlite:///{state / 'pathserve.db'}"
    with _ours(state, url) as ours, _bare(state, url) as bare:
        for server in (ours, bare):
            server.load(1.0)
        floors: list[Load] = [bare.load(ROUND_S)]
        loads: list[Load] = []
        ratios = []
        for _ in range(ROUNDS):
            loads.append(ours.load(ROUND_S, status_reads=True))
            floors.append(bare.load(ROUND_S))
            ratios.append(loads[-1].per_s / statistics.mean(each.per_s for each in floors[-2:]))
        delays_ms = _event_delays_ms(ours, Ledger.open(url, state))
    per_s = statistics.median(each.per_s for each in loads)
    floor_per_s = statistics.median(each.per_s for each in floors)
    floor = f"bare FastAPI route with one INSERT: {floor_per_s:,.0f} orders/s"
    taken_ms = [each for load in loads for each in load.taken_ms]
    read_ms = [each for load in loads for each in load.read_ms]
    return [
        Row(f"orders accepted, {name}, {CLIENTS} clients", per_s, "orders/s", floor, statistics.median(ratios), GOAL),
        Row(f"order answered, {name}: p50", _percentile(taken_ms, 50), "ms", lower_is_better=True),
        Row(f"order answered, {name}: p99", _percentile(taken_ms, 99), "ms", lower_is_better=True),
        Row(f"status read under that load, {name}: p99", _percentile(read_ms, 99), "ms", lower_is_better=True),
        Row(f"event reaches its stream, {name}: p50", _percentile(delays_ms, 50), "ms", lower_is_better=True),
        Row(f"event reaches its stream, {name}: p99", _percentile(delays_ms, 99), "ms", lower_is_better=True),
    ]


@dataclass(frozen=True)
class Load:
    """What one round came to."""

    per_s: float
    taken_ms: list[float]
    read_ms: list[float]


@dataclass(frozen=True)
class Server:
    """A server on loopback that takes orders at `path`."""

    port: int
    path: str

    def load(self, seconds: float, *, status_reads: bool = False) -> Load:
        """Send orders for so long. The client is a process of its own, so that it does not share our interpreter."""
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(self.port), self.path, str(seconds), str(int(status_reads))],
            stdout=subprocess.PIPE,
            check=True,
        )
        return Load(**json.loads(done.stdout))


@contextmanager
def _ours(state: Path, url: str) -> Iterator[Server]:
    environment = {
        "PATHSERVE_STATE": str(state),
        "PATHSERVE_DATABASE_URL": url,
        "PATHSERVE_API_KEY": KEY,
        "PATHSERVE_METRICS_PORT": "0",
        "PATHSERVE_RATE_LIMIT": "100000",
    }
    port = free_port()
    command = [str(PATHSERVE), "serve", "--workers", "0", "--port", str(port)]
    with _running(command, environment, port, state / "ours.log"):
        yield Server(port, "/v1/analyses")


@contextmanager
def _bare(state: Path, url: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.bare_route", str(port)]
    environment = {"BARE_DATABASE_URL": url, "BARE_STATE": str(state)}
    with _running(command, environment, port, state / "bare.log"):
        yield Server(port, "/orders")


@contextmanager
def _running(command: list[str], environment: dict[str, str], port: int, log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                try:
                    connection.request("GET", "/livez")
                except OSError:
                    return False
                return connection.getresponse().status == 200

        eventually(answers, "the server answers", 60)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _event_delays_ms(server: Server, ledger: Ledger) -> list[float]:
    """How long after a worker's note of progress has been committed a client has it in hand."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    analysis = json.loads(_order(connection, server.path).read())["id"]
    turn = ledger.runs.begin(f"{analysis}.1.fetch", "bench")
    assert turn is not None
    noted: list[float] = []
    came: list[float] = []

    def follow() -> None:
        connection.request("GET", f"{server.path}/{analysis}/events", headers=_HEADERS)
        for line in connection.getresponse():
            if line.startswith(b"event: progress"):
                came.append(time.perf_counter())
            if len(came) == EVENTS:
                return

    listener = threading.Thread(target=follow, daemon=True)
    listener.start()
    for done in range(1, EVENTS + 1):
        # Not in step with whoever looks for events now and then.
        time.sleep(0.05 + 0.013 * (done % 7))
        ledger.runs.progress(turn, Progress(Step.FETCH, done, EVENTS, "bytes"))
        noted.append(time.perf_counter())
        eventually(lambda so_far=done: len(came) == so_far, "the event came", 10, every_s=0.001)
    listener.join(10)
    ledger.close()
    return [(after - before) * 1000 for before, after in zip(noted, came, strict=True)]


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# The client


_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
_BODY = json.dumps(EXAMPLE)


def _order(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("POST", path, _BODY, _HEADERS | {"Idempotency-Key": str(uuid.uuid4())})
    answer = connection.getresponse()
    assert answer.status == 202, (answer.status, answer.read())
    return answer


def _client(port: int, path: str, seconds: float, status_reads: bool) -> dict[str, Any]:
    until = time.perf_counter() + seconds
    taken_ms: list[float] = []
    read_ms: list[float] = []
    last: list[str] = []

    def send(connection: http.client.HTTPConnection) -> None:
        began = time.perf_counter()
        answer = _order(connection, path).read()
        taken_ms.append((time.perf_counter() - began) * 1000)
        last[:] = [json.loads(answer)["id"]]

    def read(connection: http.client.HTTPConnection) -> None:
        if not last:
            time.sleep(0.01)
            return
        began = time.perf_counter()
        connection.request("GET", f"{path}/{last[0]}", headers=_HEADERS)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        read_ms.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)

    def repeat(what: Callable[[http.client.HTTPConnection], None]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.perf_counter() < until:
            what(connection)

    jobs = [send] * CLIENTS + [read] * status_reads
    threads = [threading.Thread(target=repeat, args=(job,)) for job in jobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_s": len(taken_ms) / (time.perf_counter() - began), "taken_ms": taken_ms, "read_ms": read_ms}


if __name__ == "__main__":
    print(json.dumps(_client(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] == "1")))
