"""Masks of one region over a real Triton, in this process: what is kept of a region, and what each level answers."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.analyses import region_masks
from gateway.analyses.region_masks import RegionMasks
from gateway.analyses.segment_engine import SegmentEngine
from gateway.analyses.segment_form import SegmentBody
from gateway.domain.segment import SegmentAnswer
from gateway.domain.slide import SlideRemark
from gateway.inference import TritonEngine
from gateway.operations.errors import InvalidOrder, ResolutionTooCoarse
from gateway.slides import windows
from gateway.slides.window_stream import WindowBatch, stream_windows
from tests.support.segmenting import SegmentSite

NUCLEI, OTHERS, GLANDS = (
    "nuclei-level epithelial in colon pathology",
    "nuclei-level inflammatory in colon pathology",
    "glands in the colon",
)


@pytest.fixture
async def masks(segments: SegmentSite) -> AsyncIterator[RegionMasks]:
    made = RegionMasks(segments.settings)
    yield made
    await made.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models in the order in which they were asked."""
    models: list[str] = []
    infer = TritonEngine.infer

    async def noted(self: TritonEngine, model: str, batch: Any, **more: Any) -> Any:
        models.append(model)
        return await infer(self, model, batch, **more)

    monkeypatch.setattr(TritonEngine, "infer", noted)
    return models


async def answer_of(
    masks: RegionMasks,
    segments: SegmentSite,
    *prompts: str,
    box: tuple[float, float, float, float] = (500, 400, 64, 48),
) -> SegmentAnswer:
    return await masks.answer(SegmentBody(**segments.ask(*prompts, box=box)).domain(), segments.ledger.choices.read())


async def test_a_further_prompt_costs_no_more_encoding_and_none_changes_another(
    masks: RegionMasks, segments: SegmentSite, asked: list[str]
) -> None:
    first = await answer_of(masks, segments, NUCLEI)
    assert "pathseg_image" in asked
    asked.clear()
    both = await answer_of(masks, segments, NUCLEI, OTHERS)
    assert "pathseg_image" not in asked
    assert "pathseg_prompt" in asked
    assert both.masks[0] == first.masks[0]
    assert both.masks[1].png == first.masks[0].png  # the known engines see but how dark it is
    await answer_of(masks, segments, NUCLEI, box=(600, 300, 64, 48))
    assert "pathseg_image" in asked


async def test_what_misses_frames_is_read_again(
    masks: RegionMasks, segments: SegmentSite, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*given: Any, **more: Any) -> Iterator[WindowBatch]:
        for batch in stream_windows(*given, **more):
            yield replace(batch, missing=((0, 0), (0, 1)))

    with monkeypatch.context() as patched:
        patched.setattr(region_masks, "stream_windows", lacking)
        answer = await answer_of(masks, segments, NUCLEI, GLANDS)
    # Two of each level.
    assert "4 image frames are missing; they were read as background." in [each.text for each in answer.findings]
    asked.clear()
    answer = await answer_of(masks, segments, NUCLEI)
    assert "pathseg_image" in asked
    assert "frames-missing" not in [each.code.code for each in answer.findings]


async def test_each_level_is_answered_by_itself_and_the_slide_s_remarks_are_told(
    masks: RegionMasks, segments: SegmentSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = region_masks.Slide.open

    def remarked(*given: Any, **more: Any) -> Any:
        slide = opened(*given, **more)
        slide.remarks = (SlideRemark("focal-plane-chosen", "One of three focal planes was read."),)
        return slide

    monkeypatch.setattr(region_masks.Slide, "open", remarked)
    monkeypatch.setattr(windows, "_MOST_ENLARGED", 1.5)  # the slide has 0.499 µm per pixel
    answer = await answer_of(masks, segments, NUCLEI, GLANDS)
    assert "focal-plane-chosen" in [each.code.code for each in answer.findings]
    nuclei, glands = answer.masks
    assert [each.code.code for each in nuclei.findings] == ["cannot-answer"]
    assert (nuclei.width_px, nuclei.png, nuclei.polygons) == (0, b"", ())
    assert (nuclei.present, nuclei.presence, nuclei.area_um2, nuclei.area_fraction) == (None, None, None, None)
    assert glands.width_px > 0
    with pytest.raises(ResolutionTooCoarse):
        await answer_of(masks, segments, NUCLEI)


async def test_a_region_that_is_too_large_is_refused_before_windows_are_laid(
    masks: RegionMasks, segments: SegmentSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(region_masks, "plan_windows")
    with pytest.raises(InvalidOrder, match=r"383 × 383 µm"):
        await answer_of(masks, segments, NUCLEI, box=(0, 0, 1e7, 1e7))


async def test_a_request_ends_with_the_versions_that_it_began_with(
    segments: SegmentSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, choices = SegmentEngine(segments.settings), segments.ledger.choices.read()
    async with engine.serving(choices) as (models, first):
        promoted = replace(models, pins=replace(models.pins, pins=models.pins.pins[:1]))
        monkeypatch.setattr(SegmentEngine, "_chosen", lambda self, choices: promoted)
        async with engine.serving(choices) as (served, second):
            assert served is promoted
            assert second is not first
            assert all(status.ready for status in first.status())
            assert first._link._connection is not None
        assert first._link._connection is not None
    assert first._link._connection is None
    assert second._link._connection is not None
    await engine.close()
    assert second._link._connection is None
