"""What is done with analyses after they were ordered, and many at once: by whom it may be, and seen afterwards."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.domain.principal import PrincipalKind, Scope
from tests.http.conftest import ORDER, Hand, audited, calling_as, principal

PERSON = principal(Scope.ANALYSES_READ, Scope.ANALYSES_WRITE, Scope.ANALYSES_SIGN)


async def ordered(client: httpx.AsyncClient, **more: Any) -> str:
    answer = await client.post("/v1/analyses", json=ORDER | more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_of_a_batch_each_order_stands_for_itself(client: httpx.AsyncClient) -> None:
    twice = ORDER["specimens"] * 2
    orders = [
        {"order": ORDER, "idempotency_key": "a"},
        {"order": ORDER | {"protocol": "no-such"}},
        {"order": ORDER | {"surprise": 1, "patient": {"id": "Mueller"}}},
        {"order": ORDER, "idempotency_key": "a"},
        {"order": ORDER | {"accession": "A"}, "idempotency_key": "a"},
        {"order": ORDER | {"specimens": twice}},
        {"order": {}},
        {"order": ORDER},
    ]
    answer = await client.post("/v1/analyses:batch", json={"orders": orders})
    assert answer.status_code == 207
    items = answer.json()["items"]
    assert [each["status"] for each in items] == [202, 422, 422, 202, 422, 422, 422, 202]
    reasons = [each["problem"]["reason"] for each in items if each["status"] == 422]
    assert reasons == [
        *("unknown-protocol", "invalid-order", "idempotency-conflict", "invalid-order", "invalid-order"),
    ]
    assert "surprise" in items[2]["problem"]["detail"]
    assert "Mueller" not in answer.text
    assert items[0]["id"] == items[3]["id"] != items[7]["id"]
    kept = (await client.get("/v1/analyses")).json()["items"]
    assert [each["id"] for each in kept] == [items[7]["id"], items[0]["id"]]


@pytest.mark.parametrize(
    "body",
    [{"orders": []}, {"orders": [{"order": ORDER}] * 101}, {"orders": [{"order": ORDER, "idempotency_key": "a b"}]},
     {"orders": [{"order": 7}]}, {"orders": [ORDER]}, {}],
)  # fmt: skip
async def test_a_batch_that_is_none_is_refused_as_a_whole(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/analyses:batch", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid-order")
    assert (await client.get("/v1/analyses")).json()["items"] == []


async def test_lists_are_filtered(client: httpx.AsyncClient, hand: Hand) -> None:
    one = await ordered(client, accession="A-1", patient={"id": "P^1", "issuer": "I"})
    other = await ordered(client, accession="A-2", patient={"id": "P^2"}, priority="STAT")
    hand.begin(one)
    created = (await client.get(f"/v1/analyses/{other}")).json()["created"]
    for query, headers, found in (
        ({"state": "running"}, {}, [one]),
        ({"state": "accepted"}, {}, [other]),
        ({"priority": "STAT"}, {}, [other]),
        ({"protocol": "tissue-classification"}, {}, [other, one]),
        ({"protocol": "no-such"}, {}, []),
        ({"accession": "A-1"}, {}, [one]),
        ({"study": "1.2.3"}, {}, [other, one]),
        ({"study": "1.2.4"}, {}, []),
        ({"created_after": created}, {}, [other]),
        ({"created_before": created}, {}, [one]),
        ({}, {"Patient-Id": "P^1"}, [one]),
        ({}, {"Patient-Id": "P^1", "Patient-Issuer": "I"}, [one]),
        ({}, {"Patient-Id": "P^1", "Patient-Issuer": "other"}, []),
        ({"state": "running", "accession": "A-2"}, {}, []),
    ):
        answer = await client.get("/v1/analyses", params=query, headers=headers)
        assert [each["id"] for each in answer.json()["items"]] == found, (query, headers, answer.text)
    for wrong in (
        {"state": "done"},
        {"priority": "SOON"},
        {"study": "x"},
        {"created_after": "1"},
        {"accession": "a\\b"},
    ):
        answer = await client.get("/v1/analyses", params=wrong)
        assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input"), wrong


async def test_a_time_that_no_calendar_has_is_refused(client: httpx.AsyncClient) -> None:
    for name, time in (
        ("created_after", "0001-01-01T00:00:00+14:00"),
        ("created_before", "9999-12-31T23:59:59-14:00"),
    ):
        answer = await client.get("/v1/analyses", params={name: time})
        assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input"), answer.text


async def test_a_cursor_belongs_to_its_filters_and_the_link_carries_them(client: httpx.AsyncClient) -> None:
    ids = [await ordered(client, accession="A & B") for _ in range(3)]
    first = await client.get("/v1/analyses", params={"limit": 2, "accession": "A & B"})
    following = first.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
    second = await client.get(following)
    assert [each["id"] for answer in (first, second) for each in answer.json()["items"]] == ids[::-1]
    assert "link" not in second.headers
    answer = await client.get("/v1/analyses", params={"cursor": first.json()["next"]})
    assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input")


async def test_the_priority_changes_where_the_analysis_is_what_was_read(client: httpx.AsyncClient, hand: Hand) -> None:
    analysis_id = await ordered(client)
    path = f"/v1/analyses/{analysis_id}"
    tag = (await client.get(path)).headers["etag"]
    changed = await client.patch(path, json={"priority": "STAT"}, headers={"If-Match": tag})
    assert (changed.status_code, changed.json()["priority"]) == (200, "STAT")
    assert changed.json()["order"]["priority"] == "STAT"
    assert changed.headers["etag"] not in (tag, None)
    for stale in (tag, "W/" + changed.headers["etag"], "nonsense", '""'):
        answer = await client.patch(path, json={"priority": "URGENT"}, headers={"If-Match": stale})
        assert (answer.status_code, answer.json()["reason"]) == (412, "precondition-failed"), stale
    for fine in ({"If-Match": changed.headers["etag"]}, {"If-Match": "*"}, {}):
        changed = await client.patch(path, json={"priority": "URGENT"}, headers=fine)
        assert changed.status_code == 200, fine
    for wrong in ({"priority": "SOON"}, {}, {"priority": "STAT", "state": "completed"}, [], None):
        answer = await client.patch(path, json=wrong)
        assert answer.status_code == 422, wrong
    hand.complete(analysis_id)
    answer = await client.patch(path, json={"priority": "STAT"})
    assert (answer.status_code, answer.json()["reason"]) == (409, "conflict")


async def test_a_failed_analysis_is_tried_again_as_one_more_run(client: httpx.AsyncClient, hand: Hand) -> None:
    analysis_id = await ordered(client)
    path = f"/v1/analyses/{analysis_id}"
    refused = await client.post(f"{path}/retry")
    assert (refused.status_code, refused.json()["reason"]) == (409, "conflict")
    hand.fail(analysis_id, "archive-unavailable", "The archive does not answer.")
    stale = await client.post(f"{path}/retry", headers={"If-Match": '"old"'})
    assert stale.status_code == 412
    again = await client.post(f"{path}/retry")
    assert again.status_code == 202
    assert (again.json()["state"], again.json()["run"], again.json()["failure"]) == ("accepted", 2, None)
    hand.complete(analysis_id)
    assert (await client.get(f"{path}/report")).status_code == 200


async def test_a_held_analysis_names_what_differs_and_goes_on_when_a_person_says_so(
    client: httpx.AsyncClient, hand: Hand, state: Path, ledger: Ledger
) -> None:
    analysis_id = await ordered(client, patient={"id": "P^1"})
    path = f"/v1/analyses/{analysis_id}"
    hand.hold(analysis_id)
    shown = (await client.get(path)).json()
    assert shown["state"] == "held-identity"
    assert shown["held"] == [{"attribute": "PatientID", "series": "1.2.3.4", "problem": "differs"}]
    report = await client.get(f"{path}/report")
    assert (report.status_code, report.json()["state"]) == (409, "held-identity")
    refused = await client.post(f"{path}/release", json={"reason": "I am the server's key"})
    assert (refused.status_code, refused.json()["reason"]) == (403, "wrong-scope")
    async with calling_as(state, ledger, PERSON) as person:
        for wrong in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1025}, {"reason": "\x00"}):
            assert (await person.post(f"{path}/release", json=wrong)).status_code == 422, wrong
        released = await person.post(f"{path}/release", json={"reason": "Relabelled; checked."})
        assert (released.status_code, released.json()["state"], released.json()["held"]) == (202, "running", [])
        again = await person.post(f"{path}/release", json={"reason": "Twice"})
        assert (again.status_code, again.json()["reason"]) == (409, "conflict")
    [record] = [each for each in audited(ledger) if each["subtype"] == "analysis-released"]
    assert (record["actor"], record["entity"]) == (PERSON.subject, analysis_id)


async def test_a_system_signs_nothing_whatever_its_token_says(hand: Hand, state: Path, ledger: Ledger) -> None:
    async with calling_as(state, ledger, principal(*Scope, kind=PrincipalKind.SYSTEM)) as system:
        analysis_id = await ordered(system)
        hand.complete(analysis_id)
        for name, body in (("sign", {}), ("amend", {"reason": "a", "text": "b"}), ("release", {"reason": "a"})):
            answer = await system.post(f"/v1/analyses/{analysis_id}/{name}", json=body)
            assert (answer.status_code, answer.json()["reason"]) == (403, "wrong-scope"), name


async def test_what_was_read_before_somebody_else_signed_cannot_be_signed(
    hand: Hand, state: Path, ledger: Ledger
) -> None:
    async with calling_as(state, ledger, PERSON) as person:
        analysis_id = await ordered(person)
        path = f"/v1/analyses/{analysis_id}"
        waiting = await person.post(f"{path}/sign")
        assert (waiting.status_code, waiting.json()["reason"]) == (409, "report-not-ready")
        hand.complete(analysis_id)
        tag = (await person.get(path)).headers["etag"]
        hand.revise(analysis_id, PERSON)
        for name, body in (("sign", {}), ("amend", {"reason": "a", "text": "b"})):
            answer = await person.post(f"{path}/{name}", json=body, headers={"If-Match": tag})
            assert (answer.status_code, answer.json()["reason"]) == (412, "precondition-failed")
            answer = await person.post(f"{path}/{name}", json=body | {"revision": 1})
            assert (answer.status_code, answer.json()["reason"]) == (412, "precondition-failed")


async def test_feedback_is_kept_with_the_revision_that_it_is_about(client: httpx.AsyncClient, hand: Hand) -> None:
    analysis_id = await ordered(client)
    path = f"/v1/analyses/{analysis_id}/feedback"
    early = await client.post(path, json={"verdict": "agree"})
    assert (early.status_code, early.json()["reason"]) == (409, "report-not-ready")
    hand.complete(analysis_id)
    finding = {"code": "35917007", "scheme": "SCT", "display": "Adenocarcinoma"}
    given = await client.post(path, json={"verdict": "amend", "finding": finding, "comment": "at the margin\nof B"})
    assert given.status_code == 201
    hand.revise(analysis_id, PERSON)
    await client.post(path, json={"verdict": "agree"})
    items = (await client.get(path)).json()["items"]
    assert [(each["verdict"], each["revision"], each["finding"]) for each in items] == [
        ("amend", 1, finding),
        ("agree", 2, None),
    ]
    assert items[0] == given.json()
    for wrong in ({"verdict": "maybe"}, {}, {"verdict": "agree", "series": "x"}, {"verdict": "agree", "finding": {}}):
        assert (await client.post(path, json=wrong)).status_code == 422, wrong


async def test_revisions_and_deliveries_are_told(client: httpx.AsyncClient, hand: Hand, ledger: Ledger) -> None:
    analysis_id = await ordered(client)
    path = f"/v1/analyses/{analysis_id}"
    assert (await client.get(f"{path}/revisions")).json() == {"items": []}
    assert (await client.get(f"{path}/deliveries")).json() == {"items": []}
    hand.complete(analysis_id)
    hand.revise(analysis_id, PERSON)
    revisions = (await client.get(f"{path}/revisions")).json()["items"]
    assert [(each["number"], each["state"], each["by"]) for each in revisions] == [
        (1, "preliminary", None),
        (2, "final", PERSON.subject),
    ]
    for revision, body in zip(revisions, (b'{"schema_version": "1.0"}', b"revision 2"), strict=True):
        assert (await client.get(revision["links"]["report"])).content == body
        assert (await client.get(revision["links"]["artifacts"])).status_code == 200
    assert (await client.get(f"{path}/report")).content == b"revision 2"
    missing = await client.get(f"{path}/report?revision=3")
    assert (missing.status_code, missing.json()["reason"]) == (404, "not-found")
    deliveries = (await client.get(f"{path}/deliveries")).json()["items"]
    assert [(each["channel"], each["revision"], each["state"]) for each in deliveries] == [
        ("stow", 1, "pending"),
        ("stow", 2, "pending"),
    ]
    due = ledger.outbox.due(1)[0]
    delivery = ledger.outbox.begin(due.workflow, "w")
    assert delivery is not None
    ledger.outbox.dead(delivery, "archive-refused", "The archive refused an object; see its log.")
    [dead] = [each for each in (await client.get(f"{path}/deliveries")).json()["items"] if each["state"] == "dead"]
    assert dead["reason"] == "archive-refused"
    hand.fail(await ordered(client), "kills-worker", "The worker died of it again and again.")
    status = (await client.get("/v1/status")).json()
    assert (status["dead_letters"], status["analyses"]) == (2, {"completed": 1, "failed": 1})


async def test_another_tenants_analyses_are_not_there(client: httpx.AsyncClient, state: Path, ledger: Ledger) -> None:
    theirs = await ordered(client)
    everything = principal(*Scope, tenant="elsewhere")
    async with calling_as(state, ledger, everything) as stranger:
        assert (await stranger.get("/v1/analyses")).json()["items"] == []
        for method, path, body in (
            *(("GET", each, None) for each in ("", "/events", "/report", "/artifacts", "/artifacts/report.json")),
            *(("GET", each, None) for each in ("/revisions", "/deliveries", "/feedback")),
            *(("DELETE", "", None), ("PATCH", "", {"priority": "STAT"}), ("POST", "/retry", None)),
            *(
                ("POST", "/release", {"reason": "a"}),
                ("POST", "/sign", {}),
                ("POST", "/feedback", {"verdict": "agree"}),
            ),
            ("POST", "/amend", {"reason": "a", "text": "b"}),
        ):
            answer = await stranger.request(method, f"/v1/analyses/{theirs}{path}", json=body)
            assert (answer.status_code, answer.json()["reason"]) == (404, "not-found"), path
            last = audited(ledger)[-1]
            assert (last["subtype"], last["entity"], last["tenant"]) == ("access-refused", theirs, "elsewhere"), path
            assert last["detail"]["reason"] == "wrong-tenant"
    assert (await client.get(f"/v1/analyses/{theirs}")).json()["state"] == "accepted"


async def test_if_match_takes_a_list_and_no_weak_tag(client: httpx.AsyncClient) -> None:
    path = "/v1/analyses/" + await ordered(client)
    tag = (await client.get(path)).headers["etag"]
    for stale in (f"W/{tag}", f'"old", W/{tag}', '"old", "older"', "old"):
        answer = await client.patch(path, json={"priority": "STAT"}, headers={"If-Match": stale})
        assert (answer.status_code, answer.json()["reason"]) == (412, "precondition-failed")
    changed = await client.patch(path, json={"priority": "STAT"}, headers={"If-Match": f'W/{tag}, "old",{tag}'})
    assert (changed.status_code, changed.json()["priority"]) == (200, "STAT")


async def test_a_filter_that_is_none_lets_nothing_through(client: httpx.AsyncClient) -> None:
    path = "/v1/analyses/" + await ordered(client)
    for wrong in ("/v1/analyses?acession=S26-1", "/v1/analyses?patient_id=P-1", f"{path}/artifacts?revison=1"):
        answer = await client.get(wrong)
        assert (answer.status_code, answer.json()["reason"]) == (400, "invalid-input")
    assert "accession" in (await client.get("/v1/analyses?acession=S26-1")).json()["detail"]
    # PostgreSQL cannot even be asked for it.
    assert (await client.get("/v1/analyses?protocol=%00")).status_code == 400


async def test_a_patients_id_in_a_header_is_utf_8(client: httpx.AsyncClient) -> None:
    path = "/v1/analyses/" + await ordered(client, patient={"id": "Größe-1"})
    for sent in ("Größe-1".encode(), "Größe-1".encode("latin-1")):
        found = (await client.get("/v1/analyses", headers=[(b"Patient-Id", sent)])).json()["items"]
        assert [each["links"]["self"] for each in found] == [path]
