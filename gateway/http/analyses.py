"""`/v1/analyses`: order, list, show, change and cancel."""

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, ValidationError

from gateway.analyses.forms import BatchBody, PriorityBody, ReleaseBody
from gateway.analyses.ledger.queries import AnalysisQuery
from gateway.analyses.ledger.records import Record
from gateway.analyses.order_form import EXAMPLE, Long, OrderBody, Short, Uid
from gateway.domain.analysis import State
from gateway.domain.order import Order, Priority
from gateway.domain.principal import Scope
from gateway.http.context import AnalysisId, By, Here, IfMatch
from gateway.http.problems import problem_of, validation_problem
from gateway.http.routing import Responses, Router, examples_of, is_known, needs
from gateway.http.views import (
    PREFIX,
    Accepted,
    AnalysisPage,
    AnalysisView,
    BatchAnswers,
    etag_of,
    path_of,
    summary_of,
    view_of,
)
from gateway.operations.errors import PathserveError

router = Router(tags=["analyses"])

_POLL_S = "2"


def _rfc3339(text: object) -> object:
    if not isinstance(text, str) or "T" not in text.upper():
        raise ValueError("must be a time with its offset, e.g. 2026-11-26T08:15:00Z")
    return text


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:  # its offset leads out of the years 1 to 9999
        raise ValueError("must be a time of the years 1 to 9999") from None


def _utf8(header: object) -> object:
    """Of a header's bytes, which the framework reads as Latin-1, the text: clients send UTF-8, some Latin-1."""
    try:
        return header.encode("latin-1").decode() if isinstance(header, str) else header
    except ValueError:
        return header


Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc)]
_KEY = r"^[\x21-\x7e]{1,255}$"
_CHANGED: Responses = {412: {"description": "It has changed since the ETag in If-Match"}}


