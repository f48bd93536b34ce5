"""`/v1/audit`: the tenant's part of the audit trail, for whoever watches over it."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from gateway.domain.principal import Scope
from gateway.http.analyses import Time
from gateway.http.context import By, Here
from gateway.http.routing import Router, needs
from gateway.http.views import EXAMPLE_ID

router = Router(tags=["audit"])

_EXAMPLE: dict[str, Any] = {
    "seq": 4711,
    "time": "2026-11-26T08:15:42.123456Z",
    "tenant": "default",
    "type": "110109",
    "subtype": "analysis-released",
    "action": "U",
    "outcome": "0",
    "actor": "person:7f3c",
    "actor_kind": "person",
    "address": "192.0.2.17",
    "entity_kind": "analysis",
    "entity": EXAMPLE_ID,
    "detail": {
        "attributes": ["accession"],
        "reason": "The container was relabelled; checked against the request form.",
    },
    "previous": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


class AuditView(BaseModel):
    """A record: docs/audit.md says what each member is. `hash` covers all others, and `previous` chains them; of one
    tenant's records alone the links cannot be followed, since other tenants' stand between them."""

    seq: int
    time: datetime
    tenant: str
    type: str
    subtype: str
    action: str
    outcome: str
    actor: str
    actor_kind: str
    address: str | None
    entity_kind: str | None
    entity: str | None
    detail: dict[str, Any]
    previous: str
    hash: str


class AuditPage(BaseModel):
    """Records in their order. `next` is the `after` of those that follow, null where there are none yet."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_EXAMPLE], "next": None}]})

    items: list[AuditView]
    next: int | None = None


@router.get(
    "/v1/audit", response_model=AuditPage, summary="Read the audit trail", openapi_extra=needs(Scope.AUDIT_READ)
)
def page(
    here: Here,
    by: By,
    after: Annotated[int, Query(ge=0, le=2**62, description="Records after the one of this number")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    since: Annotated[Time | None, Query(description="Written then or later")] = None,
    until: Annotated[Time | None, Query(description="Written before")] = None,
) -> AuditPage:
    """Oldest first. Each reading is a record itself. All tenants' records, and those of the server, are the command
    line's: `pathserve audit export`."""
    found = here.service.audit(by, after=after, limit=limit, since=since, until=until)
    items = [
        AuditView(
            **{name: getattr(each, name) for name in AuditView.model_fields if name != "detail"}, detail=each.details
        )
        for each in found
    ]
    return AuditPage(items=items, next=found[-1].seq if len(found) == limit else None)
