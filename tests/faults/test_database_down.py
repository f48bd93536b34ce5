"""The database goes away in the midst of orders: they are told when to come again, and nothing accepted is lost.

A real gateway with two workers, whose cases are stand-ins, on a real PostgreSQL. PATHSERVE_TEST_DOWN_S: for how long.
"""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.analyses.ledger import Ledger
from tests.support.gateway import FINAL, KEY, eventually
from tests.support.orthanc import free_port
from tests.support.postgres import Postgres, running_postgres

SERVE = Path(__file__).parents[1] / "http" / "standin_serve.py"
DOWN_S = float(os.environ.get("PATHSERVE_TEST_DOWN_S", "8"))
ANSWER_S = 15.0
"""The longest that anything may be answered in, whatever the database does."""


@dataclass
class Lis:
    """Places orders and, as a LIS does, each again and again with its key until it is accepted."""

    client: httpx.Client
    stop: threading.Event = field(default_factory=threading.Event)
    accepted: dict[str, str] = field(default_factory=dict)
    refused: list[httpx.Response] = field(default_factory=list)
    slowest_s: float = 0.0
    doubts: list[str] = field(default_factory=list)

    def place(self) -> None:
        while not self.stop.is_set():
            key = uuid.uuid4().hex
            while not self._placed(key) and not self.stop.wait(0.2):
                pass
            self.stop.wait(0.5)

    def _placed(self, key: str) -> bool:
        body = {
            "protocol": "tissue-classification",
            "patient": {"id": "P-1"},
            "accession": "A-1",
            "specimens": [{"container": "C-1", "slides": [{"study": "1.2.3"}]}],
        }
        began = time.monotonic()
        try:
            answer = self.client.post("/v1/analyses", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError as error:
            self.doubts.append(repr(error))
            return False
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if answer.status_code == 202:
            self.accepted[key] = answer.json()["id"]
            return True
        self.refused.append(answer)
        return False


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def url(database: Postgres) -> str:
    return database.new_database()


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a running gateway with two workers."""
    folder = tmp_path_factory.mktemp("gateway")
    port = free_port()
    environment = {
        "PATHSERVE_STATE": str(folder / "state"),
        "PATHSERVE_DATABASE_URL": url,
        "PATHSERVE_API_KEY": KEY,
        "PATHSERVE_METRICS_PORT": "0",
        "PATHSERVE_INFER_LIMIT": "4",
        "STANDIN_OPTIONS": '{"batches": "5", "batch_s": "0.1"}',
    }
    log = folder / "log"
    with log.open("wb") as out:
        gateway = subprocess.Popen(
            [sys.executable, SERVE, str(port), "2"], env=os.environ | environment, stdout=out, stderr=out
        )
    headers = {"Authorization": f"Bearer {KEY}"}
    address = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:

        def ready() -> bool:
            assert gateway.poll() is None, log.read_text()[-3000:]
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually(ready, f"the gateway is ready; log: {log}", 60)
            yield client
        finally:
            children = psutil.Process(gateway.pid).children(recursive=True) if gateway.poll() is None else []
            gateway.terminate()
            try:
                gateway.wait(20)
            except subprocess.TimeoutExpired:
                gateway.kill()
            for child in psutil.wait_procs(children, timeout=5)[1]:
                child.kill()


def seconds_of(client: httpx.Client, path: str, status: int) -> float:
    began = time.monotonic()
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return time.monotonic() - began


def assert_each_ended_once(ledger: Ledger, client: httpx.Client, accepted: dict[str, str]) -> None:
    """Every accepted order is one analysis, which has completed once, no step of it done twice."""

    def unfinished() -> Counter[str]:
        states = Counter(client.get(f"/v1/analyses/{each}").json().get("state") for each in accepted.values())
        return Counter({state: n for state, n in states.items() if state not in FINAL})

    eventually(lambda: not unfinished(), "all orders end", 90, every_s=0.5)
    assert len(set(accepted.values())) == len(accepted)
    for analysis in accepted.values():
        events = ledger.events(analysis)
        told = Counter((event.data["step"], event.data["status"]) for event in events if event.kind == "step")
        final = [event.data["state"] for event in events if event.kind == "state" and event.data["state"] in FINAL]
        assert final == ["completed"], [event.data for event in events]
        assert {step: told[step, "finished"] for step in ("fetch", "infer", "report")} == {
            "fetch": 1,
            "infer": 1,
            "report": 1,
        }, told


def test_orders_while_the_database_is_down(database: Postgres, url: str, client: httpx.Client, tmp_path: Path) -> None:
    lis = Lis(client)
    threads = [threading.Thread(target=lis.place) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(lis.accepted) >= 6, "orders are accepted")
        database.stop()
        down_at = time.monotonic()
        before = len(lis.accepted)
        live_s: list[float] = []
        answers: list[Any] = []
        while time.monotonic() - down_at < DOWN_S:
            live_s.append(seconds_of(client, "/livez", 200))
            seconds_of(client, "/readyz", 503)
            began = time.monotonic()
            answers.append(client.get(f"/v1/analyses/{next(iter(lis.accepted.values()))}"))
            assert time.monotonic() - began < ANSWER_S
            time.sleep(0.5)
        assert max(live_s) < 4.0  # the database is waited for longer
        assert {answer.status_code for answer in answers} == {503}
        database.start()
        eventually(lambda: len(lis.accepted) >= before + 4, "orders are accepted again", 30)
        eventually(lambda: client.get("/readyz").status_code == 200, "the gateway is ready again", 30)
        database.kill()
        before = len(lis.accepted)
        database.start()
        eventually(lambda: len(lis.accepted) >= before + 4, "orders are accepted after a crash", 30)
    finally:
        if database.process is None:
            database.start()
        lis.stop.set()
        for thread in threads:
            thread.join(60)
    assert lis.refused
    for refusal in [*lis.refused, *answers]:
        assert refusal.status_code == 503, refusal.text
        assert refusal.json()["reason"] in ("database-unavailable", "state-busy")
        assert int(refusal.headers["Retry-After"]) >= 1
        assert refusal.headers["Content-Type"] == "application/problem+json"
    assert lis.slowest_s < ANSWER_S
    assert lis.doubts == []
    ledger = Ledger.open(url, tmp_path)
    try:
        assert_each_ended_once(ledger, client, lis.accepted)
    finally:
        ledger.close()
