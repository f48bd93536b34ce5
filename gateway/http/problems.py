"""Errors as RFC 9457 problems: the one table of gateway.operations.errors, seen from HTTP."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from gateway.operations.errors import (
    Conflict,
    InvalidInput,
    InvalidOrder,
    MethodNotAllowed,
    NotFound,
    PathserveError,
    come_again_s,
    rim_of,
)

log = structlog.get_logger("gateway.http")

MEDIA_TYPE = "application/problem+json"
_SHOWN_ERRORS = 10


class Problem(BaseModel):
    """RFC 9457. `reason` is stable and machine-readable; `detail` says what happened and what to do."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:pathserve:problem:report-not-ready",
                    "title": "Report not ready",
                    "status": 409,
                    "detail": "The report is not ready yet. Ask again after the Retry-After time.",
                    "reason": "report-not-ready",
                    "instance": "/v1/analyses/0b2a3f5c-7c1d-4e2f-9a3b-5d6e7f809182/report",
                    "state": "running",
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    reason: str
    instance: str | None = None


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def problem_of(error: PathserveError, instance: str | None = None, **more: Any) -> dict[str, Any]:
    """The problem as JSON: the error's own members, and `more`."""
    body = {
        "type": f"urn:pathserve:problem:{error.reason}",
        "title": error.title,
        "status": rim_of(error).http,
        "detail": error.detail,
        "reason": error.reason,
    }
    if instance is not None:
        body["instance"] = instance
    return body | (error.more if isinstance(error, Conflict) else {}) | more


def problem(
    error: PathserveError, *, instance: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> ProblemResponse:
    """The response for an error of our tree; it says when to come again, where that is of use (RFC 9110 10.2.3)."""
    body = problem_of(error, instance, **more)
    status = body["status"]
    said = dict(headers or {})
    if (after_s := come_again_s(error)) is not None:
        said.setdefault("Retry-After", str(math.ceil(after_s)))
    return ProblemResponse(body, status_code=status, headers=said)


def internal_problem() -> ProblemResponse:
    return problem(PathserveError("An internal error stopped the request; the server's log has it. Try again later."))


def validation_problem(found: Sequence[Any], instance: str | None, *, in_body: bool) -> dict[str, Any]:
    """What pydantic found wrong, as a problem that names the fields and quotes nothing that was sent."""
    errors = [
        {"field": ".".join(_shown(part) for part in each["loc"]), "message": _message(each)}
        for each in found[:_SHOWN_ERRORS]
    ]
    named = "; ".join(f"{each['field'] or 'body'}: {each['message']}" for each in errors[:3])
    kind = InvalidOrder if in_body else InvalidInput
    answer = kind(f"The request is not valid ({named}). Correct it and send it again.")
    return problem_of(answer, instance, errors=errors)


def install_handlers(app: FastAPI, methods_of: Callable[[str], Sequence[str]]) -> None:
    """Make every error of ours and of the framework a problem. None quotes what was sent.

    `methods_of`: the methods that a path takes.
    """

    @app.exception_handler(PathserveError)
    async def ours(request: Request, error: PathserveError) -> ProblemResponse:
        if rim_of(error).http >= 500:
            log.error("request failed", reason=error.reason)
        return problem(error, instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> ProblemResponse:
        found = [{**each, "loc": each["loc"][1:], "where": each["loc"][0]} for each in error.errors()]
        in_body = any(each["where"] == "body" for each in found)
        body = validation_problem(found, request.url.path, in_body=in_body)
        return ProblemResponse(body, status_code=body["status"])

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        ours: PathserveError
        headers: dict[str, str] = {}
        if error.status_code == 404:
            ours = NotFound("There is nothing at this path; see /openapi.json for what there is.")
        elif error.status_code == 405:
            headers = {"Allow": ", ".join(methods_of(request.url.path))}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            ours = MethodNotAllowed("This path does not take this method; see /openapi.json for what it takes.")
        elif error.status_code < 500:
            ours = InvalidInput("The request cannot be read. Correct it and send it again.")
        else:
            return internal_problem()
        return problem(ours, instance=request.url.path, headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> ProblemResponse:
        return internal_problem()


def _shown(part: object) -> str:
    """One part of a field's place: names may be as wrong as what they name."""
    return str(part)[:64].encode("utf-8", "replace").decode()


def _message(error: Mapping[str, Any]) -> str:
    """Pydantic's message, unless it may quote the value."""
    text = str(error["msg"])
    return text if len(text) <= 200 else text[:197] + "..."
