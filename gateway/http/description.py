"""What the API says of itself: OpenAPI 3.1."""

from typing import Any

from fastapi import FastAPI

from gateway.domain.principal import Scope
from gateway.http.problems import MEDIA_TYPE, Problem
from gateway.operations.auth import TOKEN_PATH

DESCRIPTION = (
    "Clinical inference server for digital pathology: order an analysis of a DICOM slide, follow it, read its report, "
    "sign it. Research use, not a medical device. Every error is an RFC 9457 problem whose `reason` is stable. "
    "Each caller may make a number of requests a second (`RateLimit-Policy`); what is over it is answered 429 with "
    "`Retry-After`. HEAD is taken wherever GET is."
)
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served as it is", **_PROBLEM},
    "5XX": {"description": "The server cannot serve it now", **_PROBLEM},
}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, or an access token of the identity provider or of `/oauth/token`. The scopes: "
    + ", ".join(f"`{scope.value}`" for scope in Scope)
    + "; `analyses:sign` is a person's alone.",
}


def described(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        # The framework's own shape of a validation error is never sent: ours is.
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        document["components"]["securitySchemes"] = {"bearer": _BEARER}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _not_null(parameter["schema"])
                if path == TOKEN_PATH:
                    operation["security"] = []
                    continue
                for status, response in operation["responses"].items():
                    if status.startswith("4"):
                        response |= _PROBLEM
        app.openapi_schema = document
    return app.openapi_schema


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the null that stands for a parameter that is left out: nobody can send it."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    kind: dict[str, Any] = kinds[0]
    return {name: value for name, value in schema.items() if name != "anyOf"} | kind
