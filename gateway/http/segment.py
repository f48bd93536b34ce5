"""`/v1/segment`: masks of a region by words, answered at once."""

import asyncio
import base64
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import Body, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from gateway.analyses.order_form import CodeBody, RegionBody
from gateway.analyses.segment_form import EXAMPLE, SegmentBody
from gateway.domain.principal import Scope
from gateway.domain.prompts import code_of
from gateway.domain.report import Finding, FindingKind
from gateway.domain.segment import PromptMask, SegmentAnswer
from gateway.http.context import By, Here
from gateway.http.routing import Responses, Router, examples_of, needs
from gateway.http.views import PinnedModel
from gateway.operations import codec
from gateway.operations.errors import Cancelled
from gateway.operations.prompts import parse

router = Router(prefix="/v1", tags=["analyses"])

_TRIPLE = parse(EXAMPLE["prompts"][0])
_CATEGORY, _CODE = code_of(_TRIPLE)
_MASK: dict[str, Any] = {
    "prompt": EXAMPLE["prompts"][0],
    "triple": _TRIPLE.text,
    "category": codec.dump(_CATEGORY),
    "code": codec.dump(_CODE),
    "supported": True,
    "present": True,
    "presence": 0.97,
    "mpp": 0.25,
    "x_um": 1000.0,
    "y_um": 2000.0,
    "width_px": 4,
    "height_px": 4,
    "area_um2": 0.25,
    "area_fraction": 0.25,
    "png": "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAEAQAAAACBiqPTAAAAEElEQVR4nGNgYGBg+A+EAAYIAgBD6gP9AAAAAElFTkSuQmCC",
    "polygons": [[[[1000.3, 2000.3], [1000.3, 2000.7], [1000.7, 2000.7], [1000.7, 2000.3], [1000.3, 2000.3]]]],
    "tolerance_um": 0.125,
    "findings": [],
}


_PNG = {"contentEncoding": "base64", "contentMediaType": "image/png"}


class FindingView(BaseModel):
    """A remark that the reader must know."""

    kind: FindingKind
    code: CodeBody
    text: str


class MaskView(BaseModel):
    """The answer to one prompt. `triple` is how it was understood; `presence` the probability (0..1) that the object is
    in the region, `present` whether it counts as there: where not, the mask is empty.

    `png` is the mask: a PNG of one bit a pixel, white inside, of `width_px` × `height_px` pixels of `mpp` µm, its top
    left corner at `x_um`, `y_um`. `polygons` are its outlines, coordinates of a GeoJSON MultiPolygon in µm from the
    slide's top left corner, simplified by at most `tolerance_um`; where they have too many corners at that, what is no
    wider has none. `area_fraction` is that of the region (0..1). `supported`: the model was validated for this triple;
    where not, a finding says so.

    Of a slide with another stain than the models were made for (`stain-outside`, `stain-conflict`), `png` and
    `polygons` are empty, while presence and area are what was found. Of a prompt that the slide is too coarse for
    (`cannot-answer`) there are no pixels: `width_px` is 0, `png` an empty text, and nothing is said of the object:
    `present`, `presence`, `area_um2` and `area_fraction` are null.
    """

    prompt: str
    triple: str
    category: CodeBody
    code: CodeBody
    supported: bool
    present: bool | None
    presence: float | None
    mpp: float
    x_um: float
    y_um: float
    width_px: int
    height_px: int
    area_um2: float | None
    area_fraction: float | None
    png: Annotated[str, Field(json_schema_extra=_PNG)]
    polygons: list[list[list[tuple[float, float]]]]
    tolerance_um: float
    findings: list[FindingView]


class SegmentView(BaseModel):
    """A mask for each prompt, in their order; `models` are the versions that answered, `findings` about the slide."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {name: EXAMPLE[name] for name in ("study", "series", "region")}
                | {"models": [{"name": "pathseg", "version": "1"}], "findings": [], "masks": [_MASK]}
            ]
        }
    )

    study: str
    series: str
    region: RegionBody
    models: list[PinnedModel]
    findings: list[FindingView]
    masks: list[MaskView]


_ANSWERS: Responses = {
    404: {"description": "The archive holds no such slide"},
    409: {"description": "An identifier that is given is not the slide's"},
}


@router.post(
    "/segment",
    response_model=SegmentView,
    summary="Segment a region by words",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
    responses=_ANSWERS,
)
async def segment(
    here: Here,
    by: By,
    request: Request,
    ask: Annotated[SegmentBody, Body(openapi_examples=examples_of(SegmentBody))],
) -> JSONResponse:
    """At most 1,536 pixels a side at the resolution of the prompt: 384 µm for nuclei and cells, 1,536 µm for tissue. A
    further prompt on the same region is faster. The work ends with the connection. Nothing is kept of it but its
    record in the audit trail: order an analysis for a report."""
    answer = await _while_connected(request, here.service.segment(by, ask.domain()))
    return await asyncio.to_thread(lambda: JSONResponse(_shown(answer)))  # outlines are many numbers


async def _while_connected(request: Request, work: "Future[SegmentAnswer]") -> SegmentAnswer:
    """The result of some work, which ends where the client leaves."""
    answering = asyncio.wrap_future(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Cancelled("The client has left. Ask again.")
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shown(answer: SegmentAnswer) -> dict[str, Any]:
    return {
        "study": answer.study,
        "series": answer.series,
        "region": codec.dump(answer.region),
        "models": [{"name": name, "version": version} for name, version in answer.models],
        "findings": [_finding(each) for each in answer.findings],
        "masks": [_mask(each) for each in answer.masks],
    }


def _mask(mask: PromptMask) -> dict[str, Any]:
    return {
        **{name: getattr(mask, name) for name in MaskView.model_fields},
        "category": codec.dump(mask.category),
        "code": codec.dump(mask.code),
        "png": base64.b64encode(mask.png).decode("ascii"),
        "findings": [_finding(each) for each in mask.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {"kind": finding.kind.value, "code": codec.dump(finding.code), "text": finding.text}
