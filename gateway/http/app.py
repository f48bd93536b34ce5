"""The API put together: routers, error handlers, and the shell around them."""

import re
from collections.abc import Callable, Sequence

from fastapi import FastAPI
from prometheus_client import generate_latest

from gateway import __version__
from gateway.analyses.ledger import Ledger
from gateway.analyses.service import Service
from gateway.http import analyses, audit, docs, events, health, models, oauth, results, segment, signing, status
from gateway.http.access import Access
from gateway.http.context import Context
from gateway.http.description import DESCRIPTION, PROBLEMS, described
from gateway.http.problems import install_handlers
from gateway.http.shell import REGISTRY, Shell
from gateway.operations.auth import ApiKey, Authenticator
from gateway.operations.limits import RequestLimit
from gateway.operations.settings import Settings


def build_api(context: Context | None = None) -> FastAPI:
    """The FastAPI application; without a context it can only describe itself."""
    app = FastAPI(
        title="pathserve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    app.state.context = context
    for module in (health, oauth, analyses, events, signing, results, segment, models, status, audit, docs):
        app.include_router(module.router)
    install_handlers(app, _methods(app))
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    return app


def create_app(
    settings: Settings,
    ledger: Ledger,
    key: ApiKey,
    metrics: Callable[[], bytes] = lambda: generate_latest(REGISTRY),
) -> tuple[Shell, Context]:
    """The ASGI application that is served, and the context whose `stopping` ends its streams.

    `metrics`: what `/metrics` shows. Raises InvalidSetting.
    """
    service = Service(settings, ledger)
    context = Context(
        service=service,
        access=Access(Authenticator(settings, ledger.engine, key), proxied=settings.tls_elsewhere),
        limit=RequestLimit(settings.rate_limit),
        feed=service.feed(),
        metrics=metrics,
    )
    api = build_api(context)
    api.state.access = context.access
    return Shell(api, context.access, context.limit), context


def _methods(app: FastAPI) -> Callable[[str], Sequence[str]]:
    """What methods a path takes, by the API's own description."""
    known: list[tuple[re.Pattern[str], list[str]]] = []

    def methods_of(path: str) -> Sequence[str]:
        if not known:
            described = app.openapi()["paths"] | dict.fromkeys(docs.PATHS, ("get",))
            for template, operations in described.items():
                pattern = re.compile(re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(template)))
                methods = sorted({each.upper() for each in operations} | {"OPTIONS"})
                known.append((pattern, ["HEAD", *methods] if "GET" in methods else methods))
        return next((methods for pattern, methods in known if pattern.fullmatch(path)), ["OPTIONS"])

    return methods_of
