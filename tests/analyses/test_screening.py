"""The slide half of `cervical-screening` on painted smears whose cells are known, with small engines; no Triton."""

import asyncio
import html
import json
import math
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from gateway.analyses import screening_pictures, steps
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import protocol_named
from gateway.analyses.screening import CervicalScreening
from gateway.analyses.screening_cells import SlideCells
from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.screening_plan import Screened
from gateway.analyses.screening_result import GALLERY
from gateway.analyses.screening_tiles import AS_IT_IS, MOST_WINDOWS, DetectedWindows
from gateway.analyses.sites import FitRecord, Origin, SiteStore
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.steps import CaseRun
from gateway.archive import Archive, FolderArchive
from gateway.domain.bethesda import AGC, ASC_US, HSIL, LSIL, NAMES, NILM, SCC
from gateway.domain.codes import Code
from gateway.domain.order import Order, Patient, RegionUm, SlideReference, Specimen
from gateway.domain.screened import ScreeningResult
from gateway.inference import ModelRepository
from gateway.operations.errors import (
    Cancelled,
    InferenceError,
    InferenceTimeout,
    InvalidSetting,
    ModelRefused,
    ModelsUnfit,
    ResolutionTooCoarse,
    RowsOutdated,
)
from gateway.operations.settings import Settings
from gateway.slides import Slide
from gateway.slides.phantom import write_phantom
from gateway.slides.site_colour import ColourMap, Densities
from gateway.slides.site_fit import SiteCells, fit
from gateway.slides.site_state import SiteState, identity
from tests.analyses.frugal import FrugalArchive
from tests.conftest import data_path
from tests.reports.pdf_text import pages
from tests.reports.test_consistency import DIAGNOSIS
from tests.support.bags import OnnxEngine
from tests.support.models import read, seal, write
from tests.support.screening import CERVIX, screened, screening, smear, write_smear
from tests.support.screening_models import BIASES, SOURCE, SUPPORTED, TEMPERATURE, WIDTH, paint, write_screening

UNSATISFACTORY = "125154007"
FEW = tuple((NILM, 60.0 + 60 * place, 90.0) for place in range(4))
"""A few cells that are NILM, which the detector takes for ASC-US."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def all_supported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("supported"), supported=(True,) * 7)


@pytest.fixture
def engine(models: Path) -> OnnxEngine:
    return OnnxEngine(models)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Slides of painted cells, made once each."""
    made: dict[str, Path] = {}

    def make(*cells: tuple[int, float, float], **options: Any) -> Path:
        key = repr((cells, sorted(options.items())))
        if key not in made:
            mpp = options.get("mpp", 0.25)
            image = smear(cells, size_um=options.pop("size_um", 400.0), mpp=mpp)
            made[key] = write_smear(tmp_path_factory.mktemp("slide"), image, root=key, **options)
        return made[key]

    return make


@pytest.fixture
def hsil(painted: Callable[..., Path]) -> Path:
    return painted((HSIL, 120, 130), *FEW)


def result_of(outcome: SlideOutcome) -> ScreeningResult:
    assert outcome.screening is not None
    return outcome.screening


def keys(outcome: SlideOutcome) -> list[str]:
    return [finding.code.code for finding in outcome.findings]


def text_of(outcome: SlideOutcome, key: str) -> str:
    return next(finding.text for finding in outcome.findings if finding.code.code == key)


# What is said of a slide.


