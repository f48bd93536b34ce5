"""What objects mean to a slide's answer, where it is known: an encoder that sees dark pixels only, and masks of dark
and of pale pixels."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.object_importance import importance_of
from gateway.analyses.pins import Pins
from gateway.analyses.slide_classes import WholeSlideClassification
from gateway.analyses.slide_half import SlideOutcome
from gateway.analyses.steps import CaseRun
from gateway.domain.explanation import Explanation
from gateway.domain.order import Order, RegionUm, SlideReference, Specimen
from gateway.domain.prompts import Level, Triple, token_ids
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.errors import Cancelled, InvalidOrder, ModelNotLoaded, PromptInvalid, RowsOutdated
from gateway.operations.settings import Settings
from gateway.slides.phantom import Identity, write_phantom
from gateway.slides.window_stream import WindowBatch, stream_windows
from tests.analyses.frugal import FrugalArchive
from tests.analyses.test_slide_classes import PROTOCOL, kinds, opened, run
from tests.support.bags import add_slide_head, shrink_encoder
from tests.support.masks import ChainedEngine
from tests.support.models import change_engine, seal, without_slide_heads
from tests.support.pathseg import THRESHOLD, write_pathseg

DARK, PALE = "nuclei-level nucleus in colon pathology", "nuclei-level inflammatory in colon pathology"
TUMOR, ABSENT = "tissue-level tumor in breast pathology", "tissue-level glomerulus in kidney pathology"
PALE_BELOW = 0.4
REGION = RegionUm(500, 1250, 110, 90)
BOUND = {"explain__tiles": "4", "explain__repeats": "10"}


def inverted(model: onnx.ModelProto) -> None:
    """The object of PALE is where pixels are paler than `PALE_BELOW`, not darker than nuclei."""
    (table,) = (each for each in model.graph.initializer if each.name == "table")
    values = numpy_helper.to_array(table).copy()
    dark, pale = (token_ids([Triple(Level.NUCLEI, name, "colon")])[0][0] for name in ("nucleus", "inflammatory"))
    slope = values[dark[0], 0]
    values[pale[dark != pale], :2] = -2 * slope, slope * (THRESHOLD[Level.NUCLEI] + PALE_BELOW)
    table.CopyFrom(numpy_helper.from_array(values, "table"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = without_slide_heads(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")
    shrink_encoder(repository, darker_than=0.5)
    add_slide_head(repository, sharpness=80.0)
    add_slide_head(repository, "demanding", tiles=(500, 4096))
    add_slide_head(repository, "unsure", sharpness=0.01)
    write_pathseg(repository)
    change_engine(repository / "pathseg_text", inverted)
    seal(repository / "pathseg_text")
    return repository


@pytest.fixture(scope="module")
def engine(models: Path) -> ChainedEngine:
    return ChainedEngine(models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("task")


def explained(outcome: SlideOutcome) -> Explanation:
    assert outcome.classes is not None
    assert outcome.classes.explanation is not None
    return outcome.classes.explanation


async def test_the_object_that_the_model_looks_at_comes_first(
    cmu_slide: Path, models: Path, engine: ChainedEngine, folder: Path
) -> None:
    """Blurred, dark pixels leave the model nothing to see; pale ones matter less than any random area. What is asked
    twice is answered once."""
    prompts = PALE, ABSENT, DARK, PALE
    with opened(cmu_slide, models, folder, "slide_abmil", *prompts, region=REGION, **BOUND) as task:
        before = WholeSlideClassification().plan(task)
        outcome = await run(task, engine)
        after = WholeSlideClassification().plan(task)
        calls = dict(engine.calls)
        again = await run(task, engine)
    assert engine.calls == calls  # all of it lay on disk
    assert again.classes == outcome.classes
    found = explained(outcome)
    assert outcome.classes is not None
    # What is read besides the bag's tiles is known with the answer only: then it is planned, and fetched.
    assert len(before) == len(after) == outcome.classes.bag + found.tiles * (1 + 3 * 11)
    assert len(before.reads) == 1
    assert [round(each.mpp, 2) for each in after.windows] == [0.25] * found.tiles + [1.0] * found.tiles
    assert after.reads == (after.tiles, *(each.tiles for each in after.windows))
    assert (found.target, found.tiles, found.repeats) == (outcome.classes.answer, outcome.classes.bag, 10)
    assert found.weight_share == pytest.approx(1)
    before_C = [each.probability for each in outcome.classes.classes]
    assert found.loss == pytest.approx(-np.log(before_C[found.target]), rel=1e-3)
    dark, pale, absent = found.objects
    assert [(each.index, each.triple) for each in found.objects] == [(2, DARK), (0, PALE), (1, ABSENT)]
    with np.load(folder / "objects.npz") as data:
        assert np.unpackbits(data["tissue"], axis=-1).all()
    assert dark.importance is not None
    assert pale.importance is not None
    assert dark.importance.exceeds
    assert dark.importance.ratio > 5 > 1.6 > dark.importance.control.high
    assert 1 <= dark.importance.control.low <= dark.importance.control.mean <= dark.importance.control.high
    assert pale.importance.ratio == pytest.approx(1, abs=0.01)
    assert not pale.importance.exceeds
    after = before_C[found.target] + dark.importance.changes[found.target].change
    assert -np.log(after) / found.loss == pytest.approx(dark.importance.ratio, rel=1e-3)
    assert sum(each.change for each in dark.importance.changes) == pytest.approx(0, abs=1e-6)
    assert (dark.supported, dark.val_dice, dark.tiles) == (True, 0.75, found.tiles)
    assert 0 < dark.area_share < pale.area_share < 1
    assert dark.enrichment == pytest.approx(dark.weight_share / dark.area_share)
    assert (absent.importance, absent.tiles, absent.area_share, absent.enrichment) == (None, 0, 0, None)
    assert absent.presence < 0.5 < dark.presence
    assert [key for kind, key in kinds(outcome)] == [
        "region-only",
        "prompt-repeated",
        "not-validated",
        "prompt-site-differs",
        "object-absent",
    ]
    assert f"2 prompts are understood as “{PALE}”; they are answered once." in [each.text for each in outcome.findings]


@pytest.mark.parametrize(
    ("repeats", "reaching", "exceeds"), [(10, 0, True), (10, 1, False), (20, 1, False), (41, 1, True), (41, 2, False)]
)
def test_an_object_exceeds_where_no_more_than_one_random_area_in_forty_reaches_it(
    repeats: int, reaching: int, exceeds: bool
) -> None:
    losses = np.linspace(1.0, 1.5, repeats)
    losses[repeats - reaching :] = 2.05
    before_C, log_RC = (np.log([1 - p, p]).T for p in (np.exp(-1.0), np.exp(-np.array([2.0, *losses[::-1]]))))
    found = importance_of(before_C, log_RC, 1)
    assert (found.ratio, found.exceeds) == (pytest.approx(2), exceeds)
    assert found.control.high == pytest.approx(losses[-1] if repeats < 41 else losses[-2])
    assert found.control.low == pytest.approx(1 if repeats < 41 else losses[1])


async def test_goes_on_where_it_was_ended(cmu_slide: Path, models: Path, folder: Path, tmp_path: Path) -> None:
    """While the objects are looked for, then twice among the rows; the answer is that of a run in one go. Masks that
    are damaged are found anew, and rows of other masks asked anew."""
    engine, half = ChainedEngine(models), WholeSlideClassification()
    with opened(cmu_slide, models, tmp_path, "slide_abmil", DARK, region=REGION, **BOUND) as task:
        done: list[int] = []

        async def go(cancelled: Any) -> None:
            plan = half.plan(task)
            await half.infer(task, plan, engine, progress=done.append, cancelled=cancelled)
            assert done[-1] == len(plan)

        with pytest.raises(Cancelled):
            await go(lambda: "pathseg_image" in engine.calls)
        with pytest.raises(RowsOutdated):
            half.outcome(task)
        for rows in (3, 8):
            with pytest.raises(Cancelled):
                await go(lambda rows=rows: engine.calls.get("slide_abmil", 0) > rows)
            with pytest.raises(RowsOutdated):
                half.outcome(task)
        looked = engine.calls["pathseg_prompt"]
        await go(lambda: False)
        parts = half.outcome(task)
        assert engine.calls["pathseg_prompt"] == looked
        rows = engine.calls["slide_abmil"]
        assert rows <= 1 + 12 + 2 * 2  # two rows under way when it was ended
        [masks] = tmp_path.rglob("objects.npz")
        with np.load(masks) as data:
            others = {**data, "masks": np.zeros_like(data["masks"])}
        masks.write_bytes(masks.read_bytes()[:-30])
        with pytest.raises(RowsOutdated):
            half.outcome(task)
        await go(lambda: False)
        assert half.outcome(task).classes == parts.classes
        assert engine.calls["slide_abmil"] == rows
        np.savez(masks, **others)
        with pytest.raises(RowsOutdated):
            half.outcome(task)
        await go(lambda: False)
        assert explained(half.outcome(task)).objects[0].importance is None
    with opened(cmu_slide, models, folder, "slide_abmil", PALE, ABSENT, DARK, region=REGION, **BOUND) as task:
        whole = explained(await run(task, engine)).objects[0]
    assert explained(parts).objects[0] == replace(whole, index=0)


async def test_too_coarse_too_few_or_undecided(
    cmu_slide: Path, models: Path, engine: ChainedEngine, tmp_path: Path
) -> None:
    """The slide is classified all the same."""
    with opened(cmu_slide, models, tmp_path / "one", "slide_abmil", DARK, TUMOR, DARK, region=REGION, **BOUND) as task:
        text, masks = task.models[1:3]
        finer = replace(masks, card=replace(masks.card, mpp_by_level={"nuclei": 0.2, "tissue": 1.0}))
        outcome = await run(replace(task, models=(task.eye, text, finer, task.models[3])), engine)
    assert [each.triple for each in explained(outcome).objects] == [TUMOR]
    assert "cannot-answer" in {key for _, key in kinds(outcome)}
    assert "prompt-repeated" in {key for _, key in kinds(outcome)}
    with opened(cmu_slide, models, tmp_path / "two", "demanding", DARK, region=REGION, **BOUND) as task:
        outcome = await run(task, engine)
    assert outcome.classes is None
    with opened(cmu_slide, models, tmp_path / "three", "unsure", DARK, region=REGION, **BOUND) as task:
        outcome = await run(task, engine)
    assert explained(outcome).objects[0].importance is not None
    assert {"low-confidence", "not-the-answer"} <= {key for _, key in kinds(outcome)}


async def test_frames_that_are_missing_under_the_masks_are_told(
    cmu_slide: Path, models: Path, engine: ChainedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, though two of the tiles and both resolutions need it."""

    def lacking(*given: Any, **more: Any) -> Iterator[WindowBatch]:
        for batch in stream_windows(*given, **more):
            yield replace(batch, missing=((3, 4),))

    monkeypatch.setattr("gateway.analyses.object_fields.stream_windows", lacking)
    one = BOUND | {"explain__tiles": "2"}
    with opened(cmu_slide, models, tmp_path, "slide_abmil", DARK, TUMOR, region=REGION, **one) as task:
        outcome = await run(task, engine)
        levels = {tile.level for tile in WholeSlideClassification().plan(task).windows}
    told = [each.text for each in outcome.findings if each.code.code == "frames-missing"]
    assert told == [
        f"{len(levels)} image frames are missing where objects were looked for; they were read as background."
    ]


