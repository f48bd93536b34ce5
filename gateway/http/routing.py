"""How our routes differ from the framework's: HEAD beside every GET, strict JSON and queries, each one's scope."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from gateway.domain.principal import Scope
from gateway.operations.errors import InvalidInput, UnsupportedMediaType

MIME = "application/json"

Responses = dict[int | str, dict[str, Any]]
"""What an operation may answer, by status, as OpenAPI describes it."""


class _JsonRequest(Request):
    """A request whose JSON has been read already."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = b"read"
        self._value = value

    async def json(self) -> Any:
        return self._value


class JsonRoute(APIRoute):
    """Takes a body as JSON of RFC 8259 and nothing else: no NaN, and no name twice, which may be read either way.

    Where a path takes query parameters, it takes no others: a filter that is misspelt would let everything through.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        known = sorted(each.alias for each in self.dependant.query_params)

        async def strict(request: Request) -> Response:
            if known and any(name not in known for name in request.query_params):
                raise InvalidInput(f"This path takes no other query parameters than {', '.join(known)}. Correct it.")
            if takes_body:
                body = await request.body()
                if body:
                    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MIME:
                        raise UnsupportedMediaType(f"A body is sent as {MIME}. Set the Content-Type and send it again.")
                    request = _JsonRequest(request, parse(body))
            return await handle(request)

        return strict


class Router(APIRouter):
    """A router of such routes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(route_class=JsonRoute, **settings)

    def get(self, path: str, **settings: Any) -> Callable[[Any], Any]:
        """GET, and HEAD, which is the same without its body (RFC 9110 9.3.2)."""

        def decorate(endpoint: Any) -> Any:
            hidden = {name: value for name, value in settings.items() if name != "summary"}
            self.add_api_route(path, endpoint, methods=["HEAD"], **hidden | {"include_in_schema": False})
            self.add_api_route(path, endpoint, methods=["GET"], **settings)
            return endpoint

        return decorate


def needs(scope: Scope) -> dict[str, Any]:
    """For `openapi_extra`: the scope that an operation needs. The use-case checks it."""
    return {"security": [{"bearer": [scope.value]}]}


def examples_of(body: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_examples`: the examples of a body's own schema."""
    examples = body.model_config["json_schema_extra"]["examples"]  # type: ignore[index]
    return {f"{body.__name__}-{number}": {"value": each} for number, each in enumerate(examples, 1)}  # type: ignore


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this version already, by its `If-None-Match` (RFC 9110 13.1.2)."""
    # A proxy that compresses marks our tag as weak; compared weakly it is the same.
    known = () if if_none_match is None else (each.strip().removeprefix("W/") for each in if_none_match.split(","))
    return any(each in (etag, "*") for each in known)


def parse(body: bytes) -> Any:
    """The JSON value. Raises InvalidInput."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise InvalidInput(
            "The body is not valid JSON (UTF-8 without a byte order mark, each name once, no NaN). Correct it and send "
            "it again."
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _refused(constant: str) -> Any:
    raise ValueError(constant)
