"""The slide half of `segmentation`, on the committed slide with models whose masks are known; no Triton."""

import asyncio
import hashlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from gateway.analyses import mask_file
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.object_splitting import Splitter
from gateway.analyses.pins import Pins
from gateway.analyses.prompt_texts import asked, text_vectors
from gateway.analyses.protocols import check_order
from gateway.analyses.segment_group import groups_of
from gateway.analyses.segmentation import Segmentation
from gateway.analyses.slide_half import SlideOutcome, SlideTask
from gateway.domain.codes import Code
from gateway.domain.model import ModelCard
from gateway.domain.order import Order, PointUm, RegionUm
from gateway.domain.prompts import Level, token_ids, words
from gateway.inference import ModelRepository
from gateway.operations.errors import (
    Cancelled,
    InferenceError,
    InvalidOrder,
    ModelRefused,
    ModelsUnfit,
    NoTissue,
    PromptInvalid,
    ResolutionTooCoarse,
    RowsOutdated,
)
from tests.support.masks import PROTOCOL, ChainedEngine, segmenting
from tests.support.models import read, seal, write
from tests.support.pathseg import expected_mask

NUCLEI, TUMOR = "nuclei-level epithelial in colon pathology", "tissue-level tumor in breast pathology"
GLANDS, GLOMERULI = "colon glands", "tissue-level glomerulus in kidney pathology"
REGION = RegionUm(500, 1250, 110, 90)


@pytest.fixture(scope="module")
def engine(mask_models: Path) -> ChainedEngine:
    return ChainedEngine(mask_models)


async def run(task: SlideTask, engine: Any) -> SlideOutcome:
    half = Segmentation()
    plan = half.plan(task)
    done: list[int] = []
    await half.infer(task, plan, engine, progress=done.append, cancelled=lambda: False)
    assert done == sorted(done)
    assert done[-1] == len(plan)
    return half.outcome(task)


def keys(outcome: SlideOutcome) -> list[str]:
    return [finding.code.code for finding in outcome.findings]


def drawn(outcome: SlideOutcome, index: int) -> np.ndarray:
    """The whole mask of a prompt."""
    (masks,) = (masks for masks in outcome.masks if index in masks.indices)
    picture = np.zeros((masks.rows, masks.columns), np.uint8)
    for (row, column), tile in zip(masks.occupied(index), masks.fractions(index), strict=True):
        y, x = row * masks.tile_px, column * masks.tile_px
        picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return picture >= masks.threshold


