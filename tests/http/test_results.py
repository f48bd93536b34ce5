"""The report by content negotiation, the artefacts, and what is said where there is none."""

from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import REVISIONS
from tests.http.conftest import Hand


@pytest.fixture
async def analysis_id(client: httpx.AsyncClient, order: dict[str, Any]) -> str:
    return str((await client.post("/v1/analyses", json=order)).json()["id"])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/dicom", "application/dicom"),
        ("application/json;q=0.1, application/dicom;q=0.2", "application/dicom"),
        ("application/pdf", "application/pdf"),
        ("TEXT/HTML", "text/html; charset=utf-8"),
        ("application/json;q=0, */*", "text/html; charset=utf-8"),
        ("application/json; q=x", None),
        ("image/png", None),
        ("application/fhir+json", None),
    ],
)
async def test_the_report_in_the_encoding_that_is_asked_for(
    client: httpx.AsyncClient,
    analysis_id: str,
    hand: Hand,
    accept: str | None,
    media_type: str | None,
) -> None:
    hand.complete(analysis_id)
    if accept is None:
        del client.headers["Accept"]
    answer = await client.get(f"/v1/analyses/{analysis_id}/report", headers={"Accept": accept} if accept else {})
    if media_type is None:
        assert (answer.status_code, answer.json()["reason"]) == (406, "not-acceptable")
    else:
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "script" not in answer.headers["content-security-policy"]
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_no_report_yet(client: httpx.AsyncClient, analysis_id: str, hand: Hand) -> None:
    for state, move in (("accepted", hand.begin), ("running", None)):
        answer = await client.get(f"/v1/analyses/{analysis_id}/report")
        body = answer.json()
        assert (answer.status_code, body["reason"], body["state"]) == (409, "report-not-ready", state)
        assert "retry-after" in answer.headers
        if move is not None:
            move(analysis_id)
    assert (await client.get(f"/v1/analyses/{analysis_id}/artifacts")).json() == {"items": []}


async def test_a_failed_analysis_says_why(client: httpx.AsyncClient, analysis_id: str, hand: Hand) -> None:
    hand.fail(analysis_id, "no-tissue", "There is no tissue on this slide; scan it again.")
    answer = await client.get(f"/v1/analyses/{analysis_id}/report")
    body = answer.json()
    assert (answer.status_code, body["reason"], body["state"]) == (409, "no-tissue", "failed")
    assert "There is no tissue on this slide; scan it again." in body["detail"]
    shown = (await client.get(f"/v1/analyses/{analysis_id}")).json()
    assert shown["failure"] == {
        "reason": "no-tissue",
        "detail": "There is no tissue on this slide; scan it again.",
    }


async def test_a_cancelled_analysis_has_no_report(client: httpx.AsyncClient, analysis_id: str) -> None:
    await client.delete(f"/v1/analyses/{analysis_id}")
    answer = await client.get(f"/v1/analyses/{analysis_id}/report")
    assert (answer.status_code, answer.json()["reason"]) == (409, "cancelled")


async def test_the_artifacts(client: httpx.AsyncClient, analysis_id: str, hand: Hand) -> None:
    hand.complete(analysis_id)
    items = (await client.get(f"/v1/analyses/{analysis_id}/artifacts")).json()["items"]
    assert {item["name"]: item["media_type"] for item in items} == {
        "report.html": "text/html; charset=utf-8",
        "report.json": "application/json",
        "report.pdf": "application/pdf",
        "report.sr.dcm": "application/dicom",
        "tissue-1.geojson": "application/geo+json",
        "tissue-1.seg.dcm": "application/dicom",
        "tissue-map-1.png": "image/png",
    }
    for item in items:
        file = await client.get(item["href"])
        assert (file.status_code, len(file.content)) == (200, item["bytes"])
    for name in ("none.json", "%2e%2e%2fpathserve.db", "..%2fcalls.log"):
        refused = await client.get(f"/v1/analyses/{analysis_id}/artifacts/{name}")
        assert (refused.status_code, refused.json()["reason"]) == (404, "not-found")


async def test_a_report_from_before_there_were_revisions_is_still_read(
    client: httpx.AsyncClient, analysis_id: str, hand: Hand, ledger: Ledger
) -> None:
    hand.complete(analysis_id)
    with ledger._engine.begin() as connection:
        connection.execute(REVISIONS.delete())
    for query, status in (("", 200), ("?revision=1", 200), ("?revision=2", 404)):
        assert (await client.get(f"/v1/analyses/{analysis_id}/report{query}")).status_code == status
