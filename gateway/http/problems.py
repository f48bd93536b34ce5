"""Errors as RFC 9457 problems: the one table of gateway.operations.errors, seen from HTTP."""

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from gateway.operations.errors import (
    InvalidInput,
    InvalidOrder,
    MethodNotAllowed,
    NotFound,
    PathserveError,
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


def problem(
    error: PathserveError, *, instance: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> ProblemResponse:
    """The response for an error of our tree; `more` are further members."""
    status = rim_of(error).http
    body = {
        "type": f"urn:pathserve:problem:{error.reason}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "reason": error.reason,
    }
    if instance is not None:
        body["instance"] = instance
    return ProblemResponse(body | more, status_code=status, headers=dict(headers or {}))


def internal_problem() -> ProblemResponse:
    return problem(PathserveError("An internal error stopped the request; the server's log has it. Try again later."))


def install_handlers(app: FastAPI) -> None:
    """Make every error of ours and of the framework a problem. None quotes what was sent."""

    @app.exception_handler(PathserveError)
    async def ours(request: Request, error: PathserveError) -> ProblemResponse:
        if rim_of(error).http >= 500:
            log.error("request failed", reason=error.reason)
        return problem(error, instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> ProblemResponse:
        found = error.errors()
        if any(each["type"] == "json_invalid" for each in found):
            return problem(InvalidInput("The body is not valid JSON. Correct it and send it again."))
        errors = [
            {"field": ".".join(str(part)[:64] for part in each["loc"][1:]), "message": _message(each)}
            for each in found[:_SHOWN_ERRORS]
        ]
        named = "; ".join(f"{each['field'] or 'body'}: {each['message']}" for each in errors[:3])
        where = "order" if any(each["loc"][0] == "body" for each in found) else "request"
        kind = InvalidOrder if where == "order" else InvalidInput
        answer = kind(f"The {where} is not valid ({named}). Correct it and send it again.")
        return problem(answer, instance=request.url.path, errors=errors)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> ProblemResponse:
        ours: PathserveError
        if error.status_code == 404:
            ours = NotFound("There is nothing at this path; see /openapi.json for what there is.")
        elif error.status_code == 405:
            ours = MethodNotAllowed("This path does not take this method; see /openapi.json for what it takes.")
        elif error.status_code < 500:
            ours = InvalidInput("The request cannot be read. Correct it and send it again.")
        else:
            return internal_problem()
        return problem(ours, instance=request.url.path, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> ProblemResponse:
        return internal_problem()


def _message(error: Mapping[str, Any]) -> str:
    """Pydantic's message, unless it may quote the value."""
    text = str(error["msg"])
    return text if len(text) <= 200 else text[:197] + "..."
