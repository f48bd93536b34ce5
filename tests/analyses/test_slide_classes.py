"""The slide half of `slide-classification`, on the committed slide with a small encoder and small heads; no Triton."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import check_order, options_of, protocol_named
from gateway.analyses.slide_classes import TOP_TILES, WholeSlideClassification
from gateway.analyses.slide_half import ServedModel, SlideOutcome, SlideTask
from gateway.domain.codes import Code
from gateway.domain.order import Order, RegionUm, SlideReference, Specimen
from gateway.domain.report import EvidenceSource, FindingKind
from gateway.inference import ModelRepository
from gateway.operations.errors import Cancelled, InferenceError, ModelRefused, ModelsUnfit, RowsOutdated
from gateway.operations.settings import Settings
from gateway.slides import Slide
from tests.support.bags import OnnxEngine, add_slide_head, shrink_encoder
from tests.support.models import add_version, read, seal, without_slide_heads, write

COLON = Code("71854001", "SCT", "Colon")
PROTOCOL = protocol_named("slide-classification")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder, and heads: `slide_abmil`, and others under names of their own."""
    repository = without_slide_heads(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")
    shrink_encoder(repository)
    add_slide_head(repository)
    add_slide_head(repository, "slide_transmil", attends=False)
    add_slide_head(repository, "unsure", sharpness=0.01)
    add_slide_head(repository, "narrow", tiles=(1, 10))
    add_slide_head(repository, "demanding", tiles=(500, 4096))
    add_slide_head(repository, "placed", place=True)
    return repository


@pytest.fixture(scope="module")
def engine(models: Path) -> OnnxEngine:
    return OnnxEngine(models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for tasks that differ in the slide's model only: the tiles' embeddings are computed once."""
    return tmp_path_factory.mktemp("task")


@contextmanager
def opened(
    slide_folder: Path,
    models: Path,
    folder: Path,
    head: str = "slide_abmil",
    *prompts: str,
    change: Callable[[ServedModel], ServedModel] = lambda model: model,
    region: RegionUm | None = None,
    stain: str | None = "HE",
    **settings: str,
) -> Iterator[SlideTask]:
    repository = ModelRepository(models)

    def served(name: str) -> ServedModel:
        return ServedModel(folder=name, card=repository.card(name), contract=repository.contract(name))

    with Slide.open(sorted(slide_folder.glob("*.dcm"))) as slide:
        header = slide.header
        if stain != "HE":
            header = slide.header = replace(header, stains=())
        specimen = Specimen(
            container=header.container_id,
            stain=stain,
            site=COLON,
            slides=(SlideReference(header.study_uid, (header.series_uid,)),),
        )
        given = tuple((key.replace("__", "."), value) for key, value in settings.items())
        order = Order(protocol=PROTOCOL.name, specimens=(specimen,), prompts=prompts, region=region, settings=given)
        check_order(order)
        yield SlideTask(
            slide=slide,
            models=(*map(served, PROTOCOL.asked(order).models[:-1]), change(served(head))),
            order=order,
            specimen=specimen,
            options=options_of(PROTOCOL, order),
            folder=folder,
        )


async def run(task: SlideTask, engine: Any) -> SlideOutcome:
    half = WholeSlideClassification()
    await half.infer(task, half.plan(task), engine, progress=lambda done: None, cancelled=lambda: False)
    return half.outcome(task)


def kinds(outcome: SlideOutcome) -> list[tuple[FindingKind, str]]:
    return [(finding.kind, finding.code.code) for finding in outcome.findings]


async def test_an_answer_with_the_tiles_that_it_rests_on(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder) as task:
        outcome = await run(task, engine)
        again = await run(task, OnnxEngine(models.parent / "nothing"))  # all of it lies on disk
    classes = outcome.classes
    assert classes is not None
    assert again.classes == classes
    assert sum(each.probability for each in classes.classes) == pytest.approx(1)
    assert classes.answered == max(classes.classes, key=lambda each: each.probability)
    assert (classes.tiles, classes.bag, classes.exploratory) == (53, 53, False)
    assert len(classes.top_tiles) == TOP_TILES
    shares = [tile.share for tile in classes.top_tiles]
    assert shares == sorted(shares, reverse=True)
    assert classes.top_tiles[0].attention == 1
    assert [tile.attention for tile in classes.top_tiles] == pytest.approx([share / shares[0] for share in shares])
    assert outcome.attention is not None
    assert len(outcome.attention.attention_N) == 53
    assert (outcome.tissue, outcome.tiles) == (None, None)
    names = {"thumbnail", "attention-map", *(f"top-tile-{rank}" for rank in range(1, TOP_TILES + 1))}
    assert set(outcome.pictures) == names
    assert outcome.reading.quality is not None
    assert outcome.reading.quality.blurred_share < 0.05
    assert outcome.reading.stain_figures is not None
    assert kinds(outcome) == []


async def test_the_weights_lie_where_the_tiles_are(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    """A head that attends to the lowest tile finds it by the places that it is given."""
    with opened(cmu_slide, models, folder, "placed") as task:
        outcome = await run(task, engine)
    assert outcome.classes is not None
    assert outcome.attention is not None
    assert outcome.classes.top_tiles[0].box.y_px == 224 * outcome.attention.rows_N.max()


async def test_a_head_without_attention_is_asked_by_occlusion(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder, "slide_transmil") as task:
        outcome = await run(task, engine)
    assert outcome.classes is not None
    assert outcome.classes.evidence is EvidenceSource.OCCLUSION
    assert outcome.attention is not None
    assert outcome.attention.attention_N.max() == 1


async def test_below_the_operating_point_there_is_no_answer(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder, "unsure") as task:
        unsure = await run(task, engine)
    assert unsure.classes is not None
    assert unsure.classes.answer is None
    assert kinds(unsure) == [(FindingKind.CONFIDENCE, "low-confidence")]
    with opened(cmu_slide, models, folder, "unsure", operating_point__min_probability="0.1") as task:
        allowed = await run(task, engine)
    assert allowed.classes is not None
    assert allowed.classes.answer is not None
    assert (allowed.classes.operating_point, allowed.classes.min_probability) == ("order", 0.1)


async def test_a_class_that_is_not_supported_is_never_the_answer(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    def unsupported(model: ServedModel) -> ServedModel:
        labels = tuple(replace(label, supported=False) for label in model.card.labels)
        return replace(model, card=replace(model.card, labels=labels))

    with opened(cmu_slide, models, folder, change=unsupported) as task:
        outcome = await run(task, engine)
    assert outcome.classes is not None
    assert outcome.classes.answer is None
    assert kinds(outcome) == [(FindingKind.CONFIDENCE, "not-supported")]


async def test_a_head_that_never_saw_a_whole_slide_says_so(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    def composed(model: ServedModel) -> ServedModel:
        return replace(model, card=replace(model.card, composed=True))

    with opened(cmu_slide, models, folder, change=composed) as task:
        assert kinds(await run(task, engine)) == [(FindingKind.CONFIDENCE, "composed-training")]


async def test_a_slide_with_more_tiles_than_the_head_takes(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder, "narrow") as task:
        outcome = await run(task, engine)
    assert outcome.classes is not None
    assert (outcome.classes.tiles, outcome.classes.bag) == (53, 10)
    assert outcome.attention is not None
    assert len(outcome.attention.attention_N) == 10
    assert kinds(outcome) == [(FindingKind.CONFIDENCE, "bag-reduced")]


async def test_a_slide_with_fewer_tiles_than_the_head_takes(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder, "demanding") as task:
        outcome = await run(task, engine)
    assert (outcome.classes, outcome.attention) == (None, None)
    assert kinds(outcome) == [(FindingKind.CONFIDENCE, "too-few-tiles")]
    assert set(outcome.pictures) == {"thumbnail"}
    assert engine.calls.get("demanding") is None


async def test_one_tile(cmu_slide: Path, models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    for head in ("slide_abmil", "slide_transmil"):
        region = RegionUm(x_um=560, y_um=790, width_um=20, height_um=20)
        with opened(cmu_slide, models, tmp_path, head, region=region) as task:
            outcome = await run(task, engine)
        assert outcome.classes is not None
        assert outcome.classes.bag == 1
        assert [tile.share for tile in outcome.classes.top_tiles] == [1.0]
        assert kinds(outcome) == [(FindingKind.SETTING, "region-only")]


async def test_another_stain_is_exploratory_and_nothing_is_drawn(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder, stain="PAP") as task:
        outcome = await run(task, engine)
    assert outcome.classes is not None
    assert outcome.exploratory
    assert {each.code.code for each in outcome.classes.classes} == {"X-PATTERN-A", "X-PATTERN-B", "X-PATTERN-C"}
    assert outcome.attention is None
    assert outcome.reading.stain_figures is None
    assert kinds(outcome) == [(FindingKind.INTENDED_USE, "stain-outside")]


class _DiesAfter:
    """An engine that ends the analysis, as a kill does, after some batches."""

    def __init__(self, engine: OnnxEngine, batches: int) -> None:
        self._engine, self._left = engine, batches

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            raise Cancelled("Killed.")
        return await self._engine.infer(model, batch, deadline_s=deadline_s)


async def test_goes_on_where_it_was_ended(cmu_slide: Path, models: Path, folder: Path, tmp_path: Path) -> None:
    """At the second batch of tiles, then before the bag; the answer is that of a run in one go."""
    with opened(cmu_slide, models, folder) as task:
        whole = await run(task, OnnxEngine(models))
    engine = OnnxEngine(models)
    with opened(cmu_slide, models, tmp_path) as task:
        for batches in (1, 1):
            with pytest.raises(Cancelled):
                await run(task, _DiesAfter(engine, batches))
        outcome = await run(task, engine)
    assert engine.calls == {"tile_encoder": 2, "slide_abmil": 1}
    assert outcome.classes is not None
    assert whole.classes is not None
    found, expected = ([each.probability for each in one.classes] for one in (outcome.classes, whole.classes))
    assert found == pytest.approx(expected, rel=1e-5)


class _NeverAnswers:
    """An engine that keeps every request until it is cancelled."""

    def __init__(self) -> None:
        self.asked = self.cancelled = 0

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("it was answered")


async def test_cancelling_ends_what_the_engine_has_in_hand(cmu_slide: Path, models: Path, tmp_path: Path) -> None:
    engine, half = _NeverAnswers(), WholeSlideClassification()
    with opened(cmu_slide, models, tmp_path) as task, pytest.raises(Cancelled):
        await half.infer(task, half.plan(task), engine, progress=lambda done: None, cancelled=lambda: engine.asked > 0)
    assert engine.asked == engine.cancelled == 1


async def test_an_embedding_that_is_no_number_is_an_error(
    cmu_slide: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    class Broken:
        async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
            answer = await engine.infer(model, batch)
            return {name: np.where(np.arange(array.shape[-1]) == 0, np.nan, array) for name, array in answer.items()}

    with opened(cmu_slide, models, tmp_path) as task, pytest.raises(InferenceError, match="no finite number"):
        await run(task, Broken())


async def test_an_answer_of_another_head_is_not_taken(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    with opened(cmu_slide, models, folder) as task:
        await run(task, engine)

    def exchanged(model: ServedModel) -> ServedModel:
        version = replace(model.card.version, engine_sha256="f" * 64)
        return replace(model, card=replace(model.card, version=version))

    with (
        opened(cmu_slide, models, folder, change=exchanged) as task,
        pytest.raises(RowsOutdated, match="changed while"),
    ):
        WholeSlideClassification().outcome(task)


async def test_models_of_two_widths_are_refused(
    cmu_slide: Path, models: Path, engine: OnnxEngine, folder: Path
) -> None:
    def wider(model: ServedModel) -> ServedModel:
        return replace(model, card=replace(model.card, feature_size=2048))

    with opened(cmu_slide, models, folder, change=wider) as task, pytest.raises(ModelRefused, match="2048 features"):
        await run(task, engine)


# Which models serve together.


@pytest.fixture
def growing(models: Path, tmp_path: Path) -> Path:
    """A repository of one head that a test may change."""
    repository = without_slide_heads(models, tmp_path / "repository")
    add_slide_head(repository)
    return repository


def chosen(repository: Path) -> list[str]:
    return list(Pins.choose(PROTOCOL, Choices(), ModelRepository(repository)).folders.values())


def test_a_head_of_another_encoder_is_refused(growing: Path) -> None:
    assert chosen(growing) == ["tile_encoder", "slide_abmil"]
    other = {"model": "tile_encoder", "weights_sha256": "9" * 64}
    add_slide_head(growing, encoder=other)
    with pytest.raises(ModelsUnfit, match=r"slide_abmil version 1 was trained on another tile_encoder than version 1"):
        chosen(growing)


def test_the_same_weights_in_another_engine_are_the_same_encoder(growing: Path) -> None:
    """As int8 of the same weights is: the version is another, the digest of the weights is not."""
    add_version(growing, "tile_encoder")
    seal(growing / "tile_encoder", state="PARSED")
    assert chosen(growing) == ["tile_encoder-v2", "slide_abmil"]


def test_a_promoted_encoder_of_other_weights_takes_no_head_with_it(growing: Path) -> None:
    folder = add_version(growing, "tile_encoder")
    card = read(folder, "card.json")
    write(folder, "card.json", card | {"digests": card["digests"] | {"weights_sha256": "8" * 64}})
    seal(folder)
    seal(growing / "tile_encoder", state="PARSED")
    with pytest.raises(ModelsUnfit, match="another tile_encoder than version 2"):
        chosen(growing)


def test_the_other_head_stands_in_where_the_first_may_not_serve(growing: Path) -> None:
    add_slide_head(growing, "slide_transmil", attends=False)
    assert chosen(growing) == ["tile_encoder", "slide_abmil"]
    seal(growing / "slide_abmil", state="PARSED")
    assert chosen(growing) == ["tile_encoder", "slide_transmil"]


def test_the_cards_of_the_heads_are_valid(models: Path) -> None:
    """As the repository's schema has it, so that these tests are of heads that could be served."""
    repository = ModelRepository(models)
    for folder in ("slide_abmil", "slide_transmil", "placed"):
        repository.verify(folder)
    document = json.loads((models / "slide_abmil" / "card.json").read_text())
    assert repository.card("slide_abmil").tiles == tuple(document["tiles"])
    assert np.prod(repository.contract("slide_abmil").inputs[0].dims) == -document["feature_size"]
