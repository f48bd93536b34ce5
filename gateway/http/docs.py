"""`/openapi.json` and `/docs`: the API's description, as JSON and as one page that needs nothing else."""

import json
from html import escape
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from gateway.http.context import By
from gateway.http.routing import Router

router = Router(include_in_schema=False)

PATHS = ("/openapi.json", "/docs")
"""What the description leaves out: itself."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #c8ced6 }
summary { cursor: pointer; padding: .35rem 0 } summary b { display: inline-block; min-width: 4.5rem }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { background: #f3f5f7; padding: .75rem; overflow: auto }
details > div { margin-left: 1.2rem } table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0 }
"""


@router.get("/openapi.json")
def openapi(request: Request, by: By) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
def page(request: Request, by: By) -> Response:
    return HTMLResponse(html_of(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})


def html_of(document: dict[str, Any]) -> str:
    """The description as a page: no script, nothing loaded from elsewhere."""
    sections: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            sections.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    info = document["info"]
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(found)}" for tag, found in sections.items())
    schemas = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pathserve API</title>'
        f"<style>{_STYLE}</style></head><body><h1>pathserve API {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])}</p>{body}<h2>schemas</h2>{schemas}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    scopes = [scope for each in operation.get("security", ()) for names in each.values() for scope in names]
    needed = f"<p>Scope: <code>{escape(', '.join(scopes))}</code></p>" if scopes else ""
    parameters = "".join(
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}</td>"
        f"<td>{escape(each.get('description', ''))}</td></tr>"
        for each in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    examples = "".join(
        f"<pre>{escape(json.dumps(example['value'], indent=2, ensure_ascii=False))}</pre>"
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for example in content.get("examples", {}).values()
    )
    return (
        f"<details><summary><b>{escape(method.upper())}</b> <code>{escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary><div><p>{escape(operation.get('description', ''))}</p>"
        f"{needed}<table>{parameters}</table>{examples}<table>{answers}</table></div></details>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    shown = json.dumps(schema, indent=2, ensure_ascii=False)
    return f"<details><summary><code>{escape(name)}</code></summary><div><pre>{escape(shown)}</pre></div></details>"