async def test_an_abnormal_slide_with_the_cells_that_say_so(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert (result.abnormal, result.categories, result.withheld) == (True, (HSIL,), ())
    assert result.category is not None
    assert result.category.code == Code("62061000119107", "SCT", "High-grade squamous intraepithelial lesion")
    assert sum(each.probability for each in result.classes) == pytest.approx(1)
    assert [each.name for each in result.classes] == list(NAMES)
    assert not result.exploratory
    assert result.adequacy.satisfactory
    assert result.adequacy.least_cells == 10
    assert (result.operating_point, result.abnormal_from) == ("95 % sensitivity", 0.3)
    assert result.detected == (4, 0, 0, 1, 0, 0)
    assert result.bag == 5
    first = result.gallery[0]
    assert (first.index, first.towards) == (HSIL, HSIL)
    assert (first.x_um, first.y_um) == pytest.approx((120, 130), abs=2)
    assert [each.contribution for each in result.gallery] == sorted(
        (each.contribution for each in result.gallery), reverse=True
    )
    assert {"thumbnail", "cell-map", "cell-1", "cell-5"} <= outcome.pictures.keys()
    assert keys(outcome) == ["site-not-commissioned", "composed-training"]
    assert outcome.reading.quality is None
    assert outcome.reading.tiles_read > 0
    # The slide's model is asked once: without a site's state both answers are one.
    assert engine.calls["smartccs_slide"] == 1
    assert all(each.probability == each.probability_unadapted for each in result.classes)
    assert all(each.logit == each.logit_unadapted for each in result.classes)


def probable(logits: Sequence[float | None]) -> list[float]:
    """What the card's temperature and biases make of a slide's logits."""
    shares_C = np.exp(np.array(logits, np.float64) / TEMPERATURE + BIASES)
    return [float(share) for share in shares_C / shares_C.sum()]


async def test_every_cell_is_drawn_where_it_lies(hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    with screening(hsil, models, tmp_path) as task:
        outcome = await screened(task, engine)
    cells, grid = outcome.cells, outcome.reading.grid
    assert cells is not None
    assert grid is not None
    middles_N2 = (cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2 * 0.25
    expected = [(120, 130), *((x, y) for _, x, y in FEW)]
    for place in expected:
        assert np.hypot(*(middles_N2 - place).T).min() < 2
    assert cells.classes_N.tolist() == [HSIL, *[ASC_US] * 4]
    highest = {
        (int(row), int(column)): float(score)
        for row, column, score in zip(cells.rows_M, cells.columns_M, cells.highest_M, strict=True)
    }
    row, column = int(130 / 0.25) // grid.field_px, int(120 / 0.25) // grid.field_px
    assert highest[row, column] == pytest.approx(0.95, abs=0.01)
    assert len(cells.rows_M) == outcome.reading.tiles_read


async def test_a_normal_slide_shows_what_speaks_most_against_it(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(painted(*FEW), models, tmp_path) as task:
        result = result_of(await screened(task, engine))
    assert (result.abnormal, result.categories) == (False, (NILM,))
    assert result.gallery
    assert {each.towards for each in result.gallery} <= set(range(1, 7))


@pytest.mark.parametrize("number", range(1, 7))
async def test_no_class_is_dropped(
    number: int, painted: Callable[..., Path], all_supported: Path, tmp_path: Path
) -> None:
    """One cell of each class among cells that are NILM: it is detected as itself, cut, and decides the slide."""
    with screening(painted((number, 200, 210), *FEW), all_supported, tmp_path / "task") as task:
        result = result_of(await screened(task, OnnxEngine(all_supported)))
    assert result.detected[number - 1] == (5 if number == ASC_US else 1)
    assert result.categories == (number,)
    assert (result.gallery[0].index, result.gallery[0].towards) == (number, number)


@pytest.mark.parametrize("number", [SCC, AGC])
async def test_a_class_without_support_counts_and_is_not_named(
    number: int, painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(painted((number, 200, 210), *FEW), models, tmp_path) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.abnormal
    assert len(result.categories) == 1
    assert SUPPORTED[result.categories[0]]
    assert max(result.classes, key=lambda each: each.probability).index == number
    told = text_of(outcome, "class-not-supported-screening")
    assert "was not measured for" in told
    assert told.endswith("It counts towards abnormal. The category is the most probable of the others.")
    assert result.detected[number - 1] == 1


async def test_an_abnormal_slide_without_a_supported_class_has_no_category(hsil: Path, tmp_path: Path) -> None:
    models = write_screening(tmp_path / "models", supported=(True, *(False,) * 6))
    with screening(hsil, models, tmp_path / "task") as task:
        outcome = await screened(task, OnnxEngine(models))
    result = result_of(outcome)
    assert (result.abnormal, result.categories) == (True, ())
    assert [code.code for code in result.withheld] == ["class-not-supported-screening"]
    assert text_of(outcome, "class-not-supported-screening") == (
        "The most probable abnormal class, High-grade squamous intraepithelial lesion "
        f"({result.classes[HSIL].probability:.2f}), is one that the model was not measured for. It counts towards "
        "abnormal. Of the others none may be named either: the slide is abnormal, and no category is given."
    )


async def test_the_order_may_lower_the_operating_point(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(painted(*FEW), models, tmp_path, operating_point__abnormal_from="0") as task:
        result = result_of(await screened(task, engine))
    assert (result.operating_point, result.abnormal_from) == ("order", 0)
    assert result.abnormal


@pytest.mark.parametrize("value", ["0.301", "1"])
def test_the_order_may_not_raise_the_operating_point(value: str, hsil: Path, models: Path, tmp_path: Path) -> None:
    with (
        screening(hsil, models, tmp_path, operating_point__abnormal_from=value) as task,
        pytest.raises(InvalidSetting, match=r"above the model's own operating point \(0\.3\)"),
    ):
        CervicalScreening().plan(task)


# What keeps a category back.


async def test_a_slide_without_cells_is_no_negative_slide(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(painted(), models, tmp_path) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert (result.abnormal, result.categories, result.classes, result.gallery) == (None, (), (), ())
    assert result.adequacy.satisfactory
    assert [code.code for code in result.withheld] == ["no-candidate-cells"]
    assert "a pathologist must look" in text_of(outcome, "no-candidate-cells")
    assert (result.detected, result.bag) == ((0,) * 6, 0)
    assert engine.calls.keys() == {"smartccs_detect"}


async def test_an_all_white_slide_is_unsatisfactory(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    white = write_smear(tmp_path / "slide", np.full((1200, 1300, 3), 255, np.uint8))
    with screening(white, models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
        assert len(CervicalScreening().plan(task)) == 0
    result = result_of(outcome)
    assert not result.adequacy.satisfactory
    assert [code.code for code in result.adequacy.reasons] == ["unsatisfactory-empty"]
    assert {code.code for code in result.withheld} == {UNSATISFACTORY, "no-candidate-cells"}
    assert outcome.reading.tiles_read == 0
    assert engine.calls == {}


async def test_too_few_squamous_cells_withhold_the_category_and_not_the_probabilities(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path, adequacy__min_cells="100000") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert (result.abnormal, result.categories) == (None, ())
    assert [code.code for code in result.withheld] == [UNSATISFACTORY]
    assert [code.code for code in result.adequacy.reasons] == ["125161006"]
    assert len(result.classes) == 7
    assert result.gallery
    assert "100000 are asked for" in text_of(outcome, "unsatisfactory-few-cells")


async def test_an_unsatisfactory_slide_that_reaches_the_operating_point_says_so(
    painted: Callable[..., Path], hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """The Bethesda System calls a specimen with abnormal cells satisfactory; no category is given here, and that is
    told. Below the operating point, and of a slide that can be judged, it is not."""
    few, enough = {"adequacy__min_cells": "100000"}, {"adequacy__min_cells": "10"}
    cases = ((hsil, few, True), (painted(*FEW), few, False), (hsil, enough, False))
    for number, (slide, settings, told) in enumerate(cases):
        with screening(slide, models, tmp_path / str(number), **settings) as task:
            outcome = await screened(task, engine)
        result = result_of(outcome)
        assert (result.category is None) is (settings is few)
        assert ("unsatisfactory-yet-reached" in keys(outcome)) is told
        if told:
            assert result.deciding is not None
            assert text_of(outcome, "unsatisfactory-yet-reached") == (
                f"The slide is unsatisfactory, so no category is given, yet 1 - p(NILM) is {result.deciding:.3f} and "
                "reaches the operating point “95 % sensitivity” (0.300). Abnormal cells may be there, and The Bethesda "
                "System (2014) calls any specimen that has them satisfactory: look at the slide."
            )


@pytest.mark.parametrize("stain", [None, "HE"])
async def test_outside_the_intended_use_the_same_is_said_without_a_word_of_diagnosis(
    stain: str | None, painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """Of an unknown stain, and of a wrong one, where nothing is drawn."""
    unknown = painted((HSIL, 120, 130), *FEW, stains=())
    with screening(unknown, models, tmp_path, stain=stain, adequacy__min_cells="100000") as task:
        outcome = await screened(task, engine)
    assert (outcome.cells is None) is (stain == "HE")
    assert result_of(outcome).exploratory
    told = text_of(outcome, "unsatisfactory-yet-reached")
    assert "1 - p(cell pattern 0)" in told
    assert told.endswith("Cells of another pattern may be there: look at the slide.")
    assert not DIAGNOSIS.search(told)


async def test_a_blurred_smear_is_unsatisfactory(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    blurred = cv2.GaussianBlur(smear([(HSIL, 120, 130), *FEW], size_um=400), (0, 0), 12)
    with screening(write_smear(tmp_path / "slide", np.asarray(blurred)), models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    assert text_of(outcome, "unsatisfactory-blurred") == (
        "100 % of the stained area is out of focus. The slide is unsatisfactory for evaluation."
    )
    assert result_of(outcome).categories == ()


async def test_an_he_slide_is_out_of_scope(cmu_slide: Path, models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    with screening(cmu_slide, models, tmp_path, site=CERVIX) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.exploratory
    assert result.category is None
    assert {"stain-outside", "stain-not-papanicolaou"} <= {code.code for code in result.withheld}
    assert (outcome.cells, result.gallery) == (None, ())
    assert outcome.pictures.keys() == {"thumbnail"}


async def test_an_he_slide_that_says_it_is_papanicolaou_is_found_out_by_its_colours(
    cmu_slide: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(cmu_slide, models, tmp_path, site=CERVIX, stain="PAP") as task:
        task.slide.header = replace(task.slide.header, stains=())
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert "stain-not-papanicolaou" in {code.code for code in result.withheld}
    assert result.exploratory
    assert outcome.cells is None


async def test_the_order_and_the_header_differ_in_the_stain(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path, stain="HE") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert [code.code for code in result.withheld] == ["stain-conflict"]
    assert len(result.classes) == 7
    assert result.classes[HSIL].code == Code("CYT-4", "99PATHSERVE", "cell pattern 4")
    assert outcome.cells is None


async def test_cerebrospinal_fluid_is_not_cervical(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    region = RegionUm(x_um=1200, y_um=1200, width_um=500, height_um=500)
    with screening(data_path("slides", "csf_breast_pap"), models, tmp_path, region=region) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.category is None
    assert "specimen-not-cervical" in {code.code for code in result.withheld}
    assert keys(outcome)[0] == "specimen-not-cervical"
    assert outcome.cells is None


async def test_a_liquid_based_slide_is_read_and_told(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    liquid = Code("430346005", "SCT", "Liquid based cytologic material")
    with screening(hsil, models, tmp_path, kind=liquid) as task:
        outcome = await screened(task, engine)
    assert result_of(outcome).categories == (HSIL,)
    assert not result_of(outcome).exploratory
    assert keys(outcome)[0] == "preparation-not-validated"


# Sites.


def origin_of(task: SlideTask) -> Origin:
    return Origin.of(task.slide.header, "PAP")


def state_of(**changes: Any) -> SiteState:
    state = identity("north", 1, "adapted", SOURCE, slides=40, cells=400, distance_raw=2.0, gate=1.0)
    return replace(state, **changes)


def sign(folder: Path, state: SiteState, origin: Origin) -> None:
    when = datetime(2026, 11, 1, tzinfo=UTC)
    record = FitRecord(
        origin=origin, slides=(), left_out=0, models={}, user="fitter", time=when, state_sha256=state.digest
    )
    store = SiteStore(folder)
    version = store.add(state, record, lambda state: None)
    store.sign(state.site, version.state.version, "Dr Signer", "signer", when, lambda state: None)


def without_hsil() -> dict[str, npt.NDArray[np.float32]]:
    """A state in which no cell looks like HSIL any more."""
    gamma_D = np.ones(WIDTH, np.float32)
    gamma_D[HSIL] = 0
    return {"gamma_D": gamma_D, "beta_D": np.zeros(WIDTH, np.float32)}


async def test_adaptation_that_turns_a_slide_normal_is_flagged_and_the_stricter_call_stands(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path / "task", state_folder=tmp_path) as task:
        sign(tmp_path, state_of(**without_hsil()), origin_of(task))
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert engine.calls["smartccs_slide"] == 2
    assert result.categories == (HSIL,)
    assert "stricter call" in text_of(outcome, "adaptation-turned-normal")
    assert result.classes[HSIL].probability < 0.1 < result.classes[HSIL].probability_unadapted
    # The record has what either answer is made from.
    for share, logit in (("probability", "logit"), ("probability_unadapted", "logit_unadapted")):
        said = probable([getattr(each, logit) for each in result.classes])
        assert said == pytest.approx([getattr(each, share) for each in result.classes])
    assert (result.adaptation.site, result.adaptation.verdict, result.adaptation.version) == ("north", "adapted", 1)
    assert (result.adaptation.applied, result.adaptation.features_mapped) == (True, True)
    assert result.adaptation.signed_by == "Dr Signer"
    assert result.gallery[0].index == HSIL
    assert "site-not-commissioned" not in keys(outcome)


def fitted(away: Densities) -> SiteState:
    """As a fit makes it of slides of these densities, whose cells are like the source's once colours are mapped."""
    counts_3V = np.zeros((3, 256), np.int64)
    for channel, (mean, deviation) in enumerate(zip(away.mean, away.deviation, strict=True)):
        spread = mean**2 + deviation**2  # glass, and one density that gives the rest
        share = mean**2 / spread
        counts_3V[channel, [255, round(255 * math.exp(-spread / mean))]] = round(1e6 * (1 - share)), round(1e6 * share)

    def cells(colour: ColourMap | None) -> SiteCells:
        features_ND = np.tile(SOURCE.mean_D, (400, 1)) + np.float32(0.5 if colour is None else 0)
        return SiteCells(features_ND, lambda _: np.ones(400))

    return fit("north", 1, SOURCE, 40, counts_3V, cells)


async def test_a_site_whose_colours_are_mapped_is_looked_at_twice(
    models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """The slide's colours are a site's: mapped to the source's, its cells are found, and without they are not. Colours
    are enough there: of features nothing is mapped."""
    away = Densities(
        tuple(0.6 * each for each in SOURCE.densities.mean), tuple(0.6 * each for each in SOURCE.densities.deviation)
    )
    pale = ColourMap(SOURCE.densities, away)(smear([(HSIL, 120, 130), *FEW], size_um=400))
    slide = write_smear(tmp_path / "slide", pale)
    state = fitted(away)
    assert state.colour is not None
    assert state.colour.site.mean == pytest.approx(away.mean, rel=0.01)
    with screening(slide, models, tmp_path / "task", state_folder=tmp_path) as task:
        sign(tmp_path, state, origin_of(task))
        outcome = await screened(task, engine)
    result = result_of(outcome)
    used = result.adaptation
    assert (used.verdict, used.digest, used.applied, used.features_mapped) == ("adapted", state.digest, True, False)
    assert result.categories == (HSIL,)
    assert result.detected[HSIL - 1] == 1
    assert "without the adaptation" in text_of(outcome, "no-candidate-cells")
    windows = len(Screened.load(tmp_path / "task" / "windows.npz").windows)  # type: ignore[union-attr]
    assert engine.calls["smartccs_detect"] == 2 * -(-windows // MOST_WINDOWS)


async def test_out_of_scope_normal_is_not_said_and_abnormal_is(
    painted: Callable[..., Path], hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    said = []
    for slide in (painted(*FEW), hsil):
        folder = tmp_path / slide.name
        with screening(slide, models, folder / "task", state_folder=folder) as task:
            sign(folder, state_of(verdict="out of scope", distance_coloured=20.0), origin_of(task))
            outcome = await screened(task, engine)
        assert "site-out-of-scope" in keys(outcome)
        said.append(result_of(outcome))
    normal, abnormal = said
    assert (normal.abnormal, normal.categories) == (None, ())
    assert [code.code for code in normal.withheld] == ["site-out-of-scope"]
    assert abnormal.categories == (HSIL,)


async def test_the_report_has_the_state_that_was_used(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """A state that is signed after the slide was read is not the one of its report."""
    with screening(hsil, models, tmp_path / "task", state_folder=tmp_path) as task:
        before = await screened(task, engine)
        sign(tmp_path, state_of(**without_hsil()), origin_of(task))
        after = CervicalScreening().outcome(task)
    assert result_of(before) == result_of(after)
    assert result_of(after).adaptation.version == 0


async def test_a_state_of_another_model_is_no_state(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path / "task", state_folder=tmp_path) as task:
        sign(tmp_path, state_of(source_sha256="0" * 64), origin_of(task))
        outcome = await screened(task, engine)
    assert "fitted to another model" in text_of(outcome, "site-not-commissioned")
    assert result_of(outcome).categories == (HSIL,)


# Geometry.


@pytest.mark.parametrize("mpp", [0.25, 0.5])
async def test_a_cell_on_the_border_of_windows_is_one(
    mpp: float, painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    blank = painted(size_um=400.0, mpp=mpp)
    with screening(blank, models, tmp_path / "blank") as task:
        plan = Screened.of_task(task).windows
    lefts = np.unique(plan.lefts_N)
    assert len(lefts) > 1
    # Half of the second window's left edge, and in the middle of what it shares with the first.
    edge_um = float(lefts[1]) * plan.mpp_x
    shared_um = float(lefts[0] + plan.side_px + lefts[1]) / 2 * plan.mpp_x
    cells = [(LSIL, edge_um, 100.0), (HSIL, shared_um, 200.0)]
    with screening(painted(*cells, size_um=400.0, mpp=mpp), models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    assert result_of(outcome).detected == (0, 1, 0, 1, 0, 0)
    assert outcome.cells is not None
    middles_N2 = (outcome.cells.boxes_N4[:, :2] + outcome.cells.boxes_N4[:, 2:]) / 2 * mpp
    for _, x, y in cells:
        assert np.hypot(*(middles_N2 - (x, y)).T).min() < 3


async def test_only_the_region_counts(hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    region = RegionUm(x_um=40, y_um=70, width_um=100, height_um=45)
    with screening(hsil, models, tmp_path, region=region) as task:
        outcome = await screened(task, engine)
    assert result_of(outcome).detected == (2, 0, 0, 0, 0, 0)
    assert "region-only" in keys(outcome)


async def test_a_slide_that_is_too_coarse_is_refused_and_one_that_is_coarser_is_told(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(painted(*FEW, mpp=0.6), models, tmp_path / "a") as task, pytest.raises(ResolutionTooCoarse):
        await screened(task, engine)
    with screening(painted((HSIL, 120, 130), *FEW, mpp=0.5), models, tmp_path / "b") as task:
        outcome = await screened(task, engine)
    assert result_of(outcome).categories == (HSIL,)
    assert "enlarged by 1.33" in text_of(outcome, "coarser-than-model")


@pytest.mark.parametrize(
    ("mpp", "told", "scale"),
    [(0.1, True, 1), (0.15, True, 0.3 / 0.375), (0.2, False, 1), (0.5, False, 0.5 / 0.375), (0.52, True, 0.52 / 0.375)],
)
async def test_a_scan_finer_or_coarser_than_accepted_is_told(
    mpp: float,
    told: bool,
    scale: float,
    painted: Callable[..., Path],
    models: Path,
    engine: OnnxEngine,
    tmp_path: Path,
) -> None:
    """A level near the detector's resolution is read as it is, of a finer scan, too; any other is scaled."""
    cells = ((HSIL, 120, 130), (NILM, 60, 90))
    with screening(painted(*cells, size_um=250.0, mpp=mpp), models, tmp_path) as task:
        outcome = await screened(task, engine)
    assert ("scan-scale-outside" in keys(outcome)) is told
    if told:
        said = text_of(outcome, "scan-scale-outside")
        assert said.startswith(f"The slide was scanned at {mpp:.3f} µm per pixel; from 0.2 to 0.5 is accepted.")
    assert result_of(outcome).detected[HSIL - 1] == 1
    assert result_of(outcome).scale == pytest.approx(scale, abs=0.002)


async def test_what_lies_round_the_cells_is_read_too_once_they_are_known(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    half = CervicalScreening()
    with screening(hsil, models, tmp_path) as task:
        assert len(half.plan(task).reads) == 1
        await screened(task, engine)
        windows, cells = half.plan(task).reads
    assert windows.grid == cells.grid
    assert len(cells) > 0


async def test_the_gallery_has_twelve_cells_at_most(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    many = [(LSIL, 60.0 + 40 * (n % 7), 60.0 + 40 * (n // 7)) for n in range(28)]
    with screening(painted(*many), models, tmp_path) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.detected == (0, 28, 0, 0, 0, 0)
    assert result.bag == 20  # the best of each class
    assert len(result.gallery) == GALLERY
    assert sum(role.startswith("cell-") and role != "cell-map" for role in outcome.pictures) == GALLERY


# Steps that end in the middle, and what they leave.


class _Dies:
    """An engine that ends the analysis at its n-th call."""

    def __init__(self, engine: OnnxEngine, calls: int) -> None:
        self._engine, self._left = engine, calls

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
        if not self._left:
            raise Cancelled("The analysis was cancelled.")
        self._left -= 1
        return await self._engine.infer(model, batch)


async def test_a_killed_analysis_goes_on_with_the_same_bits(
    painted: Callable[..., Path], models: Path, tmp_path: Path
) -> None:
    slide = painted((HSIL, 120, 130), *((LSIL, 60.0 + 40 * n, 200.0) for n in range(6)), *FEW, size_um=600.0)
    whole = OnnxEngine(models)
    with screening(slide, models, tmp_path / "whole") as task:
        expected = await screened(task, whole)
    calls = sum(whole.calls.values())
    dying = OnnxEngine(models)
    with screening(slide, models, tmp_path / "killed") as task:
        for die_after in range(calls):
            with pytest.raises(Cancelled):
                await screened(task, _Dies(dying, min(die_after, 1)))
            if dying.calls.get("smartccs_slide"):
                break
        outcome = await screened(task, dying)
    assert result_of(outcome) == result_of(expected)
    assert outcome.pictures == expected.pictures
    assert outcome.cells is not None
    assert expected.cells is not None
    np.testing.assert_array_equal(outcome.cells.boxes_N4, expected.cells.boxes_N4)


async def test_nothing_is_asked_twice(hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    with screening(hsil, models, tmp_path) as task:
        first = await screened(task, engine)
        calls = dict(engine.calls)
        again = await screened(task, engine)
    assert engine.calls == calls
    assert result_of(first) == result_of(again)


@pytest.mark.parametrize("changed", [0, 1, 2])
async def test_another_engine_s_rows_are_not_taken(
    changed: int, hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path) as task:
        await screened(task, engine)
        version = replace(task.models[changed].card.version, engine_sha256="f" * 64)
        other = replace(task.models[changed], card=replace(task.models[changed].card, version=version))
        served = tuple(other if place == changed else each for place, each in enumerate(task.models))
        with pytest.raises(RowsOutdated):
            CervicalScreening().outcome(replace(task, models=served))
        calls = engine.calls["smartccs_slide"]
        await screened(replace(task, models=served), engine)
        assert engine.calls["smartccs_slide"] == calls + 1


class _Late:
    """An engine that answers every other request late, so that answers come out of order."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine, self._asked = engine, 0

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> dict[str, Any]:
        self._asked += 1
        if self._asked % 2:
            await asyncio.sleep(0.05)
        return await self._engine.infer(model, batch)


async def test_neither_the_order_of_answers_nor_the_batch_changes_anything(
    painted: Callable[..., Path], models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    slide = painted((HSIL, 120, 130), *((LSIL, 60.0 + 40 * n, 200.0) for n in range(6)), *FEW, size_um=600.0)
    answers: list[Engine] = [engine, engine, engine, _Late(engine)]
    found = []
    for batch, answering in zip((1, 4, 16, 2), answers, strict=True):
        with screening(slide, models, tmp_path / f"{batch}") as task:
            plan, fit = Screened.of_task(task).windows, ScreeningModels.of_task(task)
            windows = DetectedWindows(task, plan, fit, batch=batch)
            await windows.compute(answering, progress=lambda done: None, cancelled=lambda: False)
            cells = SlideCells(windows, AS_IT_IS, batch=batch)
            await cells.embed(answering, cancelled=lambda: False)
            found.append((cells.found, cells.features()))
    for cells, features_ND in found[1:]:
        np.testing.assert_allclose(cells.boxes_N4, found[0][0].boxes_N4, atol=1e-3)
        np.testing.assert_array_equal(cells.classes_N, found[0][0].classes_N)
        np.testing.assert_allclose(features_ND, found[0][1], atol=1e-6)


Answer = dict[str, npt.NDArray[Any]]


class _Answers:
    """An engine whose answers of one model are changed."""

    def __init__(self, engine: OnnxEngine, model: str, change: Callable[[Answer], Answer]) -> None:
        self._engine, self._model, self._change = engine, model, change

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> Answer:
        answer = await self._engine.infer(model, batch)
        return self._change(answer) if model == self._model else answer


def one_is(name: str, value: float) -> Callable[[Answer], Answer]:
    """Changes one number of an output."""

    def change(answer: Answer) -> Answer:
        answer[name].flat[-1] = value
        return answer

    return change


def without(name: str) -> Callable[[Answer], Answer]:
    return lambda answer: {key: value for key, value in answer.items() if key != name}


def cut(name: str) -> Callable[[Answer], Answer]:
    """Ends an output before its last row."""
    return lambda answer: answer | {name: answer[name][:-1]}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        *(
            (model, change(name))
            for model, name in (
                ("smartccs_detect", "scores"),
                ("smartccs_detect", "boxes"),
                ("smartccs_embed", "embedding"),
                ("smartccs_slide", "logits"),
                ("smartccs_slide", "cell_logits"),
            )
            for change in (without, cut, lambda name: one_is(name, np.nan), lambda name: one_is(name, -np.inf))
        ),
        # As many numbers as are asked for, of another shape.
        ("smartccs_detect", lambda answer: {"scores": answer["boxes"], "boxes": answer["scores"]}),
        ("smartccs_detect", one_is("scores", 1.5)),
        ("smartccs_detect", one_is("scores", -0.5)),
    ],
)
async def test_an_answer_that_is_cut_off_or_no_number_is_an_error_and_is_not_kept(
    model: str, change: Callable[[Answer], Answer], hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path) as task:
        with pytest.raises(InferenceError, match=f"The model {model} (does not answer with finite|answers with sco)"):
            await screened(task, _Answers(engine, model, change))
        assert result_of(await screened(task, engine)).categories == (HSIL,)


async def test_a_hung_model_s_slide_goes_on_behind_what_was_answered(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    class Hangs:
        async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> Answer:
            if model == "smartccs_slide":
                assert deadline_s == 300
                raise InferenceTimeout("It has not answered.")
            return await engine.infer(model, batch)

    with screening(hsil, models, tmp_path) as task:
        with pytest.raises(InferenceTimeout):
            await screened(task, Hangs())
        with pytest.raises(RowsOutdated):
            CervicalScreening().outcome(task)
        asked = dict(engine.calls)
        assert result_of(await screened(task, engine)).categories == (HSIL,)
    assert engine.calls == asked | {"smartccs_slide": 1}


@pytest.mark.parametrize("name", ["bag.npz", "cells-plain.npz", "features-plain.bin", "windows.bin", "windows.npz"])
async def test_a_file_that_was_cut_in_half_is_computed_again(
    name: str, hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(hsil, models, tmp_path) as task:
        expected = await screened(task, engine)
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert result_of(await screened(task, engine)) == result_of(expected)


# A category that its own probability does not bear out.


def head_saying(engine: OnnxEngine, *probabilities: float) -> Engine:
    """The slide's model says just this of the seven classes."""

    def change(answer: Answer) -> Answer:
        logits_1C = TEMPERATURE * (np.log(np.array([probabilities])) - BIASES)
        return answer | {"logits": logits_1C.astype(np.float32)}

    return _Answers(engine, "smartccs_slide", change)


FLAT = (0.14, 0.2, 0.16, 0.15, 0.15, 0.1, 0.1)


@pytest.mark.parametrize(
    ("abnormal_from", "probabilities", "category", "said"),
    [
        (
            0.9,
            FLAT,
            NILM,
            "The probability of NILM, which is named, is 0.140: less than that of ASC-US (0.200) and less than by "
            "chance (1 of 7). It is named by the deciding rule alone: 1 - p(NILM) is 0.860, and does not reach the "
            "operating point “95 % sensitivity” (0.900). Look at the probabilities of all classes before relying on "
            "it.",
        ),
        (
            0.3,
            (0.6, 0.02, 0.02, 0.02, 0.3, 0.02, 0.02),
            HSIL,
            "The probability of HSIL, which is named, is 0.300: less than that of NILM (0.600). It is named by the "
            "deciding rule alone: 1 - p(NILM) is 0.400, and reaches the operating point",
        ),
        # The likelier abnormal class may not be named, and NILM is no rival: chance alone.
        (0.3, (0.02, 0.12, 0.1, 0.1, 0.1, 0.5, 0.06), ASC_US, "is 0.120: less than by chance (1 of 7). It is"),
        # What may not be named is none to hold against NILM.
        (0.9, (0.2, 0.05, 0.05, 0.05, 0.05, 0.1, 0.5), NILM, None),
        (0.9, (0.5, 0.3, 0.04, 0.04, 0.04, 0.04, 0.04), NILM, None),
        (0.3, (0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1), ASC_US, None),
    ],
)
async def test_a_category_that_is_not_the_likelier_one_warns(
    abnormal_from: float,
    probabilities: tuple[float, ...],
    category: int,
    said: str | None,
    hsil: Path,
    engine: OnnxEngine,
    tmp_path: Path,
) -> None:
    models = write_screening(tmp_path / "models", abnormal_from=abnormal_from)
    with screening(hsil, models, tmp_path / "task") as task:
        outcome = await screened(task, head_saying(engine, *probabilities))
    assert result_of(outcome).categories == (category,)
    told = [finding.text for finding in outcome.findings if finding.code.code == "category-improbable"]
    assert len(told) == (said is not None)
    assert all(said is not None and said in text for text in told)


async def test_the_likelier_one_is_that_of_the_call_that_stands(
    hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """HSIL is named by what was said without the adaptation, where it was the likeliest."""
    with screening(hsil, models, tmp_path / "task", state_folder=tmp_path) as task:
        sign(tmp_path, state_of(**without_hsil()), origin_of(task))
        outcome = await screened(task, engine)
    assert result_of(outcome).turned
    assert "category-improbable" not in keys(outcome)


async def test_a_category_that_is_withheld_is_not_improbable(hsil: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    models = write_screening(tmp_path / "models", abnormal_from=0.9)
    with screening(hsil, models, tmp_path / "task", adequacy__min_cells="100000") as task:
        outcome = await screened(task, head_saying(engine, *FLAT))
    assert result_of(outcome).categories == ()
    assert "category-improbable" not in keys(outcome)


async def test_outside_the_intended_use_an_improbable_category_names_no_class(
    painted: Callable[..., Path], engine: OnnxEngine, tmp_path: Path
) -> None:
    models = write_screening(tmp_path / "models", abnormal_from=0.9)
    with screening(painted((HSIL, 120, 130), *FEW, stains=()), models, tmp_path / "task") as task:
        outcome = await screened(task, head_saying(engine, *FLAT))
    result, told = result_of(outcome), text_of(outcome, "category-improbable")
    assert result.exploratory
    assert result.classes[NILM].code.display in told
    assert not [name for name in NAMES if name in told]


async def test_every_encoding_warns_of_an_improbable_category(hsil: Path, tmp_path: Path) -> None:
    models = write_screening(tmp_path / "models", abnormal_from=0.9)
    artifacts = await reported(hsil, models, tmp_path, head_saying(OnnxEngine(models), *FLAT))
    report = json.loads((artifacts / "report.json").read_text())
    assert report["category"]["label"] == "NILM"
    assert report["operating_point"] == {"name": "95 % sensitivity", "abnormal_from": 0.9}
    [said] = [each["text"] for each in report["findings"] if each["code"]["code"] == "category-improbable"]
    page = " ".join(html.unescape(re.sub("<[^>]*>", " ", (artifacts / "report.html").read_text())).split())
    paper = "".join(pages((artifacts / "report.pdf").read_bytes()))
    document = pydicom.dcmread(artifacts / "report.sr.dcm").to_json()
    assert said in page
    assert "".join(said.split()) in paper
    assert json.dumps(said, ensure_ascii=False)[1:-1] in json.dumps(json.loads(document), ensure_ascii=False)
    rule = "1 - p(NILM) is 0.860; operating point “95 % sensitivity”: 0.900. Whether it is reached decides, not which"
    assert rule in page
    assert "".join(rule.split()) in paper
    assert "operating point 95 % sensitivity: 1 - probability of Negative for" in document


# Which models belong together.


@contextmanager
def changed(models: Path, folder: Path, name: str, **card: Any) -> Iterator[Path]:
    repository = shutil.copytree(models, folder / "models")
    write(repository / name, "card.json", read(repository / name, "card.json") | card)
    seal(repository / name)
    yield repository


@pytest.mark.parametrize(
    ("name", "card", "said"),
    [
        ("smartccs_embed", {"crop": None}, "how cells are cut"),
        ("smartccs_slide", {"feature_size": 5}, "5 features"),
        ("smartccs_slide", {"tiles": [1, 20]}, "at most 20 cells"),
    ],
)
async def test_models_that_do_not_fit_are_refused(
    name: str, card: dict[str, Any], said: str, hsil: Path, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with (
        changed(models, tmp_path, name, **card) as repository,
        screening(hsil, repository, tmp_path / "task") as task,
        pytest.raises(ModelRefused, match=said),
    ):
        await screened(task, engine)


def test_a_slide_model_of_another_detector_is_refused(models: Path, tmp_path: Path) -> None:
    protocol = protocol_named("cervical-screening")
    assert list(Pins.choose(protocol, Choices(), ModelRepository(models)).folders) == list(protocol.models)
    digests = read(models / "smartccs_detect", "card.json")["digests"] | {"weights_sha256": "9" * 64}
    with (
        changed(models, tmp_path, "smartccs_detect", digests=digests) as repository,
        pytest.raises(ModelsUnfit, match="another smartccs_detect"),
    ):
        Pins.choose(protocol, Choices(), ModelRepository(repository))


async def test_a_phantom_slide_is_read_to_its_end(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    truth = write_phantom(
        tmp_path / "slide", kind="cytology", width_px=3000, height_px=2600, mpp=0.25, organ=CERVIX, seed=4
    )
    with screening(tmp_path / "slide", models, tmp_path / "task", site=CERVIX) as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert truth.tissue
    assert result.detected[ASC_US - 1] > 0  # a phantom's nuclei have the colour of NILM's
    assert len(result.classes) == 7


@asynccontextmanager
async def case_run(slide: Path, models: Path, folder: Path, engine: Engine, archive: Archive) -> AsyncIterator[CaseRun]:
    """An analysis of one slide as a worker has it. What the specimen is, the order says in the laboratory's own
    code."""

    @asynccontextmanager
    async def opened(settings: Settings, folders: tuple[str, ...]) -> AsyncIterator[Engine]:
        yield engine

    header = Slide.open(sorted(slide.glob("*.dcm"))).header
    specimen = Specimen(
        slides=(SlideReference(header.study_uid, (header.series_uid,)),),
        container="PHANTOM-A-1",
        type=Code("ZYT-CX", "99LAB", "Portioabstrich"),
    )
    order = Order(
        "cervical-screening",
        (specimen,),
        accession="PHANTOM-ACC-1",
        patient=Patient("PHANTOM-1"),
        settings=(("adequacy.min_cells", "0"),),
    )
    settings = Settings(state=folder / "state", model_repository=models, specimen_codes={"99LAB|ZYT-CX": "276446009"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.TritonEngine, "open", opened)
        yield CaseRun("a-1", order, folder / "state" / "a-1", settings=settings, archive=archive)


async def reported(slide: Path, models: Path, folder: Path, engine: Engine) -> Path:
    """The folder of the files of a slide's report."""
    async with case_run(slide, models, folder, engine, FolderArchive(slide)) as run:
        await run.fetch()
        await run.infer()
        await run.report()
        return run.artifacts


async def test_the_frames_round_the_cells_are_fetched_in_a_second_turn(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an archive that sends single frames: the windows' first, then what pictures of cells show beyond."""
    monkeypatch.setattr(screening_pictures, "_LEAST_UM", 400.0)
    image = smear([], size_um=800)
    image[:] = image[0, 0]
    cv2.circle(image, (912, 912), 120, (150, 208, 214), -1)
    paint(image, HSIL, 912, 912, 0.25)
    slide = write_smear(tmp_path / "slide", image, root="island", organ=None)
    archive, engine = FrugalArchive(slide), OnnxEngine(models)
    async with case_run(slide, models, tmp_path, engine, archive) as run:
        await run.fetch()
        first = archive.frames_brought
        await run.infer()
        await run.report()
    assert archive.frames_brought > first
    report = json.loads((run.artifacts / "report.json").read_text())
    assert report["category"]["label"] == "HSIL"
    assert engine.calls["smartccs_slide"] == 1
    picture = cv2.imread(str(run.artifacts / "cell-1-1.jpg"))
    assert picture.shape[:2] == (1024, 1024)