@router.post(
    PREFIX,
    status_code=202,
    response_model=Accepted,
    summary="Order an analysis",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
    responses={202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The analysis"}}}},
)
def accept(
    here: Here,
    by: By,
    order: Annotated[OrderBody, Body(openapi_examples={"tissue-classification": {"value": EXAMPLE}})],
    idempotency_key: Annotated[
        str | None, Header(description="The same key with the same order is the same analysis", pattern=_KEY)
    ] = None,
) -> Response:
    """The order is on disk when this answers. Follow `Location` until `state` is final."""
    record, _ = here.service.create(by, order.domain(), idempotency_key)
    analysis_id = record.analysis.id
    # A repeated order gets the first answer again, whatever has become of the analysis meanwhile.
    return JSONResponse(
        {"id": analysis_id, "state": State.ACCEPTED.value},
        202,
        {"Location": path_of(analysis_id), "Retry-After": _POLL_S},
    )


@router.post(
    f"{PREFIX}:batch",
    status_code=207,
    response_model=BatchAnswers,
    summary="Order several analyses",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
)
def accept_batch(
    here: Here, by: By, batch: Annotated[BatchBody, Body(openapi_examples=examples_of(BatchBody))]
) -> Response:
    """Each order is accepted or refused on its own merits, and answered in its place with a status of its own; those
    that are accepted are on disk when this answers."""
    answers: list[dict[str, Any] | None] = []
    asked: list[tuple[Order, str | None]] = []
    for item in batch.orders:
        try:
            asked.append((OrderBody.model_validate(item.order).domain(), item.idempotency_key))
            answers.append(None)
        except ValidationError as error:
            found = validation_problem(error.errors(include_url=False, include_input=False), None, in_body=True)
            answers.append({"status": found["status"], "problem": found})
    outcomes = iter(here.service.create_batch(by, asked))
    items = [_outcome(next(outcomes)) if answer is None else answer for answer in answers]
    return JSONResponse({"items": items}, 207)


def _outcome(outcome: Record | PathserveError) -> dict[str, Any]:
    if isinstance(outcome, PathserveError):
        found = problem_of(outcome)
        return {"status": found["status"], "problem": found}
    return {"status": 202, "id": outcome.analysis.id, "state": State.ACCEPTED.value}


@router.get(
    PREFIX,
    response_model=AnalysisPage,
    summary="List analyses, newest first",
    openapi_extra=needs(Scope.ANALYSES_READ),
    responses={200: {"headers": {"Link": {"schema": {"type": "string"}, "description": 'rel="next": what follows'}}}},
)
def page(
    here: Here,
    by: By,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
    state: State | None = None,
    protocol: Long | None = None,
    priority: Priority | None = None,
    accession: Short | None = None,
    study: Uid | None = None,
    created_after: Annotated[Time | None, Query(description="Accepted then or later")] = None,
    created_before: Annotated[Time | None, Query(description="Accepted before")] = None,
    patient_id: Annotated[
        Long | None, BeforeValidator(_utf8), Header(description="Only this patient's, as the order gives the id")
    ] = None,
    patient_issuer: Annotated[Long | None, BeforeValidator(_utf8), Header(description="The issuer of that id")] = None,
) -> Response:
    """All that fit every filter. A cursor belongs to its filters: give the same ones with it.

    The patient is asked for in headers, since addresses are written to many logs.
    """
    query = AnalysisQuery(
        state=state,
        protocol=protocol,
        priority=priority,
        accession=accession,
        patient_id=patient_id,
        patient_issuer=patient_issuer,
        study=study,
        created_after=created_after,
        created_before=created_before,
    )
    found = here.service.page(by, query, limit, cursor)
    headers = {}
    if found.next is not None:
        kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
        headers["Link"] = f'<{PREFIX}?{urlencode([*kept, ("cursor", found.next)])}>; rel="next"'
    return JSONResponse({"items": [summary_of(each) for each in found.items], "next": found.next}, headers=headers)


@router.get(
    f"{PREFIX}/{{analysis_id}}",
    response_model=AnalysisView,
    summary="Show one analysis",
    openapi_extra=needs(Scope.ANALYSES_READ),
    responses={
        200: {"headers": {"ETag": {"schema": {"type": "string"}, "description": "Changes with the analysis"}}},
        304: {"description": "Nothing has changed since the ETag in If-None-Match"},
    },
)
def show(
    here: Here, by: By, analysis_id: AnalysisId, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Its order, its state, how far it is. Asked with `If-None-Match`, what has not changed is answered 304."""
    record = here.service.get(by, analysis_id)
    headers = _headers(record)
    if is_known(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return JSONResponse(view_of(record), headers=headers)


@router.patch(
    f"{PREFIX}/{{analysis_id}}",
    response_model=AnalysisView,
    summary="Change the priority",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
    responses=_CHANGED,
)
def prioritise(
    here: Here,
    by: By,
    analysis_id: AnalysisId,
    change: Annotated[PriorityBody, Body(openapi_examples=examples_of(PriorityBody))],
    if_match: IfMatch,
) -> Response:
    """Of an analysis that has not ended: 409 afterwards."""
    record = if_match.change(
        lambda version: here.service.prioritise(by, analysis_id, change.priority, if_match=version)
    )
    return JSONResponse(view_of(record), headers=_headers(record))


@router.delete(
    f"{PREFIX}/{{analysis_id}}",
    response_model=AnalysisView,
    status_code=202,
    summary="Cancel an analysis",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
    responses={200: {"model": AnalysisView, "description": "It is cancelled"}, **_CHANGED},
)
def cancel(here: Here, by: By, analysis_id: AnalysisId, if_match: IfMatch) -> Response:
    """A waiting analysis is cancelled at once (200); a running one ends within seconds (202).

    409 once its delivery has begun, or where it has ended otherwise.
    """
    record = if_match.change(lambda version: here.service.cancel(by, analysis_id, if_match=version))
    return JSONResponse(view_of(record), 200 if record.analysis.state.final else 202, _headers(record))


@router.post(
    f"{PREFIX}/{{analysis_id}}/retry",
    response_model=AnalysisView,
    status_code=202,
    summary="Try a failed or cancelled analysis again",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
    responses=_CHANGED,
)
def retry(here: Here, by: By, analysis_id: AnalysisId, if_match: IfMatch) -> Response:
    """It is accepted again, under its id, with a new deadline; 409 where it has not ended so."""
    record = if_match.change(lambda version: here.service.retry(by, analysis_id, if_match=version))
    return JSONResponse(view_of(record), 202, _headers(record))


@router.post(
    f"{PREFIX}/{{analysis_id}}/release",
    response_model=AnalysisView,
    status_code=202,
    summary="Let a held analysis go on",
    openapi_extra=needs(Scope.ANALYSES_SIGN),
)
def release(
    here: Here,
    by: By,
    analysis_id: AnalysisId,
    release: Annotated[ReleaseBody, Body(openapi_examples=examples_of(ReleaseBody))],
) -> Response:
    """A person answers for it that order and slides belong together although they differ as `held` says.

    It covers these differences and no others: a new one holds the analysis again.
    """
    record = here.service.release(by, analysis_id, release.reason)
    return JSONResponse(view_of(record), 202, _headers(record))


def _headers(record: Record) -> dict[str, str]:
    headers = {"ETag": etag_of(record)}
    if not record.analysis.state.final:
        headers["Retry-After"] = _POLL_S
    return headers