async def test_prompts_over_the_whole_slide(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    """Three tissue prompts, of which one is denied everywhere: the masks are what the models see in the level."""
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, GLOMERULI, GLANDS) as task:
        outcome = await run(task, engine)
        calls = dict(engine.calls)
        again = await run(task, engine)
        level = task.slide.read_level(1)
        plan = Segmentation().plan(task)
    assert engine.calls == calls  # all of it lay on disk
    assert again.segmentation == outcome.segmentation
    result = outcome.segmentation
    assert result is not None
    tumor, glomeruli, glands = result.segments
    assert (tumor.index, tumor.triple, tumor.prompt) == (0, TUMOR, TUMOR)
    assert (glands.triple, glands.supported) == ("tissue-level gland in colon pathology", True)
    mask = drawn(outcome, 0)
    windows = plan.finest
    seen = np.zeros(mask.shape, bool)
    for top, left in zip(windows.tops_N, windows.lefts_N, strict=True):
        seen[top : top + 256, left : left + 256] = True
    expected = expected_mask(level[: len(level) // 2 * 2, : level.shape[1] // 2 * 2], Level.TISSUE)
    assert not mask[~seen].any()
    # Windows begin at odd pixels, where the models' cells of 2 × 2 pixels are others: at most the rim differs.
    differ = expected != mask[: expected.shape[0], : expected.shape[1]]
    assert differ[seen[: expected.shape[0], : expected.shape[1]]].mean() < 0.03
    assert np.array_equal(mask, drawn(outcome, 2))
    assert tumor.area_mm2 == pytest.approx(np.count_nonzero(mask) * 0.998**2 / 1e6)
    assert tumor.area_fraction == min(1, tumor.area_mm2 / result.area_mm2)
    assert tumor.objects is None
    assert glands.objects is not None
    assert glands.objects.density_per_mm2 == glands.objects.count / result.area_mm2
    assert (glomeruli.present, glomeruli.area_mm2, glomeruli.supported) == (False, 0, False)
    assert glomeruli.presence < glomeruli.min_presence == tumor.min_presence == 0.6 < tumor.presence
    assert not drawn(outcome, 1).any()
    assert not any(True for _ in outcome.masks[0].outlines(1))
    assert list(outcome.pictures) == ["thumbnail", "segment-1", "segment-field-1", "segment-3", "segment-field-3"]
    assert keys(outcome) == [
        "prompt-site-differs",
        "not-validated",
        "prompt-site-differs",
        "object-absent",
        "counts-approximate",
    ]
    assert outcome.reading.quality is None  # at 1 µm a pixel focus cannot be judged
    assert outcome.reading.stain_figures is not None


async def test_a_region_at_two_resolutions(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    """The nuclei are read from a level of half their resolution, enlarged; only the region counts."""
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, NUCLEI, region=REGION) as task:
        outcome = await run(task, engine)
    both = replace(task.models[1], card=replace(task.card, mpp_by_level={"nuclei": 0.25, "tissue": 0.5}))
    with segmenting(cmu_slide, mask_models, tmp_path / "level", TUMOR, NUCLEI, region=REGION) as task:
        task = replace(task, models=(task.models[0], both))
        assert [group.plan.level for group in groups_of(task, Segmentation().plan(task))] == [0, 0]
        await run(task, engine)
        for mpp, frames in (("0.25", [(0, 1), (2, 3)]), ("0.5", [(2, 3), (4, 5), (4, 6)])):
            with sqlite3.connect(tmp_path / "level" / f"masks-{mpp}.db") as database:
                database.executemany("INSERT INTO missing VALUES (?, ?)", frames)
        assert Segmentation().outcome(task).reading.frames_missing == 4  # one that is missed at both is one
    with segmenting(cmu_slide, mask_models, tmp_path / "alone", TUMOR, region=REGION) as task:
        alone = await run(task, engine)
    result = outcome.segmentation
    assert result is not None
    assert alone.segmentation is not None
    assert alone.segmentation.segments == result.segments[:1]  # the same beside others
    assert outcome.reading.frames_missing == 0
    assert [masks.indices for masks in outcome.masks] == [(1,), (0,)]
    assert [round(segment.mpp, 3) for segment in result.segments] == [0.998, 0.249]
    for index, mpp in ((0, 0.998), (1, 0.2495)):
        y, x = np.nonzero(drawn(outcome, index))
        assert x.min() * mpp >= 500 - mpp
        assert (x.max() + 1) * mpp <= 610 + mpp
        assert y.min() * mpp >= 1250 - mpp
        assert (y.max() + 1) * mpp <= 1340 + mpp
    nuclei = result.segments[1]
    assert nuclei.objects is not None
    assert nuclei.objects.count == sum(len(batch.area_um2_N) for batch in outcome.masks[0].outlines(1)) > 20
    assert nuclei.objects.mean_area_um2 * nuclei.objects.count <= nuclei.area_mm2 * 1e6
    assert result.area_mm2 == pytest.approx(110 * 90 / 1e6, rel=0.05)
    assert {"coarser-than-model", "region-only", "counts-approximate"} <= set(keys(outcome))
    assert outcome.reading.quality is not None


async def test_a_resolution_whose_windows_hold_too_little_tissue_fails_no_other(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    edge = RegionUm(270, 1325, 50, 50)
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, NUCLEI, region=edge, tissue__min_share="0.9") as task:
        outcome = await run(task, engine)
    assert outcome.segmentation is not None
    assert [segment.triple for segment in outcome.segmentation.segments] == [NUCLEI]
    [why] = [finding.text for finding in outcome.findings if finding.code.code == "cannot-answer"]
    assert "no window of 256 µm holds enough of the tissue that is asked for" in why


async def test_what_is_too_small_for_an_object_is_counted_as_none(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    with segmenting(cmu_slide, mask_models, tmp_path, GLANDS, region=RegionUm(540, 1290, 20, 20)) as task:
        outcome = await run(task, engine)
        plan = Segmentation().plan(task)
        few = {mpp: area_mm2 / 100 for mpp, area_mm2 in plan.read_mm2.items()}
        replace(plan, read_mm2=few).save(task.folder / "windows.npz")
        beyond = Segmentation().outcome(task)
    assert outcome.segmentation is not None
    (glands,) = outcome.segmentation.segments
    assert glands.present
    assert glands.objects is not None
    assert (glands.objects.count, glands.objects.density_per_mm2) == (0, 0)
    assert (glands.objects.mean_area_um2, glands.objects.irregularity) == (None, None)
    assert "mask-beyond-tissue" not in keys(outcome)
    assert "mask-beyond-tissue" in keys(beyond)  # where next to nothing was taken for tissue


async def test_a_polygon_is_a_part_of_its_box(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    triangle = RegionUm(500, 1250, 110, 90, (PointUm(500, 1250), PointUm(610, 1250), PointUm(500, 1340)))
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, region=triangle) as task:
        outcome = await run(task, engine)
    y, x = np.nonzero(drawn(outcome, 0))
    assert len(y) > 100
    assert ((x * 0.998 - 500) / 110 + (y * 0.998 - 1250) / 90).max() < 1


async def test_stopped_and_gone_on_with(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed is not computed again, and the answer is that of one go."""
    monkeypatch.setattr(mask_file, "COMMIT_S", 0.0)
    monkeypatch.setattr(mask_file, "WORK_PER_COMMIT", 0.0)
    half = Segmentation()
    with segmenting(cmu_slide, mask_models, tmp_path / "whole", NUCLEI, region=REGION) as task:
        whole = await run(task, engine)
    with segmenting(cmu_slide, mask_models, tmp_path / "parts", NUCLEI, region=REGION) as task:
        monkeypatch.setattr("gateway.analyses.batches._DECODED", 2)
        plan = half.plan(task)
        done: list[int] = []
        with pytest.raises(RowsOutdated):
            half.outcome(task)
        with pytest.raises(Cancelled):
            await half.infer(task, plan, engine, progress=done.append, cancelled=lambda: done[-1] >= 4)
        with pytest.raises(RowsOutdated):
            half.outcome(task)
        before = engine.calls["pathseg_image"]
        parts = await run(task, engine)
        assert (engine.calls["pathseg_image"] - before) * 2 <= len(plan) - 4 + 1
    assert parts.segmentation == whole.segmentation
    assert np.array_equal(drawn(parts, 0), drawn(whole, 0))


async def test_a_cancelled_task_waits_for_what_is_being_split(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is cancelled: else the file of the masks would be closed under the thread that writes to it."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    run_on = Splitter.run

    def slowly(splitter: Splitter, windows: int, cancelled: Callable[[], bool]) -> None:
        begun.set()
        go_on.wait(10)
        try:
            run_on(splitter, windows, cancelled)
        finally:
            ended.set()

    monkeypatch.setattr(Splitter, "run", slowly)
    half = Segmentation()
    with segmenting(cmu_slide, mask_models, tmp_path, NUCLEI, region=REGION) as task:
        plan = half.plan(task)
        work = asyncio.create_task(half.infer(task, plan, engine, progress=lambda done: None, cancelled=lambda: False))
        assert await asyncio.to_thread(begun.wait, 60)
        for _ in range(3):
            work.cancel()
            await asyncio.sleep(0.02)
        assert not work.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert ended.is_set()


async def test_the_order_may_ask_for_surer_presence(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    """Where presence fails, nothing is drawn; changed again, nothing of the old masks is used."""
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, region=REGION, presence__min_probability="0.99") as task:
        outcome = await run(task, engine)
    assert outcome.segmentation is not None
    (tumor,) = outcome.segmentation.segments
    assert (tumor.present, tumor.mean_probability, tumor.min_presence) == (False, None, 0.99)
    assert not drawn(outcome, 0).any()
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, region=REGION) as task:
        outcome = await run(task, engine)
    assert outcome.segmentation is not None
    assert outcome.segmentation.segments[0].present


async def test_too_coarse_for_nuclei_or_no_tissue(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    """Alone it is an error, beside a prompt that can be answered a finding."""
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    for file in sorted(cmu_slide.glob("*.dcm")):
        if pydicom.dcmread(file, specific_tags=["TotalPixelMatrixColumns"]).get("TotalPixelMatrixColumns") != 2220:
            (coarse / file.name).symlink_to(file)
    refused = pytest.raises(ResolutionTooCoarse, match="cannot answer at this resolution")
    with segmenting(coarse, mask_models, tmp_path / "one", NUCLEI) as task, refused:
        Segmentation().plan(task)
    with segmenting(coarse, mask_models, tmp_path / "two", NUCLEI, TUMOR, region=REGION) as task:
        outcome = await run(task, engine)
    assert outcome.segmentation is not None
    assert [segment.triple for segment in outcome.segmentation.segments] == [TUMOR]
    assert "cannot-answer" in keys(outcome)
    nothing = RegionUm(500, 1250, 9, 9, (PointUm(5, 5), PointUm(9, 5), PointUm(5, 9)))
    for nowhere, said in ((RegionUm(1e6, 0, 50, 50), "outside the slide"), (nothing, "encloses nothing")):
        refused = pytest.raises(InvalidOrder, match=said)
        with segmenting(coarse, mask_models, tmp_path / "off", TUMOR, region=nowhere) as task, refused:
            Segmentation().plan(task)
    glass = RegionUm(10, 10, 40, 40)
    with segmenting(coarse, mask_models, tmp_path / "glass", TUMOR, region=glass) as task, pytest.raises(NoTissue):
        Segmentation().plan(task)


async def test_outside_the_intended_use(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    breast = Code("76752008", "SCT", "Breast")
    with segmenting(
        cmu_slide, mask_models, tmp_path, TUMOR, TUMOR, "nucleus in lung", region=REGION, site=breast
    ) as task:
        outcome = await run(task, engine)
    assert outcome.exploratory
    assert "organ-outside" in keys(outcome)
    assert keys(outcome).count("not-validated") == 1
    assert "prompt-repeated" in keys(outcome)
    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, region=REGION, stain="PAP") as task:
        outcome = await run(task, engine)
    assert outcome.masks == ()
    assert outcome.exploratory
    assert list(outcome.pictures) == ["thumbnail"]


async def test_text_is_encoded_once(mask_models: Path, mask_card: ModelCard, cmu_slide: Path, tmp_path: Path) -> None:
    engine = ChainedEngine(mask_models)
    prompts = ("nucleus in the liver", "tissue-level stroma in liver", "nucleus in the liver")
    with segmenting(cmu_slide, mask_models, tmp_path, *prompts) as task:
        triples = [each.triple for each in asked(prompts, mask_card)]
        first = await text_vectors(task.models[0], triples[:1], engine)
        every = await text_vectors(task.models[0], triples, engine)
        assert np.array_equal(every.tokens_PLd[0], first.tokens_PLd[0])
        assert np.array_equal(every.global_Pd[2], first.global_Pd[0])
        assert engine.calls["pathseg_text"] == 2  # the third asks for nothing new
        assert every.repeated(3)["text_tokens"].shape == (3, *every.tokens_PLd.shape)


async def test_a_model_of_an_earlier_table_answers_without_the_later_words(
    mask_models: Path, cmu_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vocabulary ends before the object's word: that one is left out, and the others go as they are."""

    class Listening(ChainedEngine):
        async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
            asked_of.append(batch)
            return await super().infer(model, batch)

    asked_of: list[Any] = []
    with segmenting(cmu_slide, mask_models, tmp_path, "tissue-level stroma in pancreas") as task:
        [triple] = [each.triple for each in asked(task.order.prompts, task.card)]
        ids_PL, _ = token_ids([triple])
        size = int(ids_PL.max())
        known = hashlib.sha256("\n".join(words()[:size]).encode()).hexdigest()
        card = replace(task.models[0].card, vocabulary_size=size, tokenizer_sha256=known)
        await text_vectors(replace(task.models[0], card=card), [triple], Listening(mask_models))
    assert asked_of[0]["token_ids"].tolist() == np.where(ids_PL < size, ids_PL, 0).tolist()
    assert asked_of[0]["token_mask"].tolist() == (ids_PL < size).astype(int).tolist()
    assert asked_of[0]["token_mask"].sum() == 4


async def test_models_that_do_not_fit(
    cmu_slide: Path, mask_models: Path, engine: ChainedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ChainedEngine):
        async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
            answer = await super().infer(model, batch)
            return answer | {"mask_logits": answer["mask_logits"] * np.nan} if model == "pathseg" else answer

    with segmenting(cmu_slide, mask_models, tmp_path, TUMOR, region=REGION) as task:
        with pytest.raises(InferenceError, match="no finite number"):
            await run(task, Broken(mask_models))
        with pytest.raises(RowsOutdated):
            Segmentation().outcome(task)
        monkeypatch.setattr("gateway.analyses.prompt_texts.words", lambda: ("", "other"))
        with pytest.raises(ModelRefused, match="another table of words"):
            await run(task, engine)


@pytest.mark.parametrize(
    ("prompts", "error", "said"),
    [
        ((), InvalidOrder, "at least one prompt"),
        (("",), PromptInvalid, "empty"),
        ((NUCLEI, "drop table analyses"), PromptInvalid, "not understood"),
        ((NUCLEI,) * 33, InvalidOrder, "33 prompts"),
    ],
)
def test_orders_that_are_refused(
    prompts: tuple[str, ...], error: type[Exception], said: str, cmu_slide: Path, mask_models: Path, tmp_path: Path
) -> None:
    with segmenting(cmu_slide, mask_models, tmp_path, *prompts) as task, pytest.raises(error, match=said):
        check_order(task.order)


def test_a_polygon_is_refused_where_boxes_are_read(cmu_slide: Path, mask_models: Path, tmp_path: Path) -> None:
    triangle = RegionUm(0, 0, 9, 9, (PointUm(0, 0), PointUm(9, 0), PointUm(0, 9)))
    with segmenting(cmu_slide, mask_models, tmp_path, NUCLEI, region=triangle) as task:
        check_order(task.order)
        other = Order(protocol="tissue-classification", specimens=task.order.specimens, region=triangle)
        with pytest.raises(InvalidOrder, match="no polygons"):
            check_order(other)


def test_a_text_encoder_of_other_weights_does_not_fit(mask_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(mask_models, models)
    Pins.choose(PROTOCOL, Choices(), ModelRepository(models))
    card = read(models / "pathseg_text", "card.json")
    write(models / "pathseg_text", "card.json", card | {"digests": card["digests"] | {"weights_sha256": "2" * 64}})
    seal(models / "pathseg_text")
    with pytest.raises(ModelsUnfit, match="another pathseg_text"):
        Pins.choose(PROTOCOL, Choices(), ModelRepository(models))
