"""`POST /oauth/token`: a system's signed assertion for an access token (RFC 6749 4.4, RFC 7523)."""

from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from gateway.http.access import Access
from gateway.operations.auth import TOKEN_PATH, Form, GrantRefused
from gateway.operations.errors import Unauthenticated

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


class TokenError(BaseModel):
    """RFC 6749 5.2."""

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
        grant = await anyio.to_thread.run_sync(access.authenticator.grant, form, access.address(request.scope))
    except Unauthenticated:
        return _error(401, "invalid_client", "A valid assertion of a registered client is needed.")
    except GrantRefused as error:
        return _error(400, error.error, error.description)
    return Token(access_token=grant.token, token_type="Bearer", expires_in=grant.expires_s, scope=grant.scope)  # noqa: S106


def _form(body: bytes) -> Form:
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=_FIELDS)
    except ValueError:
        return {}


def _error(status: int, error: str, description: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": error, "error_description": description}, status_code=status, headers=headers)
