"""Slides with little on them, or spoiled: cells that lie alone on glass, ink, no colour, blood, and what else hides
cells."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from gateway.analyses.screening import CervicalScreening
from gateway.analyses.slide_half import SlideOutcome
from gateway.domain.bethesda import HSIL, NILM
from gateway.domain.screened import ScreeningResult
from tests.support.bags import OnnxEngine
from tests.support.screening import PAP, screened, screening, smear, write_smear
from tests.support.screening_models import paint, write_screening
from tests.support.smears import MPP as DRAWN_MPP
from tests.support.smears import smear as drawn_smear
from training.smartccs import damage

Image = npt.NDArray[np.uint8]

GLASS = 243
MPP = 0.25
INK = (20, 40, 160)
UNSATISFACTORY, BLOOD, AIR_DRIED = "125154007", "123836007", "125162004"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(models: Path) -> OnnxEngine:
    return OnnxEngine(models)


def glass(size_um: float) -> npt.NDArray[np.uint8]:
    return np.full((round(size_um / MPP), round(size_um / MPP), 3), GLASS, np.uint8)


def result_of(outcome: SlideOutcome) -> ScreeningResult:
    assert outcome.screening is not None
    return outcome.screening


def keys(outcome: SlideOutcome) -> list[str]:
    return [finding.code.code for finding in outcome.findings]


@pytest.mark.parametrize("cells", [1, 3])
async def test_cells_that_lie_alone_on_glass_are_read(
    cells: int, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    """The only abnormal ones, far from the sheet of the others; alone, or three that touch."""
    image = glass(1600)
    image[:1600, :1600] = smear([(NILM, 120, 90)], size_um=400)
    for number in range(cells):
        paint(image, HSIL, (1200 + 12 * number) / MPP, 1210 / MPP, MPP)
    with screening(write_smear(tmp_path / "slide", image), models, tmp_path / "task") as task:
        windows = len(CervicalScreening().plan(task))
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.detected[HSIL - 1] >= 1
    assert (result.withheld, result.adequacy.reasons, result.categories) == ((), (), (HSIL,))
    assert windows <= 9 + 4


async def test_empty_glass_is_not_read(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    noisy = np.clip(glass(600) + np.random.default_rng(1).normal(0, 4, (2400, 2400, 3)), 0, 255).astype(np.uint8)
    with screening(write_smear(tmp_path / "slide", noisy), models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    assert [code.code for code in result_of(outcome).adequacy.reasons] == ["unsatisfactory-empty"]
    assert engine.calls == {}


async def test_what_lies_under_ink_is_told(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    image = glass(1600)
    image[:1600, :1600] = smear([(HSIL, 120, 130), (NILM, 200, 200)], size_um=400)
    image[2000:, 2000:] = INK
    with screening(write_smear(tmp_path / "slide", image), models, tmp_path / "task", adequacy__max_pen="1") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert (result.withheld, result.adequacy.reasons, result.categories) == ((), (), (HSIL,))
    assert "pen-marks" in keys(outcome)


async def test_a_slide_under_ink_is_not_just_empty(models: Path, engine: OnnxEngine, tmp_path: Path) -> None:
    image = glass(600)
    image[:] = INK
    with screening(write_smear(tmp_path / "slide", image), models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    reasons = [code.code for code in result_of(outcome).adequacy.reasons]
    assert reasons == ["unsatisfactory-empty", "unsatisfactory-pen"]
    assert "unsatisfactory-pen" in keys(outcome)


async def test_a_grey_slide_with_cells_is_not_taken_for_papanicolaou(
    models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    coloured = smear([(HSIL, 120, 130), (NILM, 200, 200)], size_um=400)
    grey = np.repeat(coloured.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    paint(grey, HSIL, 120 / MPP, 130 / MPP, MPP)
    with screening(write_smear(tmp_path / "slide", grey), models, tmp_path / "task", adequacy__min_cells="0") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    assert result.classes
    assert "stain-colourless" in [code.code for code in result.withheld]
    assert "stain-colourless" in keys(outcome)
    assert (result.abnormal, result.category) == (None, None)


@pytest.mark.parametrize("stated", [True, False])
async def test_too_little_to_measure_the_stain_is_told_and_needs_somebodys_word_for_it(
    stated: bool, models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    image = glass(600)
    cv2.circle(image, (912, 912), 120, (150, 208, 214), -1)
    paint(image, HSIL, 912, 912, MPP)
    slide = write_smear(tmp_path / "slide", image, stains=PAP if stated else ())
    with screening(slide, models, tmp_path / "task", adequacy__min_cells="0") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    [told] = [finding.text for finding in outcome.findings if finding.code.code == "stain-too-little"]
    assert told.startswith("Too little of the slide is stained for its stain to be measured: ")
    assert len(result.classes) == 7
    if stated:
        assert (result.withheld, result.categories) == ((), (HSIL,))
        assert told.endswith("It is taken to be what the order or the image header states.")
    else:
        assert [code.code for code in result.withheld] == ["stain-too-little"]
        assert (result.abnormal, result.categories) == (None, ())
        assert told.endswith("No category is given. State the stain in the order.")


async def test_an_empty_slide_says_that_its_stain_was_not_measured(
    models: Path, engine: OnnxEngine, tmp_path: Path
) -> None:
    with screening(write_smear(tmp_path / "slide", glass(600)), models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    assert {"stain-too-little", "unsatisfactory-empty"} <= set(keys(outcome))
    assert "stain-too-little" not in [code.code for code in result_of(outcome).withheld]


def spoiled(change: Callable[[Image], Image], share: float = 1) -> Image:
    """Nine drawn tiles in a square, enough to measure a stain by, changed on that share of their width."""
    image = np.vstack([np.hstack([drawn_smear(seed=3 * row + column) for column in range(3)]) for row in range(3)])
    width = round(share * image.shape[1])
    image[:, :width] = change(image)[:, :width]
    return image


def thick(image_HW3: Image) -> Image:
    """Covered by what is dense in all channels, as clumps of leucocytes are; bluish, and no ink."""
    return np.rint(image_HW3 * 10 ** -np.array([0.75, 0.62, 0.47])).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "reasons", "stain", "text"),
    [
        pytest.param(
            partial(spoiled, lambda image: image), [], "papanicolaou", None, id="as drawn"
        ),
        pytest.param(
            partial(spoiled, partial(damage.bloody, mpp=DRAWN_MPP, layers=1.5, haze=0.2), 0.42),
            [BLOOD],
            "papanicolaou",
            "of the stained area is blood.",
            id="partly covered by blood",
        ),
        pytest.param(
            partial(spoiled, partial(damage.bloody, mpp=DRAWN_MPP, layers=3.0, haze=2.0)),
            ["125161006", "unsatisfactory-obscured", BLOOD],
            "other",
            "of the stained area is blood.",
            id="covered by blood",
        ),
        pytest.param(
            partial(spoiled, partial(damage.air_dried, mpp=DRAWN_MPP)),
            [AIR_DRIED],
            "papanicolaou",
            "of the nuclei have no sharp edge, as air-dried.",
            id="air-dried",
        ),
        pytest.param(
            partial(spoiled, thick, 0.6),
            ["unsatisfactory-obscured"],
            "papanicolaou",
            "of the stained area is obscured.",
            id="obscured",
        ),
        pytest.param(
            partial(spoiled, partial(damage.blurred, mpp=DRAWN_MPP)),
            ["unsatisfactory-blurred"],
            "papanicolaou",
            "of the stained area is out of focus.",
            id="blurred",
        ),
        pytest.param(
            partial(spoiled, partial(damage.marked, mpp=DRAWN_MPP, width_um=375.0, seed=3)),
            ["unsatisfactory-pen"],
            "papanicolaou",
            "of the stained and inked area is pen.",
            id="partly under pen",
        ),
        pytest.param(partial(spoiled, partial(damage.giemsa, mpp=DRAWN_MPP)), [], "other", None, id="Giemsa"),
    ],
)  # fmt: skip
async def test_a_spoiled_slide_is_withheld_for_what_spoiled_it_and_for_nothing_else(
    image: Callable[[], Image],
    reasons: list[str],
    stain: str,
    text: str | None,
    models: Path,
    engine: OnnxEngine,
    tmp_path: Path,
) -> None:
    slide = write_smear(tmp_path / "slide", image(), mpp=DRAWN_MPP)
    with screening(slide, models, tmp_path / "task") as task:
        outcome = await screened(task, engine)
    result = result_of(outcome)
    withheld = [*(["stain-not-papanicolaou"] if stain == "other" else []), *([UNSATISFACTORY] if reasons else [])]
    assert [code.code for code in result.adequacy.reasons] == reasons
    assert result.adequacy.satisfactory is (not reasons)
    assert [code.code for code in result.withheld if code.code != "no-candidate-cells"] == withheld
    assert (result.category is None) is bool(withheld)
    assert "stain-too-little" not in keys(outcome)
    told = [finding for finding in outcome.findings if finding.code.code.startswith("unsatisfactory-")]
    assert len([each for each in told if each.code.code != "unsatisfactory-yet-reached"]) == len(reasons)
    assert text is None or [each.text for each in told if text in each.text]
