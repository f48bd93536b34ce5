"""`/v1/analyses/{id}/report`, `/artifacts` and `/deliveries`: what an analysis made, and where it went."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Annotated
from urllib.parse import quote

from fastapi import Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from gateway.analyses.reads import MEDIA_TYPES, REPORTS, ResultFile
from gateway.domain.principal import Scope
from gateway.http.context import AnalysisId, By, Here
from gateway.http.problems import problem
from gateway.http.routing import Responses, Router, is_known, needs
from gateway.http.views import PREFIX, Artifact, Artifacts, Deliveries, delivery_views, path_of
from gateway.operations.errors import NotAcceptable, RangeNotSatisfiable

router = Router(prefix=f"{PREFIX}/{{analysis_id}}", tags=["results"])

SEVERAL = "multipart/related"
_OFFERED = (*REPORTS, SEVERAL)
# The report's page is self-contained: inline style, pictures as data, no scripts.
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
_CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")

RevisionQuery = Annotated[
    int | None, Query(ge=1, le=10_000, description="This revision; the newest where it is left out")
]
_FILE: Responses = {
    200: {"headers": {"ETag": {"schema": {"type": "string"}, "description": "Changes with the content"}}},
    206: {"description": "The range that was asked for"},
    304: {"description": "The client has it already, by If-None-Match"},
    416: {"description": "The file has no such range"},
}


@router.get(
    "/report",
    response_class=Response,
    summary="The report",
    openapi_extra=needs(Scope.ANALYSES_READ),
    responses={
        **_FILE,
        200: _FILE[200] | {"content": {media_type: {} for media_type in _OFFERED}},
        406: {"description": "No such encoding"},
        409: {"description": "There is no report: not yet, or the analysis failed, was cancelled, or is held"},
    },
)
def report(
    here: Here,
    by: By,
    request: Request,
    analysis_id: AnalysisId,
    revision: RevisionQuery = None,
) -> Response:
    """JSON, or by `Accept` the HTML page, the DICOM structured report or the PDF.

    A case of several studies has one structured report in each: `application/dicom` is the first one, and `Link` names
    the others; `multipart/related; type="application/dicom"` is all of them in one answer (PS3.18 8.6.1.2).
    """
    media_type = negotiate(request.headers.get("accept"), _OFFERED)
    if media_type is None:
        raise NotAcceptable(f"The report comes as {', '.join(_OFFERED)}; ask for one of these.")
    if media_type == SEVERAL:
        return _multipart(here.service.documents(by, analysis_id, revision), request)
    file = here.service.report(by, analysis_id, media_type, revision)
    headers = {"Vary": "Accept"}
    if file.also:
        links = (f'<{_href(analysis_id, name, revision)}>; rel="item"' for name in file.also)
        headers["Link"] = ", ".join(links)
    return _file(file, request, headers)


@router.get(
    "/artifacts",
    response_model=Artifacts,
    summary="The files of an analysis",
    openapi_extra=needs(Scope.ANALYSES_READ),
)
def artifacts(here: Here, by: By, analysis_id: AnalysisId, revision: RevisionQuery = None) -> Artifacts:
    """Of its newest revision, or of that one; pictures and maps are the same in all."""
    return Artifacts(
        items=[
            Artifact(
                name=file.name,
                media_type=file.media_type,
                bytes=file.bytes,
                href=_href(analysis_id, file.name, revision),
            )
            for file in here.service.artifacts(by, analysis_id, revision)
        ]
    )


@router.get(
    "/artifacts/{name}",
    response_class=FileResponse,
    summary="One file of an analysis",
    openapi_extra=needs(Scope.ANALYSES_READ),
    responses={**_FILE, 200: _FILE[200] | {"content": {media_type: {} for media_type in MEDIA_TYPES}}},
)
def artifact(
    here: Here, by: By, request: Request, analysis_id: AnalysisId, name: str, revision: RevisionQuery = None
) -> Response:
    return _file(here.service.artifact(by, analysis_id, name, revision), request, {})


@router.get(
    "/deliveries",
    response_model=Deliveries,
    summary="What of an analysis left the house",
    openapi_extra=needs(Scope.ANALYSES_READ),
)
def deliveries(here: Here, by: By, analysis_id: AnalysisId) -> Deliveries:
    """To the archive and to webhooks; what is `dead` is replayed by `pathserve deliveries replay`."""
    return delivery_views(here.service.deliveries(by, analysis_id))


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


def _href(analysis_id: str, name: str, revision: int | None) -> str:
    path = f"{path_of(analysis_id)}/artifacts/{quote(name)}"
    return path if revision is None else f"{path}?revision={revision}"


def _file(file: ResultFile, request: Request, headers: dict[str, str]) -> Response:
    etag = f'"{file.etag}"'
    headers = headers | {"ETag": etag}
    if is_known(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if file.path.suffix == ".html":
        headers["Content-Security-Policy"] = _PAGE_POLICY
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", etag) != etag:
        return _Whole(file.path, media_type=file.media_type, headers=headers)
    ranges = _ranges(wanted, file.bytes)
    if ranges is None:
        return _Whole(file.path, media_type=file.media_type, headers=headers)
    if not all(0 <= first < file.bytes for first in ranges):
        refusal = RangeNotSatisfiable("The file is shorter than the range that was asked for. Ask for less of it.")
        return problem(refusal, instance=request.url.path, headers={"Content-Range": f"bytes */{file.bytes}"})
    return FileResponse(file.path, media_type=file.media_type, headers=headers)


class _Whole(FileResponse):
    """The whole file whatever range was asked for: one that cannot be read is ignored (RFC 9110 14.2)."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        headers = [each for each in scope["headers"] if each[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _ranges(header: str, size: int) -> list[int] | None:
    """Where each of the ranges begins; None where the header is none of RFC 9110 14.1.2, in bytes."""
    unit, _, listed = header.partition("=")
    found = [_RANGE.fullmatch(each.strip()) for each in listed.split(",")]
    if unit.strip().lower() != "bytes" or not all(found):
        return None
    starts = []
    for match in found:
        assert match is not None
        first, last = match.groups()
        if (not first and not last) or (first and last and int(last) < int(first)):
            return None
        starts.append(int(first) if first else max(size - int(last), 0) if int(last) else size)
    return starts


def _multipart(files: Sequence[ResultFile], request: Request) -> Response:
    # Another representation than one document alone, though it be of one (RFC 9110 8.8.3.3).
    digest = hashlib.sha256("-".join([SEVERAL, *(file.etag for file in files)]).encode()).hexdigest()[:32]
    etag = f'"{digest}"'
    headers = {"Vary": "Accept", "ETag": etag}
    if is_known(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    # The same bytes for the same tag.
    media_type = f'{SEVERAL}; type="application/dicom"; boundary={digest}'
    return StreamingResponse(_parts([file.path for file in files], digest), media_type=media_type, headers=headers)


def _parts(paths: Sequence[FilePath], boundary: str) -> Iterator[bytes]:
    for path in paths:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
