"""`/v1/analyses`: accept, list, show and cancel."""

import base64
import binascii
import hashlib
import json
import re
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from gateway.analyses.ledger import Record
from gateway.analyses.order_form import EXAMPLE, OrderBody
from gateway.analyses.protocols import check_order
from gateway.domain.analysis import State
from gateway.http.context import AnalysisId, Here
from gateway.operations import codec
from gateway.operations.errors import InvalidInput, UnsupportedMediaType

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])

_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
_POLL_S = "2"


_EXAMPLE_ID = "0b2a3f5c-7c1d-4e2f-9a3b-5d6e7f809182"


class Accepted(BaseModel):
    """The answer to an accepted order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": _EXAMPLE_ID, "state": "accepted"}]})

    id: str
    state: State


class ProgressView(BaseModel):
    """How far the running step is; `total` is null while it is not known."""

    step: str
    done: int
    total: int | None
    unit: str


class FailureView(BaseModel):
    """Why an analysis failed: the stable reason, and a sentence that says what to do."""

    reason: str
    detail: str


_EXAMPLE_SUMMARY: dict[str, Any] = {
    "id": _EXAMPLE_ID,
    "state": "failed",
    "protocol": "tissue-classification",
    "priority": "ROUTINE",
    "accession": "S26-004711",
    "created": "2026-11-26T08:15:00Z",
    "updated": "2026-11-26T08:15:42Z",
    "cancel_requested": False,
    "progress": {"step": "fetch", "done": 2196612, "total": 2196612, "unit": "bytes"},
    "failure": {"reason": "no-tissue", "detail": "There is no tissue on this slide; scan it again."},
    "links": {"self": f"{router.prefix}/{_EXAMPLE_ID}", "events": f"{router.prefix}/{_EXAMPLE_ID}/events"},
}


class AnalysisSummary(BaseModel):
    """One analysis. `cancel_requested` is true from a DELETE until the worker has ended it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SUMMARY]})

    id: str
    state: State
    protocol: str
    priority: str
    accession: str | None
    created: datetime
    updated: datetime
    cancel_requested: bool
    progress: ProgressView | None
    failure: FailureView | None
    links: dict[str, str]


class PinnedModel(BaseModel):
    """One version of a model."""

    name: str
    version: str


class AnalysisView(AnalysisSummary):
    """One analysis with its order as it was accepted.

    `models` are the versions that it uses from its start to its end, an ensemble's steps too; empty before it starts.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [_EXAMPLE_SUMMARY | {"order": EXAMPLE, "models": [{"name": "tile_encoder", "version": "1"}]}]
        }
    )

    order: dict[str, Any]
    models: list[PinnedModel]


class AnalysisPage(BaseModel):
    """Newest first; `next` is the cursor of the next page, or null."""

    items: list[AnalysisSummary]
    next: str | None


def summary_of(record: Record) -> AnalysisSummary:
    analysis = record.analysis
    path = f"{router.prefix}/{analysis.id}"
    links = {"self": path, "events": f"{path}/events"}
    if analysis.state is State.COMPLETED:
        links |= {"report": f"{path}/report", "artifacts": f"{path}/artifacts"}
    return AnalysisSummary(
        id=analysis.id,
        state=analysis.state,
        protocol=analysis.order.protocol,
        priority=analysis.order.priority.value,
        accession=analysis.order.accession,
        created=analysis.created,
        updated=analysis.updated,
        cancel_requested=record.cancel_requested and not analysis.state.final,
        progress=ProgressView(**codec.dump(record.progress)) if record.progress else None,
        failure=FailureView(**codec.dump(analysis.failure)) if analysis.failure else None,
        links=links,
    )


def view_of(record: Record) -> AnalysisView:
    models = [PinnedModel(name=name, version=version) for name, version in record.models]
    return AnalysisView(**summary_of(record).model_dump(), order=codec.dump(record.analysis.order), models=models)


def _json_only(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("An order is sent as application/json. Set the Content-Type and send it again.")


@router.post(
    "",
    dependencies=[Depends(_json_only)],
    status_code=202,
    response_model=Accepted,
    summary="Order an analysis",
    responses={202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The analysis"}}}},
)
def accept(
    here: Here,
    response: Response,
    order: Annotated[OrderBody, Body(openapi_examples={"tissue-classification": {"value": EXAMPLE}})],
    idempotency_key: Annotated[
        str | None, Header(description="The same key with the same order is the same analysis")
    ] = None,
) -> Accepted:
    """The order is on disk when this answers. Follow `Location` until `state` is final."""
    if idempotency_key is not None and not _KEY.match(idempotency_key):
        raise InvalidInput("An Idempotency-Key has 1 to 255 printable ASCII characters without spaces.")
    asked = order.domain()
    check_order(asked)
    record, _ = here.ledger.accept(asked, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{record.analysis.id}"
    response.headers["Retry-After"] = _POLL_S
    # A repeated order gets the first answer again, whatever has become of the analysis meanwhile.
    return Accepted(id=record.analysis.id, state=State.ACCEPTED)


@router.get("", summary="List analyses, newest first")
def page(here: Here, limit: Annotated[int, Query(ge=1, le=200)] = 50, cursor: str | None = None) -> AnalysisPage:
    records = here.ledger.page(limit + 1, _number(cursor) if cursor is not None else None)
    following = _cursor(records[limit - 1].number) if len(records) > limit else None
    return AnalysisPage(items=[summary_of(record) for record in records[:limit]], next=following)


@router.get(
    "/{analysis_id}",
    response_model=AnalysisView,
    summary="Show one analysis",
    responses={304: {"description": "Nothing has changed since the ETag in If-None-Match"}},
)
def show(here: Here, analysis_id: AnalysisId, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    record = here.ledger.get(analysis_id)
    body = view_of(record).model_dump(mode="json")
    etag = '"' + hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32] + '"'
    headers = {"ETag": etag}
    if not record.analysis.state.final:
        headers["Retry-After"] = _POLL_S
    # A proxy that compresses marks our tag as weak; compared weakly it is the same (RFC 9110 13.1.2).
    known = () if if_none_match is None else (each.strip().removeprefix("W/") for each in if_none_match.split(","))
    if any(each in (etag, "*") for each in known):
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)


@router.delete(
    "/{analysis_id}",
    response_model=AnalysisView,
    status_code=202,
    summary="Cancel an analysis",
    responses={200: {"model": AnalysisView, "description": "It is cancelled"}},
)
def cancel(here: Here, analysis_id: AnalysisId, response: Response) -> AnalysisView:
    """A waiting analysis is cancelled at once (200); a running one ends within seconds (202).

    409 once its delivery has begun, or where it has ended otherwise.
    """
    record = here.ledger.cancel(analysis_id)
    if record.analysis.state.final:
        response.status_code = 200
    return view_of(record)


def _cursor(number: int) -> str:
    return base64.urlsafe_b64encode(f"n{number}".encode()).decode().rstrip("=")


def _number(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        if not re.fullmatch(r"n[0-9]{1,18}", text):
            raise ValueError
        return int(text[1:])
    except (ValueError, binascii.Error):
        raise InvalidInput("The cursor is not one that this server gave. Start again without it.") from None
