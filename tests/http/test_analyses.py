"""Orders over REST: accepted once, listed, shown, cancelled; bad ones refused with a problem that helps."""

import copy
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.pins import Pin, Pins
from gateway.domain.analysis import State
from gateway.domain.order import Priority
from tests.http.conftest import Hand

JSON = {"Content-Type": "application/json"}


async def accepted(client: httpx.AsyncClient, order: dict[str, Any], **headers: str) -> str:
    answer = await client.post("/v1/analyses", json=order, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_an_order_is_accepted_and_kept_as_it_came(
    client: httpx.AsyncClient, order: dict[str, Any], ledger: Ledger
) -> None:
    full = order | {
        "priority": "STAT",
        "accession": "S26-1",
        "patient": {"id": "Müller^1", "issuer": "HOSPITAL"},
        "region": {"x_um": 0, "y_um": 10.5, "width_um": 100.0, "height_um": 200.0},
    }
    full["specimens"][0]["site"] = {"code": "71854001", "scheme": "SCT", "display": "Colon"}
    answer = await client.post("/v1/analyses", json=full)
    assert answer.status_code == 202
    body = answer.json()
    assert body == {"id": body["id"], "state": "accepted"}
    assert answer.headers["location"] == f"/v1/analyses/{body['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    kept = ledger.get(body["id"]).analysis.order
    assert (kept.priority, kept.accession, kept.patient.id) == (Priority.STAT, "S26-1", "Müller^1")
    assert kept.specimens[0].slides[0].series == ("1.2.3.4",)
    assert kept.specimens[0].site is not None
    assert kept.region is not None
    assert kept.region.y_um == 10.5
    shown = (await client.get(answer.headers["location"])).json()
    assert shown["order"]["patient"] == {"id": "Müller^1", "issuer": "HOSPITAL"}
    assert shown["state"] == "accepted"


async def test_the_models_that_it_is_pinned_to_are_shown(
    client: httpx.AsyncClient, order: dict[str, Any], ledger: Ledger, hand: Hand
) -> None:
    analysis_id = await accepted(client, order)
    assert (await client.get(f"/v1/analyses/{analysis_id}")).json()["models"] == []
    digests = {"engine_sha256": "e" * 64, "card_sha256": "c" * 64}
    pins = (
        Pin(folder="tissue_head", model="tissue_head", version="1", **digests),
        Pin(folder="tissue_classification-v2", model="tissue_classification", version="2", **digests),
    )
    ledger.pin(analysis_id, Pins(folders={"tissue_classification": "tissue_classification-v2"}, pins=pins).to_json())
    shown = [{"name": "tissue_head", "version": "1"}, {"name": "tissue_classification", "version": "2"}]
    assert (await client.get(f"/v1/analyses/{analysis_id}")).json()["models"] == shown
    hand.complete(analysis_id)
    assert (await client.get(f"/v1/analyses/{analysis_id}")).json()["models"] == shown


async def test_nulls_are_the_same_as_nothing(client: httpx.AsyncClient, order: dict[str, Any]) -> None:
    first = await accepted(client, order, **{"Idempotency-Key": "k"})
    nulls = order | {"accession": None, "patient": None, "region": None, "priority": "ROUTINE", "prompts": []}
    assert await accepted(client, nulls, **{"Idempotency-Key": "k"}) == first


async def test_an_idempotency_key(client: httpx.AsyncClient, order: dict[str, Any], hand: Hand) -> None:
    first = await client.post("/v1/analyses", json=order, headers={"Idempotency-Key": "k-1"})
    hand.complete(first.json()["id"])
    again = await client.post("/v1/analyses", json=order, headers={"Idempotency-Key": "k-1"})
    assert (again.status_code, again.json(), again.headers["location"]) == (
        first.status_code,
        first.json(),
        first.headers["location"],
    )
    other = await client.post("/v1/analyses", json=order | {"accession": "A"}, headers={"Idempotency-Key": "k-1"})
    assert (other.status_code, other.json()["reason"]) == (422, "idempotency-conflict")
    for wrong in ("", "x" * 256, "a b"):
        refused = await client.post("/v1/analyses", json=order, headers={"Idempotency-Key": wrong})
        assert (refused.status_code, refused.json()["reason"]) == (400, "invalid-input")
    assert len((await client.get("/v1/analyses")).json()["items"]) == 1


def _changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(order: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        place: Any = order
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (_changed("protocol", "no-such"), "unknown-protocol", None),
        (_changed("protocol", 7), "invalid-order", "protocol"),
        (_changed("protocol", "x" * 65), "invalid-order", "protocol"),
        (_changed("priority", "SOON"), "invalid-order", "priority"),
        (_changed("specimens", []), "invalid-order", "specimens"),
        (_changed("specimens/0/slides", []), "invalid-order", "specimens.0.slides"),
        (_changed("specimens/0/slides/0/study", "1.2.03"), "invalid-order", "specimens.0.slides.0.study"),
        (_changed("specimens/0/slides/0/study", "../../etc"), "invalid-order", "specimens.0.slides.0.study"),
        (_changed("specimens/0/slides/0/study", "1." * 40 + "1"), "invalid-order", "specimens.0.slides.0.study"),
        (_changed("specimens/0/slides/0/study", "1.2.3\n"), "invalid-order", "specimens.0.slides.0.study"),
        (_changed("specimens/0/slides/0/series", ["1.2", ""]), "invalid-order", "specimens.0.slides.0.series.1"),
        (_changed("specimens/0/slides/0/series", "1.2"), "invalid-order", "specimens.0.slides.0.series"),
        (_changed("specimens/0/slides/0/series", ["1.2"] * 101), "invalid-order", "specimens.0.slides.0.series"),
        (_changed("specimens/0/container", "C\x00"), "invalid-order", "specimens.0.container"),
        (_changed("specimens/0/container", "a\\b"), "invalid-order", "specimens.0.container"),
        (_changed("specimens/0/stain", "H" * 65), "invalid-order", "specimens.0.stain"),
        (_changed("specimens/0/type", {"code": "1"}), "invalid-order", "specimens.0.type.scheme"),
        (_changed("accession", "x" * 17), "invalid-order", "accession"),
        (_changed("accession", 12), "invalid-order", "accession"),
        (_changed("patient", {"id": "p", "name": "Mueller"}), "invalid-order", "patient.name"),
        (_changed("surprise", 1), "invalid-order", "surprise"),
        (_changed("prompts", ["mitoses"]), "invalid-order", None),
        (_changed("prompts", ["nuclei"] * 33), "invalid-order", "prompts"),
        (_changed("region", {"x_um": 0, "y_um": 0, "width_um": 0, "height_um": 1}), "invalid-order", "region.width_um"),
        (_changed("region", {"x_um": "0", "y_um": 0, "width_um": 1, "height_um": 1}), "invalid-order", "region.x_um"),
    ],
)
async def test_a_bad_order_is_refused_with_the_field_that_is_wrong(
    client: httpx.AsyncClient,
    order: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    reason: str,
    field: str | None,
) -> None:
    bad = copy.deepcopy(order)
    change(bad)
    answer = await client.post("/v1/analyses", json=bad)
    body = answer.json()
    assert (answer.status_code, body["reason"]) == (422, reason), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= body.keys()
    if field is not None:
        assert field in [each["field"] for each in body["errors"]]
        assert field in body["detail"]
    assert "Mueller" not in answer.text
    assert (await client.get("/v1/analyses")).json()["items"] == []


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "invalid-order"),
        (b"{", 400, "invalid-input"),
        (b"[]", 422, "invalid-order"),
        (b'"order"', 422, "invalid-order"),
        (b"null", 422, "invalid-order"),
        (b"\xff\xfe{", 400, "invalid-input"),
        (b"[" * 500_000, 400, "invalid-input"),
        (b'{"a":' * 100_000, 400, "invalid-input"),
        (json.dumps({"protocol": "tissue-classification", "specimens": [{"slides": [{"study": "1.2"}]}]}).encode()
         .replace(b'"1.2"', b'"1.2", "series": NaN'), 400, "invalid-input"),
        (b'{"protocol": "\\ud800", "specimens": [{"slides": [{"study": "1.2"}]}]}', 422, "invalid-order"),
        (b'{"protocol": "tissue-classification", "accession": "\\ud800",'
         b' "specimens": [{"slides": [{"study": "1.2"}]}]}', 422, "invalid-order"),
        (b'{"protocol": "tissue-classification", "specimens": [{"slides": [{"study": "1.2"}]}],'
         b' "region": {"x_um": 1e999, "y_um": 0, "width_um": 1, "height_um": 1}}', 422, "invalid-order"),
        (b"x" * 1_000_001, 413, "body-too-large"),
        (b"[" * 10_000_000, 413, "body-too-large"),
    ],
    ids=range(14),
)  # fmt: skip
async def test_a_body_that_is_no_order(client: httpx.AsyncClient, content: bytes, status: int, reason: str) -> None:
    answer = await client.post("/v1/analyses", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4000


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_an_order_of_another_media_type(
    client: httpx.AsyncClient, order: dict[str, Any], media_type: str | None
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await client.post("/v1/analyses", content=json.dumps(order), headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (415, "unsupported-media-type")


async def test_pages(client: httpx.AsyncClient, order: dict[str, Any]) -> None:
    ids = [await accepted(client, order) for _ in range(5)]
    first = (await client.get("/v1/analyses", params={"limit": 2})).json()
    second = (await client.get("/v1/analyses", params={"limit": 2, "cursor": first["next"]})).json()
    third = (await client.get("/v1/analyses", params={"limit": 2, "cursor": second["next"]})).json()
    assert [item["id"] for page in (first, second, third) for item in page["items"]] == ids[::-1]
    assert third["next"] is None
    assert "order" not in first["items"][0]
    for params in (
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"cursor": "%%%"},
        {"cursor": "bjE7"},
        {"cursor": "ü"},
    ):
        refused = await client.get("/v1/analyses", params=params)
        assert (refused.status_code, refused.json()["reason"]) == (400, "invalid-input"), params


async def test_an_etag_changes_with_the_analysis(client: httpx.AsyncClient, order: dict[str, Any], hand: Hand) -> None:
    analysis_id = await accepted(client, order)
    first = await client.get(f"/v1/analyses/{analysis_id}")
    tag = {"If-None-Match": first.headers["etag"]}
    for same in (tag["If-None-Match"], f"W/{tag['If-None-Match']}", f'"other", {tag["If-None-Match"]}', "*"):
        answer = await client.get(f"/v1/analyses/{analysis_id}", headers={"If-None-Match": same})
        assert (answer.status_code, answer.content) == (304, b""), same
    hand.begin(analysis_id)
    changed = await client.get(f"/v1/analyses/{analysis_id}", headers=tag)
    assert (changed.status_code, changed.json()["state"]) == (200, "running")


async def test_cancelling(client: httpx.AsyncClient, order: dict[str, Any], ledger: Ledger, hand: Hand) -> None:
    waiting = await accepted(client, order)
    for _ in range(2):
        answer = await client.delete(f"/v1/analyses/{waiting}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")

    running = await accepted(client, order)
    turn = hand.begin(running)
    answer = await client.delete(f"/v1/analyses/{running}")
    assert (answer.status_code, answer.json()["state"], answer.json()["cancel_requested"]) == (202, "running", True)
    ledger.runs.finish(turn, State.CANCELLED)

    done = await accepted(client, order)
    hand.complete(done)
    refused = await client.delete(f"/v1/analyses/{done}")
    assert (refused.status_code, refused.json()["reason"]) == (409, "conflict")


@pytest.mark.parametrize("path", ["", "/events", "/report", "/artifacts", "/artifacts/report.json"])
@pytest.mark.parametrize("analysis_id", ["0b2a3f5c-0000-4000-8000-000000000000", "..", "%2e%2e", "A B", "x" * 300])
async def test_an_analysis_that_is_not_there(client: httpx.AsyncClient, analysis_id: str, path: str) -> None:
    answer = await client.get(f"/v1/analyses/{analysis_id}{path}")
    assert (answer.status_code, answer.json()["reason"]) == (404, "not-found")
