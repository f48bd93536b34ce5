"""`/v1/analyses/{id}/report` and `/artifacts`: what a completed analysis made."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from gateway.domain.analysis import State
from gateway.http.context import AnalysisId, Context, Here
from gateway.http.problems import problem
from gateway.operations.errors import Cancelled, Conflict, NotAcceptable, NotFound, ReportNotReady

router = APIRouter(prefix="/v1/analyses", tags=["results"])

_REPORTS = {
    "application/json": "report.json",
    "text/html": "report.html",
    "application/dicom": "report.sr.dcm",
    "application/pdf": "report.pdf",
}
_MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".dcm": "application/dicom",
    ".pdf": "application/pdf",
    ".geojson": "application/geo+json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
# The report's page is self-contained: inline style, pictures as data, no scripts.
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


class Artifact(BaseModel):
    """One file of the analysis."""

    name: str
    media_type: str
    bytes: int
    href: str


class Artifacts(BaseModel):
    """All files of the analysis, by name; none before it is completed."""

    items: list[Artifact]


@router.get(
    "/{analysis_id}/report",
    response_class=Response,
    summary="The report",
    responses={
        200: {"content": {media_type: {} for media_type in _REPORTS}},
        406: {"description": "No such encoding"},
        409: {"description": "There is no report: not yet, or the analysis failed or was cancelled"},
    },
)
def report(
    here: Here, request: Request, analysis_id: AnalysisId, accept: Annotated[str | None, Header()] = None
) -> Response:
    """JSON, or by `Accept` the HTML page, the DICOM structured report or the PDF."""
    record = here.ledger.get(analysis_id)
    state = record.analysis.state
    if state is not State.COMPLETED:
        failure = record.analysis.failure
        error: Conflict
        more = {"state": state.value}
        if failure is not None:
            error = Conflict(f"The analysis failed, so there is no report: {failure.detail}")
            more["reason"] = failure.reason
        elif state is State.CANCELLED:
            error = Cancelled("The analysis was cancelled, so there is no report. Order it again where it is needed.")
        else:
            error = ReportNotReady("The report is not ready yet. Ask again after the Retry-After time.")
        headers = {} if state.final else {"Retry-After": "2"}
        return problem(error, instance=request.url.path, headers=headers, **more)
    media_type = negotiate(accept, tuple(_REPORTS))
    if media_type is None:
        raise NotAcceptable(f"The report comes as {', '.join(_REPORTS)}; ask for one of these.")
    return _file(here.artifacts(analysis_id) / _REPORTS[media_type], {"Vary": "Accept"})


@router.get("/{analysis_id}/artifacts", summary="The files of an analysis")
def artifacts(here: Here, analysis_id: AnalysisId) -> Artifacts:
    return Artifacts(
        items=[
            Artifact(
                name=path.name,
                media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
                bytes=path.stat().st_size,
                href=f"{router.prefix}/{analysis_id}/artifacts/{path.name}",
            )
            for path in _artifacts(here, analysis_id)
        ]
    )


@router.get("/{analysis_id}/artifacts/{name}", response_class=FileResponse, summary="One file of an analysis")
def artifact(here: Here, analysis_id: AnalysisId, name: str) -> Response:
    for path in _artifacts(here, analysis_id):
        if path.name == name:
            return _file(path, {})
    raise NotFound("The analysis has no file of this name; see the list at its artifacts.")


def negotiate(accept: str | None, offered: tuple[str, ...]) -> str | None:
    """The offered media type that the Accept header likes best (RFC 9110 12.5.1); None where it likes none."""
    if accept is None or not accept.strip():
        return offered[0]
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        wanted[name] = max(weight, wanted.get(name, 0.0))

    def weight_of(media_type: str) -> float:
        for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
            if pattern in wanted:
                return wanted[pattern]
        return 0.0

    best = max(offered, key=weight_of)
    return best if weight_of(best) > 0.0 else None


def _artifacts(here: Context, analysis_id: str) -> list[Path]:
    if here.ledger.get(analysis_id).analysis.state is not State.COMPLETED:
        return []
    folder = here.artifacts(analysis_id)
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _file(path: Path, headers: dict[str, str]) -> Response:
    if not path.is_file():
        raise NotFound("This file of the analysis is no longer kept.")
    if path.suffix == ".html":
        headers = headers | {"Content-Security-Policy": _PAGE_POLICY}
    media_type = _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return FileResponse(path, media_type=media_type, headers=headers)
