"""The API put together: routers, error handlers, OpenAPI, and the shell around them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import FastAPI

from gateway import __version__
from gateway.analyses.ledger import Ledger
from gateway.http import analyses, events, health, models, oauth, results
from gateway.http.access import Access
from gateway.http.context import Context
from gateway.http.problems import MEDIA_TYPE, Problem, install_handlers
from gateway.http.shell import Shell
from gateway.operations.auth import TOKEN_PATH, ApiKey, Authenticator
from gateway.operations.settings import Settings

_DESCRIPTION = (
    "Clinical inference server for digital pathology: order an analysis of a DICOM slide, follow it, read its report. "
    "Research use, not a medical device. Every error is an RFC 9457 problem whose `reason` is stable."
)
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def build_api(context: Context | None = None) -> FastAPI:
    """The FastAPI application; without a context it can only describe itself."""
    app = FastAPI(
        title="pathserve",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={
            "4XX": {"description": "The request cannot be served as it is", **_PROBLEM},
            "5XX": {"description": "The server cannot serve it now", **_PROBLEM},
        },
    )
    app.state.context = context
    for module in (health, oauth, analyses, events, results, models):
        app.include_router(module.router)
    install_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def create_app(
    settings: Settings, ledger: Ledger, key: ApiKey, worker_since: Callable[[], datetime | None] | None = None
) -> tuple[Shell, Context]:
    """The ASGI application that is served, and the context whose `stopping` ends its streams.

    `worker_since`: when the worker that this server brought was started, None while it does not run.
    """
    access = Access(Authenticator(settings, ledger._engine, key), proxied=settings.tls_elsewhere)
    context = Context(settings, ledger, access, worker_since=worker_since)
    api = build_api(context)
    api.state.access = access
    return Shell(api, access), context


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        # The framework's own shape of a validation error is never sent: ours is.
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                operation["security"] = [] if path in ("/livez", "/readyz", TOKEN_PATH) else [{"key": []}]
                for status, response in operation["responses"].items():
                    if status.startswith("4") and path != TOKEN_PATH:
                        response |= _PROBLEM
        app.openapi_schema = document
    return app.openapi_schema
