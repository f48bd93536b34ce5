"""`GET /v1/audit`: the tenant's records, page by page, to whoever has the scope."""

from pathlib import Path

from gateway.analyses.ledger import Ledger
from gateway.domain.principal import Scope
from gateway.operations.audit import Action, AuditEvent, AuditQuery, EventType
from tests.http.conftest import ORDER, calling_as, principal


def note(ledger: Ledger, tenant: str, subtype: str = "tested") -> None:
    ledger.audit(AuditEvent(type=EventType.QUERY, subtype=subtype, action=Action.READ, tenant=tenant))


async def test_the_trail_is_read_page_by_page(state: Path, ledger: Ledger) -> None:
    auditor = principal(Scope.AUDIT_READ)
    async with calling_as(state, ledger, principal(Scope.ANALYSES_WRITE)) as client:
        assert (await client.post("/v1/analyses", json=ORDER)).status_code == 202
    for _ in range(3):
        note(ledger, auditor.tenant)
    async with calling_as(state, ledger, auditor) as client:
        first = (await client.get("/v1/audit", params={"limit": 3})).json()
        assert [each["subtype"] for each in first["items"]] == ["analysis-created", "tested", "tested"]
        assert first["items"][0]["detail"] == {"protocol": ORDER["protocol"]}
        rest = (await client.get("/v1/audit", params={"after": first["next"]})).json()
    # What was read is a record as well, of the reading before.
    assert [each["subtype"] for each in rest["items"]] == ["tested", "audit-read"]
    assert rest["next"] is None
    whole = ledger.trail.page(AuditQuery())
    assert [each["hash"] for each in first["items"] + rest["items"]] == [each.hash for each in whole[:5]]


async def test_another_tenants_records_are_not_there(state: Path, ledger: Ledger) -> None:
    note(ledger, "another", "secret")
    note(ledger, "", "of-the-server")
    async with calling_as(state, ledger, principal(Scope.AUDIT_READ)) as client:
        assert (await client.get("/v1/audit")).json() == {"items": [], "next": None}


async def test_records_of_a_time(state: Path, ledger: Ledger) -> None:
    auditor = principal(Scope.AUDIT_READ)
    note(ledger, auditor.tenant)
    time = ledger.trail.page(AuditQuery())[0].time.isoformat()
    async with calling_as(state, ledger, auditor) as client:
        assert len((await client.get("/v1/audit", params={"since": time})).json()["items"]) == 1
        assert (await client.get("/v1/audit", params={"until": time})).json()["items"] == []
        beyond = {"since": "0001-01-01T00:00:00+14:00"}, {"until": "9999-12-31T23:59:59-14:00"}
        for wrong in (*beyond, {"since": "yesterday"}, {"after": "-1"}, {"limit": "1001"}):
            assert (await client.get("/v1/audit", params=wrong)).status_code == 400
