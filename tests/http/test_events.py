"""Server-sent events: everything from the beginning, or after the last one seen; ends with the analysis."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.http import events as streams
from tests.http.conftest import Hand


def parse(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "id" in fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


@pytest.fixture
async def analysis_id(client: httpx.AsyncClient, order: dict[str, Any]) -> str:
    return str((await client.post("/v1/analyses", json=order)).json()["id"])


async def test_the_stream_of_an_ended_analysis_replays_and_ends(
    client: httpx.AsyncClient, analysis_id: str, hand: Hand
) -> None:
    hand.complete(analysis_id)
    answer = await client.get(f"/v1/analyses/{analysis_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [(seq, kind, data["state"]) for seq, kind, data in parse(answer.text)] == [
        (1, "state", "accepted"),
        (2, "state", "running"),
        (3, "state", "completed"),
    ]
    for last, left in (("1", [2, 3]), ("2", [3]), ("3", []), ("99", [])):
        answer = await client.get(f"/v1/analyses/{analysis_id}/events", headers={"Last-Event-ID": last})
        assert [seq for seq, _, _ in parse(answer.text)] == left
        assert answer.status_code == (200 if left else 204)


async def test_a_stream_follows_until_the_end(
    client: httpx.AsyncClient, analysis_id: str, ledger: Ledger, hand: Hand
) -> None:
    following = asyncio.create_task(client.get(f"/v1/analyses/{analysis_id}/events"))
    await asyncio.sleep(0.3)
    turn = hand.begin(analysis_id)
    ledger.runs.progress(turn, Progress(Step.INFER, 5, 10, "tiles"))
    await asyncio.sleep(0.3)
    assert not following.done()
    ledger.runs.finish(turn, State.FAILED, Failure("no-tissue", "There is none."))
    events = parse((await asyncio.wait_for(following, 10)).text)
    assert [kind for _, kind, _ in events] == ["state", "state", "progress", "state"]
    assert events[2][2] | {"time": None} == {"time": None, "step": "infer", "done": 5, "total": 10, "unit": "tiles"}


async def test_a_wrong_last_event_id(client: httpx.AsyncClient, analysis_id: str) -> None:
    for wrong in ("x", "-1", "1.5", "9" * 30):
        answer = await client.get(f"/v1/analyses/{analysis_id}/events", headers={"Last-Event-ID": wrong})
        assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input")


async def test_a_stream_to_which_nothing_comes_ends_with_its_analysis(
    client: httpx.AsyncClient, analysis_id: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was asked for what follows an event that is never reached, and one whose analysis is no longer kept."""
    monkeypatch.setattr(streams, "PING_S", 0.2)
    path = f"/v1/analyses/{analysis_id}/events"
    following = asyncio.create_task(client.get(path, headers={"Last-Event-ID": "99"}))
    await asyncio.sleep(0.5)
    assert not following.done()
    hand.complete(analysis_id)
    assert (await asyncio.wait_for(following, 30)).status_code == 200


async def test_there_are_not_more_streams_than_a_process_can_hold(
    client: httpx.AsyncClient, analysis_id: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 1)
    path = f"/v1/analyses/{analysis_id}/events"
    following = asyncio.create_task(client.get(path))
    await asyncio.sleep(0.3)
    refused = await client.get(path)
    assert (refused.status_code, refused.json()["reason"]) == (429, "too-many-requests")
    assert int(refused.headers["retry-after"]) > 0
    hand.complete(analysis_id)
    assert (await asyncio.wait_for(following, 30)).status_code == 200
    assert (await client.get(path)).status_code == 200
