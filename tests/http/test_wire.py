"""What only a socket shows: clients that are slow, send several requests at once, or break off; events to many."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.domain.analysis import Progress, Step
from gateway.http import connection, shell
from gateway.http.app import create_app
from gateway.operations.auth import ApiKey
from tests.http.conftest import KEY, ORDER, Hand, settings_of
from tests.http.serving import wired
from tests.http.test_events import parse

HEAD = f"Host: p\r\nAuthorization: Bearer {KEY}\r\n"


class Wire:
    """A server in a thread of this process, and connections to it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.url = f"http://{address[0]}:{address[1]}"

    def send(self, data: bytes) -> socket.socket:
        opened = socket.create_connection(self.address, timeout=10)
        opened.sendall(data)
        return opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    monkeypatch.setattr(shell, "BODY_S", 0.5)


@pytest.fixture
def wire(state: Path, ledger: Ledger) -> Iterator[Wire]:
    app, context = create_app(settings_of(state), ledger, ApiKey.of(KEY))
    with wired(app) as address:
        yield Wire(address)
        context.stopping.set()


def read(opened: socket.socket) -> bytes:
    """All that comes until the server closes the connection, or waits for the next request."""
    parts = []
    with opened, contextlib.suppress(TimeoutError, ConnectionError):
        while part := opened.recv(65536):
            parts.append(part)
            opened.settimeout(1)
    return b"".join(parts)


@pytest.mark.usefixtures("impatient")
def test_a_head_that_is_never_finished_is_not_waited_for(wire: Wire) -> None:
    for begun in (b"", b"GET /livez HTTP/1.1\r\nHost: p\r\n"):
        began = time.monotonic()
        assert read(wire.send(begun)) == b""
        assert time.monotonic() - began < 20


@pytest.mark.usefixtures("impatient")
def test_a_head_that_drips_is_not_waited_for(wire: Wire) -> None:
    opened = wire.send(b"GET /livez HTTP/1.1\r\n")
    began = time.monotonic()
    with opened, contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 20:
            opened.sendall(b"X: y\r\n")
            time.sleep(0.05)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("impatient")
def test_a_body_that_is_never_finished_is_a_problem(wire: Wire) -> None:
    head = f"POST /v1/analyses HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    answer = read(wire.send(head.encode() + b'{"protocol"'))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "body-too-slow"


def test_a_client_that_breaks_off_leaves_nothing_behind(wire: Wire, ledger: Ledger) -> None:
    head = f"POST /v1/analyses HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    for _ in range(20):
        wire.send(head.encode() + json.dumps(ORDER).encode()[:50]).close()
    assert httpx.get(f"{wire.url}/livez", trust_env=False).status_code == 200
    assert ledger.statistics().by_state == {}


def test_several_requests_at_once_are_answered_in_order(wire: Wire) -> None:
    body = json.dumps(ORDER)
    of_json = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    post = f"POST /v1/analyses HTTP/1.1\r\n{HEAD}{of_json}\r\n{body}"
    get = f"GET /v1/analyses?limit=0 HTTP/1.1\r\n{HEAD}\r\n"
    last = f"GET /livez HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
    answers = read(wire.send((post + get + post + last).encode()))
    assert re.findall(rb"HTTP/1.1 ([0-9]{3})", answers) == [b"202", b"400", b"202", b"200"]


@pytest.mark.parametrize(
    "request_", [
        b"GET / HTTP/1.1\r\n\r\n", b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\nHost: p\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: p\r\n\r\n", b"GET / HTTP/1.1\r\nHost: p\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"POST /v1/analyses HTTP/1.1\r\nHost: p\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/analyses HTTP/1.1\r\nHost: p\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 1000,
    ], ids=range(9),
)  # fmt: skip
def test_what_is_no_http_is_answered_with_400_or_401_or_nothing(wire: Wire, request_: bytes) -> None:
    answer = read(wire.send(request_))
    assert answer == b"" or answer.split()[1] in (b"400", b"401"), answer
    assert b"Traceback" not in answer
    assert httpx.get(f"{wire.url}/livez", trust_env=False).status_code == 200


async def test_events_reach_many_streams_at_once(wire: Wire, ledger: Ledger, hand: Hand) -> None:
    """Every stream gets every event, in order, within a fraction of a second, by one look at the database for all."""
    headers = {"Authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=60)
    async with httpx.AsyncClient(
        base_url=wire.url, headers=headers, limits=limits, trust_env=False, timeout=30
    ) as client:
        ids = [str((await client.post("/v1/analyses", json=ORDER)).json()["id"]) for _ in range(10)]
        looks: list[float] = []
        counted = ledger.last_events

        def counting(asked: set[str]) -> dict[str, int]:
            looks.append(time.monotonic())
            return counted(asked)

        ledger.last_events = counting  # type: ignore[method-assign, assignment]
        streams = [asyncio.create_task(client.get(f"/v1/analyses/{each}/events")) for each in ids * 5]
        await asyncio.sleep(1.0)
        began = time.monotonic()
        for number, analysis_id in enumerate(ids):
            turn = hand.begin(analysis_id)
            ledger.runs.progress(turn, Progress(Step.FETCH, number, 10, "bytes"))
            hand.pause(turn)
        for analysis_id in ids:
            hand.fail(analysis_id, "no-tissue", "There is none.")
        answers = await asyncio.wait_for(asyncio.gather(*streams), 20)
        lasted = time.monotonic() - began
    for answer in answers:
        events = parse(answer.text)
        assert [kind for _, kind, _ in events][:2] == ["state", "state"]
        assert (events[-1][1], events[-1][2]["state"]) == ("state", "failed")
        assert [seq for seq, _, _ in events] == sorted({seq for seq, _, _ in events})
    assert len(looks) < (lasted + 2.0) / 0.05 + 5
