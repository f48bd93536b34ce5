"""What lies around the API: the key, health for strangers, problems for every error, headers."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateway.analyses.ledger import Ledger
from gateway.analyses.worker.processes import this_host
from gateway.http.app import build_api
from gateway.http.shell import REGISTRY

PATHS = sorted(path.replace("{analysis_id}", "x").replace("{name}", "y") for path in build_api().openapi()["paths"])


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic the-key", "the-key", "Bearer the-key2", "Bearer thé-key"]
)
async def test_nothing_is_told_without_the_key(stranger: httpx.AsyncClient, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    closed = [path for path in PATHS if path not in ("/livez", "/readyz")]
    for path in (*closed, "/openapi.json", "/docs", "/metrics", "/x"):
        for method in ("GET", "POST", "DELETE"):
            answer = await stranger.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (401, "unauthenticated"), path
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_life_is_told_while_every_thread_waits_for_the_database(
    client: httpx.AsyncClient, ledger: Ledger, state: Path, order: dict[str, Any]
) -> None:
    with closing(sqlite3.connect(state / "pathserve.db", isolation_level=None)) as locked:
        locked.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(client.post("/v1/analyses", json=order)) for _ in range(60)]
        await asyncio.sleep(0.5)
        answer = await asyncio.wait_for(client.get("/livez"), 10)
        assert not any(each.done() for each in waiting)
        locked.execute("ROLLBACK")
    assert answer.status_code == 200
    assert {each.status_code for each in await asyncio.gather(*waiting)} == {202}


async def test_the_key_in_any_case_of_the_scheme(stranger: httpx.AsyncClient) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = await stranger.get("/v1/analyses", headers={"Authorization": f"{scheme} the-key"})
        assert answer.status_code == 200


def model(name: str, **more: Any) -> dict[str, Any]:
    """One version as a worker's heartbeat has it."""
    return {
        "name": name,
        "version": "1",
        "ready": True,
        "reason": None,
        "state": "serving",
        "folder": name,
        "target": "onnx",
        "precision": "fp32",
        **more,
    }


def beat(ledger: Ledger, models: Sequence[Mapping[str, Any]] = (), *, archive: bool = True, pid: int = 0) -> None:
    """A worker's heartbeat."""
    parts = {"inference": True, "archive": archive}
    ledger.workers.beat(
        "w", started=datetime.now(UTC), host=this_host(), pid=pid or os.getpid(), parts=parts, models=models
    )


async def test_strangers_learn_health_and_nothing_more(stranger: httpx.AsyncClient, ledger: Ledger) -> None:
    assert (await stranger.get("/livez")).json() == {"alive": True}
    assert ((await stranger.head("/livez")).status_code, (await stranger.head("/readyz")).status_code) == (200, 503)
    parts = {"database": True, "worker": False, "inference": False, "archive": False}
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "parts": parts, "refused": []})
    models = [
        model("tile_encoder"),
        model("tissue_head", ready=False, reason="digest differs at 10.0.0.1", state="refused"),
        model("tissue_head", version="2", folder="tissue_head-v2", ready=False, state="standby"),
    ]
    for archive in (False, True):
        beat(ledger, models, archive=archive)
        answer = await stranger.get("/readyz")
        found = {"database": True, "worker": True, "inference": True, "archive": archive}
        assert answer.json() == {"ready": archive, "parts": found, "refused": ["tissue_head"]}
        assert answer.status_code == (200 if archive else 503)
        assert "10.0.0.1" not in answer.text


async def test_a_worker_that_does_not_beat_is_not_there(stranger: httpx.AsyncClient, ledger: Ledger) -> None:
    beat(ledger)
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE workers SET beat = '2020-01-01 00:00:00.000000'"))
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()["parts"]["worker"]) == (503, False)


async def test_a_heartbeat_from_before_the_start_is_a_dead_workers(stranger: httpx.AsyncClient, ledger: Ledger) -> None:
    beat(ledger)
    with ledger._engine.begin() as connection:  # one second before the server: fresh enough, but whose is it?
        connection.execute(sa.text("UPDATE workers SET beat = datetime(beat, '-1 second') || '.000000'"))
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()["parts"]["worker"]) == (503, False)


async def test_a_worker_that_is_seen_to_beat_lives_whatever_its_clock_says(
    stranger: httpx.AsyncClient, ledger: Ledger
) -> None:
    for status in (503, 200):
        beat(ledger)
        with ledger._engine.begin() as connection:
            connection.execute(sa.text("UPDATE workers SET beat = datetime(beat, '-1 hour') || '.000000'"))
        assert (await stranger.get("/readyz")).status_code == status


