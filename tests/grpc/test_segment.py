"""`Segment`: what `POST /v1/segment` answers, as messages; over the same service."""

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from gateway.analyses.segment_process import SegmentProcess
from gateway.grpc.proto.pathserve.v1 import order_pb2, segment_pb2
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from gateway.grpc.server import open_grpc
from gateway.operations.limits import RequestLimit
from tests.grpc.conftest import KEY, Signed, refusal
from tests.support.segmenting import SegmentSite

NUCLEI = "nuclei-level epithelial in colon pathology"


@pytest.fixture(scope="module")
def client(segments: SegmentSite) -> Iterator[Any]:
    service, access = segments.context.service, segments.context.access
    limit = RequestLimit(100_000)
    with (
        open_grpc(segments.settings, "127.0.0.1", service, access.authenticator, limit, lambda: True) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Signed(AnalysisServiceStub(channel), KEY)


def request_of(ask: dict[str, Any]) -> segment_pb2.SegmentRequest:
    return segment_pb2.SegmentRequest(**ask | {"region": order_pb2.Region(**ask["region"])})


def test_both_doors_give_the_same_masks(client: Any, segments: SegmentSite) -> None:
    ask = segments.ask(NUCLEI, "glomerulus")
    ask["region"]["polygon_um"] = [{"x_um": x, "y_um": y} for x, y in ((500, 400), (564, 400), (500, 448))]
    answer = client.Segment(request_of(ask), timeout=60)

    async def rest() -> Any:
        transport = httpx.ASGITransport(segments.app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://pathserve", headers=headers) as door:
            return (await door.post("/v1/segment", json=ask)).json()

    told = asyncio.run(rest())
    assert (answer.study, answer.series) == (told["study"], told["series"])
    assert [(each.name, each.version) for each in answer.models] == [
        (each["name"], each["version"]) for each in told["models"]
    ]
    assert [each.text for each in answer.findings] == [each["text"] for each in told["findings"]] != []
    assert len(answer.region.polygon_um) == 3
    assert len(answer.masks) == 2
    for mask, shown in zip(answer.masks, told["masks"], strict=True):
        assert mask.png == base64.b64decode(shown["png"])
        for name in ("prompt", "triple", "supported", "present", "presence", "mpp", "x_um", "y_um", "width_px"):
            assert getattr(mask, name) == shown[name], name
        for name in ("height_px", "area_um2", "area_fraction", "tolerance_um"):
            assert getattr(mask, name) == shown[name], name
        assert (mask.category.code, mask.code.code) == (shown["category"]["code"], shown["code"]["code"])
        assert [each.code.code for each in mask.findings] == [each["code"]["code"] for each in shown["findings"]]
        rings = [np.reshape(ring.xy_um, (-1, 2)) for polygon in mask.polygons for ring in polygon.rings]
        wanted = [np.array(ring) for polygon in shown["polygons"] for ring in polygon]
        assert [len(ring) for ring in rings] == [len(ring) for ring in wanted]
        assert all(np.allclose(one, other, atol=0.01) for one, other in zip(rings, wanted, strict=True))
    assert answer.masks[0].present
    assert answer.masks[0].polygons


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        ({"prompts": []}, "INVALID_ARGUMENT", "invalid-order", "prompts"),
        ({"prompts": ["x" * 10_240]}, "INVALID_ARGUMENT", "invalid-order", "prompts.0"),
        ({"prompts": ["unicorns in colon"]}, "INVALID_ARGUMENT", "prompt-invalid", None),
        (
            {"region": {"x_um": 0, "y_um": 0, "width_um": 0, "height_um": 1}},
            "INVALID_ARGUMENT",
            "invalid-order",
            "region.width_um",
        ),
        (
            {"region": {"x_um": 9e4, "y_um": 0, "width_um": 1, "height_um": 1}},
            "INVALID_ARGUMENT",
            "invalid-order",
            None,
        ),
        ({"study": "1.2.3"}, "NOT_FOUND", "slide-not-in-archive", None),
        ({"container": "another"}, "FAILED_PRECONDITION", "identity-mismatch", None),
    ],
)
def test_what_cannot_be_answered_has_its_status(
    client: Any, segments: SegmentSite, change: dict[str, Any], code: str, reason: str, field: str | None
) -> None:
    told = refusal(lambda: client.Segment(request_of(segments.ask(NUCLEI) | change), timeout=30))
    assert (told.code.name, told.reason) == (code, reason), told.message
    if field is not None:
        assert [each.field for each in told.details["BadRequest"].field_violations] == [field]


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_the_work_ends_with_the_call(
    client: Any, segments: SegmentSite, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    began, ended = threading.Event(), threading.Event()

    async def endless(self: SegmentProcess, ask: Any) -> Any:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    monkeypatch.setattr(SegmentProcess, "answer", endless)
    stub = client._stub.Segment
    call = stub.future(
        request_of(segments.ask(NUCLEI)), metadata=client._metadata, timeout=4 if how == "too late" else 60
    )
    assert began.wait(10)
    if how == "cancelled":
        call.cancel()
    until = time.monotonic() + 10
    while not call.done() and time.monotonic() < until:
        time.sleep(0.01)
    assert ended.wait(10)
