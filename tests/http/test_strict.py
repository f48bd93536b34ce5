"""What the API takes and what not: JSON to the letter, methods, ranges, tags, and how often a caller may come."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.http.app import create_app
from gateway.http.results import negotiate
from gateway.http.shell import REGISTRY
from gateway.operations.auth import ApiKey
from gateway.operations.settings import Settings
from tests.http.conftest import FILES, KEY, ORDER, Hand

JSON = {"Content-Type": "application/json"}
TEXT = json.dumps(ORDER)


@pytest.fixture
async def completed(client: httpx.AsyncClient, hand: Hand) -> str:
    analysis_id = str((await client.post("/v1/analyses", json=ORDER)).json()["id"])
    hand.complete(analysis_id)
    return f"/v1/analyses/{analysis_id}"


@pytest.mark.parametrize(
    "content",
    [
        TEXT[:-1] + ', "protocol": "tissue-classification"}',  # a name twice: which one counts?
        TEXT.replace('"container": "C-1"', '"container": "C-1", "container": "C-2"'),
        TEXT[:-1] + ', "region": {"x_um": NaN, "y_um": 0, "width_um": 1, "height_um": 1}}',
        TEXT[:-1] + ', "region": {"x_um": Infinity, "y_um": 0, "width_um": 1, "height_um": 1}}',
        TEXT + " {}",
        TEXT.replace('"', "'"),
        "\ufeff" + TEXT,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "9" * 10_000,
        TEXT.encode("utf-16"),
        TEXT.replace("C-1", "C\n1"),
    ],
    ids=range(11),
)
async def test_json_is_taken_to_the_letter(client: httpx.AsyncClient, content: str | bytes) -> None:
    answer = await client.post("/v1/analyses", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["reason"]) in ((400, "invalid-input"), (422, "invalid-order"))
    assert answer.status_code == 400 or content == "9" * 10_000
    assert (await client.get("/v1/analyses")).json()["items"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"\ud800": 1},
        {"accession": "\ud800"},
        {"patient": {"\udfff": "x"}},
        {"x" * 100_000: 1},
        {"specimens": [{"slides": [{"study": "1.2.3", "series": ["1.2." + str(each) for each in range(101)]}]}]},
        {"specimens": [{"slides": [{"study": "1.2.3"}]}] * 51},
        {"prompts": ["x"] * 65},
        {"accession": "\u202e\x00"},
    ],
    ids=range(8),
)
async def test_strange_text_and_long_lists_are_refused_in_few_words(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    answer = await client.post("/v1/analyses", content=json.dumps(ORDER | change), headers=JSON)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid-order")
    assert len(answer.content) < 4000


async def test_text_of_every_script_comes_back_as_it_came(client: httpx.AsyncClient) -> None:
    patient = {"id": "Ødegård^Ælfrīda=小林^🧬", "issuer": "ΑΘΗΝΑ"}
    created = await client.post("/v1/analyses", json=ORDER | {"patient": patient})
    shown = await client.get(created.headers["location"])
    assert shown.json()["order"]["patient"] == patient


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/analyses", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/v1/analyses/x", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("/v1/analyses/x/sign", {"POST", "OPTIONS"}),
        ("/v1/analyses:batch", {"POST", "OPTIONS"}),
        ("/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("/openapi.json", {"GET", "HEAD", "OPTIONS"}),
        ("/docs", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_path_says_which_methods_it_takes(client: httpx.AsyncClient, path: str, allowed: set[str]) -> None:
    asked = await client.options(path)
    assert (asked.status_code, asked.content) == (204, b"")
    assert set(asked.headers["allow"].split(", ")) == allowed
    for method in {"PUT", "BREW", "TRACE", "PATCH", "GET"} - allowed:
        refused = await client.request(method, path)
        assert (refused.status_code, refused.json()["reason"]) == (405, "method-not-allowed"), method
        assert set(refused.headers["allow"].split(", ")) == allowed


async def test_head_is_get_without_its_body(client: httpx.AsyncClient, completed: str) -> None:
    files = [f"{completed}/report", f"{completed}/artifacts/report.pdf"]
    for path in (*files, completed, f"{completed}/events", "/v1/analyses", "/v1/status", "/docs", "/readyz"):
        head, get = await client.head(path), await client.get(path)
        assert head.status_code == get.status_code, path
        assert head.headers["content-type"] == get.headers["content-type"], path
        assert path not in files or (head.content == b"" and head.headers["etag"] == get.headers["etag"]), path


async def test_a_file_comes_in_ranges_and_only_where_it_is_new(client: httpx.AsyncClient, completed: str) -> None:
    path, whole = f"{completed}/artifacts/report.sr.dcm", FILES["report.sr.dcm"]
    first = await client.get(path)
    tag = first.headers["etag"]
    assert (first.status_code, first.content, first.headers["accept-ranges"]) == (200, whole, "bytes")
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        assert (await client.get(path, headers={"If-None-Match": known})).status_code == 304
    ranges = (("bytes=128-131", b"DICM"), ("bytes=-4", b"DICM"), ("bytes=130-", b"CM"), ("bytes=0-0", b"\0"))
    for wanted, content in ranges:
        part = await client.get(path, headers={"Range": wanted})
        assert (part.status_code, part.content) == (206, content), wanted
        assert part.headers["content-range"].endswith("/132")
    several = await client.get(path, headers={"Range": "bytes=0-0,128-131"})
    assert several.headers["content-type"].startswith("multipart/byteranges")
    for ignored in ("lines=1-2", "bytes=", "bytes=b-a", "bytes=9-1", "nonsense", "bytes=-"):
        answer = await client.get(path, headers={"Range": ignored})
        assert (answer.status_code, answer.content) == (200, whole), ignored
    for beyond in ("bytes=132-", "bytes=0-0,900-901", "bytes=-0"):
        refused = await client.get(path, headers={"Range": beyond})
        assert (refused.status_code, refused.json()["reason"]) == (416, "range-not-satisfiable"), beyond
        assert refused.headers["content-range"] == "bytes */132"
    for changed, status in ((tag, 206), ('"old"', 200)):
        answer = await client.get(path, headers={"Range": "bytes=0-0", "If-Range": changed})
        assert answer.status_code == status


async def test_the_documents_of_several_studies(client: httpx.AsyncClient, completed: str, state: Path) -> None:
    one = await client.get(f"{completed}/report", headers={"Accept": "application/dicom"})
    assert "link" not in one.headers
    folder = state / completed.removeprefix("/v1/") / "artifacts"
    for number in (2, 10):
        (folder / f"report-{number}.sr.dcm").write_bytes(b"study %d" % number)
    one = await client.get(f"{completed}/report", headers={"Accept": "application/dicom"})
    assert one.content == FILES["report.sr.dcm"]
    hrefs = [f"{completed}/artifacts/report-{number}.sr.dcm" for number in (2, 10)]
    assert one.headers["link"] == ", ".join(f'<{href}>; rel="item"' for href in hrefs)
    assert (await client.get(hrefs[1])).content == b"study 10"
    related = {"Accept": 'multipart/related; type="application/dicom"'}
    every = await client.get(f"{completed}/report", headers=related)
    boundary = every.headers["content-type"].partition("boundary=")[2].encode()
    parts = every.content.split(b"--" + boundary)
    assert [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:-1]] == [
        *(FILES["report.sr.dcm"], b"study 2", b"study 10"),
    ]
    # A tag of one document is not that of all, be they the same bytes: no answer of one kind stands for the other.
    for number in (2, 10):
        (folder / f"report-{number}.sr.dcm").unlink()
    alone = await client.get(f"{completed}/report", headers=related | {"If-None-Match": one.headers["etag"]})
    assert alone.status_code == 200
    every = await client.get(f"{completed}/report", headers=related)
    assert (every.headers["etag"], every.content) == (alone.headers["etag"], alone.content)
    known = await client.get(f"{completed}/report", headers=related | {"If-None-Match": every.headers["etag"]})
    assert known.status_code == 304


def test_negotiation() -> None:
    offered = ("application/json", "multipart/related")
    assert negotiate(None, offered) == "application/json"
    assert negotiate('multipart/related; type="application/dicom"', offered) == "multipart/related"
    assert negotiate("text/csv", offered) is None


async def test_who_comes_too_often_is_told_when_to_come_again(state: Path, ledger: Ledger) -> None:
    app, _ = create_app(Settings(state=state, rate_limit=5), ledger, ApiKey.of(KEY))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p", headers=headers) as client:
        limited = _limited()
        answers = [await client.get("/v1/models") for _ in range(7)]
        assert [each.status_code for each in answers] == [200] * 5 + [429] * 2
        assert answers[0].headers["ratelimit-policy"] == '"caller";q=5;w=1'
        left = [each.headers["ratelimit"] for each in answers[:5]]
        assert left == [f'"caller";r={number};t=1' for number in (4, 3, 2, 1, 0)]
        refused = answers[-1]
        assert (refused.json()["reason"], refused.headers["content-type"]) == (
            *("too-many-requests", "application/problem+json"),
        )
        assert _limited() - limited == 2
        # Health is nobody's, and so without a limit.
        assert [(await client.get("/livez")).status_code for _ in range(10)] == [200] * 10
        await asyncio.sleep(float(refused.headers["retry-after"]))
        assert (await client.get("/v1/models")).status_code == 200


def _limited() -> float:
    return REGISTRY.get_sample_value("http_requests_limited_total") or 0.0


async def test_metrics_are_an_administrators(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "http_request_duration_seconds_bucket" in answer.text