async def test_a_worker_of_this_machine_that_ended_is_known_at_once(
    stranger: httpx.AsyncClient, ledger: Ledger
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        beat(ledger, pid=process.pid)
        assert (await stranger.get("/readyz")).status_code == 200
        process.kill()
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()["parts"]["worker"]) == (503, False)


async def test_models_answer_from_the_first_moment(client: httpx.AsyncClient, ledger: Ledger, state: Path) -> None:
    assert (await client.get("/v1/models")).json() == {"items": []}
    (state / "models" / "tile_encoder").mkdir(parents=True)
    (state / "models" / "tile_encoder" / "card.json").write_text("{}")
    (state / "models" / "tile_encoder-v2").mkdir()
    (state / "models" / "tile_encoder-v2" / "card.json").write_text("{}")
    [item] = (await client.get("/v1/models")).json()["items"]
    assert (item["name"], item["version"], item["ready"], item["state"]) == ("tile_encoder", None, False, "pending")
    assert item["reason"]
    ledger.choices.note_initial("tile_encoder", "2", "worker")
    (state / "models" / ".tile_encoder.staged").mkdir()
    (state / "models" / ".tile_encoder.staged" / "card.json").write_text("{}")
    [item] = (await client.get("/v1/models")).json()["items"]
    assert (item["version"], item["folder"], item["ready"]) == ("2", "tile_encoder-v2", False)


async def test_models_are_what_the_worker_serves(client: httpx.AsyncClient, ledger: Ledger) -> None:
    served = [model("tile_encoder"), model("tile_encoder", version="2", ready=True, state="draining")]
    others = [model("tile_encoder", version="3", ready=False, state=state) for state in ("standby", "retired")]
    beat(ledger, [*served, *others])
    assert (await client.get("/v1/models")).json()["items"] == served
    assert (await client.get("/v1/models?versions=all")).json()["items"] == [*served, *others]
    answer = await client.get("/v1/models?versions=some")
    assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input")


async def test_protocols(client: httpx.AsyncClient) -> None:
    items = (await client.get("/v1/protocols")).json()["items"]
    assert "tissue-classification" in [item["name"] for item in items]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/analyses/", 404, "not-found"),
        ("PUT", "/v1/analyses", 405, "method-not-allowed"),
        ("POST", "/livez", 405, "method-not-allowed"),
        ("BREW", "/v1/analyses", 405, "method-not-allowed"),
    ],
)
async def test_errors_of_the_framework_are_problems(
    client: httpx.AsyncClient, method: str, path: str, status: int, reason: str
) -> None:
    answer = await client.request(method, path)
    body = answer.json()
    assert (answer.status_code, body["status"], body["reason"]) == (status, status, reason)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:pathserve:problem:{reason}"


async def test_an_unexpected_error_is_a_problem_without_a_trace(
    client: httpx.AsyncClient, order: dict[str, Any], ledger: Ledger, state: Path
) -> None:
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE analyses RENAME COLUMN order_json TO gone"))
    answer = await client.post("/v1/analyses", json=order)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["reason"] == "state"
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE analyses RENAME COLUMN gone TO order_json"))
    analysis_id = (await client.post("/v1/analyses", json=order)).json()["id"]
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE analyses SET order_json = 'no json'"))
    broken = await client.get(f"/v1/analyses/{analysis_id}")
    assert (broken.status_code, broken.json()["reason"]) == (500, "internal")
    for text in (answer.text, broken.text):
        assert "Traceback" not in text
        assert str(state) not in text
        assert "order_json" not in text


async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/analyses", "/none"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers


async def test_requests_are_measured_by_route_not_by_path(client: httpx.AsyncClient) -> None:
    await client.get("/v1/analyses/some-id")
    await client.get("/some/patient/path")
    labels = {
        (sample.labels["route"], sample.labels["code"])
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "http_request_duration_seconds_count"
    }
    assert ("/v1/analyses/{analysis_id}", "404") in labels
    assert ("unmatched", "404") in labels
    assert not any("some" in route for route, _ in labels)


async def test_a_locked_ledger_is_busy_not_broken(
    client: httpx.AsyncClient, order: dict[str, Any], ledger: Ledger, state: Path
) -> None:
    sa.event.listen(ledger._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    ledger._engine.dispose()
    with closing(sqlite3.connect(state / "pathserve.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await client.post("/v1/analyses", json=order)
    assert (answer.status_code, answer.json()["reason"]) == (503, "state-busy")
    assert (await client.post("/v1/analyses", json=order)).status_code == 202