async def test_what_the_masks_need_is_fetched_once_the_answers_are_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an archive that sends single frames: two turns, however many slides the case has."""
    for number in (1, 2):
        identity = Identity(study_uid="2.25.7001", series_uid=f"2.25.701{number}")
        folder = tmp_path / "case" / str(number)
        write_phantom(folder, width_px=2048, height_px=512, seed=number, identity=identity)

    @asynccontextmanager
    async def opened_here(*settings: Any) -> AsyncIterator[ChainedEngine]:
        yield ChainedEngine(models)

    monkeypatch.setattr(TritonEngine, "open", opened_here)
    specimen = Specimen(slides=(SlideReference("2.25.7001", ("2.25.7011", "2.25.7012")),))
    region = RegionUm(790, 10, 90, 90)  # one tile, whose margin is a frame that no other tile needs
    order = Order(PROTOCOL.name, (specimen,), prompts=(DARK,), region=region, settings=(("explain.repeats", "10"),))
    archive, settings = FrugalArchive(tmp_path / "case"), Settings(state=tmp_path, model_repository=models)
    case = CaseRun("a-1", order, tmp_path / "a-1", settings=settings, archive=archive, released=None)
    await case.fetch()
    turn, brought = len(archive.asked), archive.frames_brought
    await case.infer()
    assert len(archive.asked) == 2 * turn
    assert archive.frames_brought > brought
    assert len(list(tmp_path.rglob("importance.bin"))) == 2
    with np.load(next(tmp_path.rglob("objects.npz"))) as data:
        assert 0.5 < np.unpackbits(data["tissue"], axis=-1).mean() < 0.75  # the rest of the tile is glass


@pytest.mark.parametrize(
    ("prompts", "error", "said"),
    [
        ((DARK,) * 9, InvalidOrder, "9 prompts; .* 8 at a time"),
        ((DARK, "drop table analyses"), PromptInvalid, "not understood"),
    ],
)
def test_orders_that_are_refused(
    prompts: tuple[str, ...], error: type[Exception], said: str, cmu_slide: Path, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said), opened(cmu_slide, models, tmp_path, "slide_abmil", *prompts):
        pass


def test_the_models_of_masks_are_needed_for_prompts_only(models: Path, tmp_path: Path) -> None:
    one = Specimen(slides=(SlideReference("1.2", ("1.2.3",)),))
    asked = PROTOCOL.asked(Order(PROTOCOL.name, (one,), prompts=(DARK,)))
    assert asked.models == ("tile_encoder", "pathseg_text", "pathseg", "slide_abmil")
    assert PROTOCOL.asked(Order(PROTOCOL.name, (one,))) == PROTOCOL
    pins = Pins.choose(asked, Choices(), ModelRepository(models))
    assert {pin.model for pin in pins.pins} > {"pathseg_image", "pathseg_prompt", "slide_abmil"}
    bare = without_slide_heads(Settings().model_repository, tmp_path / "bare")
    add_slide_head(bare)
    assert Pins.choose(PROTOCOL, Choices(), ModelRepository(bare))
    with pytest.raises(ModelNotLoaded, match="pathseg_text"):
        Pins.choose(asked, Choices(), ModelRepository(bare))
