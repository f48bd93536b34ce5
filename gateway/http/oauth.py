"""`POST /oauth/token`: a system's signed assertion for an access token (RFC 6749 4.4, RFC 7523)."""

import json
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from gateway.http.access import Access, refused
from gateway.http.problems import Problem
from gateway.operations.auth import TOKEN_PATH, Form, GrantRefused
from gateway.operations.errors import InvalidInput, PathserveError, Unauthenticated

router = APIRouter(tags=["access"])

_FIELDS = 20
_FORM = "application/x-www-form-urlencoded"


class Token(BaseModel):
    """RFC 6749 5.1."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": "pathserve_token_3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                    "token_type": "Bearer",
                    "expires_in": 300,
                    "scope": "analyses:read analyses:write",
                }
            ]
        }
    )

    access_token: str
    token_type: str
    expires_in: int
    scope: str


class TokenError(Problem):
    """RFC 6749 5.2, with the members of a problem beside its own."""

    model_config = ConfigDict(json_schema_extra={"examples": []})

    error: str
    error_description: str


@router.post(
    TOKEN_PATH,
    summary="Get an access token",
    response_model=Token,
    responses={
        400: {"model": TokenError, "description": "The client is known, but not what it asks for"},
        401: {"model": TokenError, "description": "No valid assertion of a registered client"},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _FORM: {
                    "schema": {
                        "type": "object",
                        "required": ["grant_type", "client_assertion_type", "client_assertion"],
                        "properties": {
                            "grant_type": {"type": "string", "const": "client_credentials"},
                            "client_assertion_type": {
                                "type": "string",
                                "const": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                            },
                            "client_assertion": {"type": "string", "description": "JWT, signed with the client's key"},
                            "scope": {"type": "string", "description": "Scopes with blanks between them"},
                        },
                    }
                }
            },
        }
    },
)
async def token(request: Request) -> Any:
    """For registered systems: `private_key_jwt`, each assertion for this address, taken once, at most 5 min old."""
    access: Access = request.app.state.access
    form = _form(await request.body()) if request.headers.get("content-type", "").startswith(_FORM) else {}
    try:
        grant = await access.grant(request.scope, form)
    except Unauthenticated:
        return _error(Unauthenticated("A valid assertion of a registered client is needed."), "invalid_client")
    except GrantRefused as error:
        return _error(InvalidInput(error.description), error.error)
    return Token(access_token=grant.token, token_type="Bearer", expires_in=grant.expires_s, scope=grant.scope)  # noqa: S106


def _form(body: bytes) -> Form:
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=_FIELDS)
    except ValueError:
        return {}


def _error(error: PathserveError, name: str) -> JSONResponse:
    """Clients of OAuth 2.0 look for its two members in plain JSON; everybody else finds a problem."""
    answer = refused(error)
    body = json.loads(bytes(answer.body)) | {"error": name, "error_description": error.detail}
    headers = {key: value for key, value in answer.headers.items() if not key.startswith("content-")}
    return JSONResponse(body, answer.status_code, headers)
