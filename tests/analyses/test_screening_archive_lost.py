"""The PACS is lost after the detector's windows and before the cells are cut, whose frames are fetched only then: a
real worker, a real Orthanc."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import pytest

from gateway.domain.analysis import State
from gateway.domain.bethesda import HSIL
from gateway.domain.screened import ScreeningResult
from gateway.slides.cell_crops import CellCrops
from tests.analyses.screening_house import PATIENCE_S, House
from tests.analyses.screening_worker import asked
from tests.support.bags import OnnxEngine
from tests.support.models import read, seal, write
from tests.support.orthanc import Orthanc, running_orthanc
from tests.support.screening import CERVIX, screened, screening, smear, write_smear
from tests.support.screening_models import CROP_PX, paint

pytestmark = pytest.mark.pacs

WIDE = CellCrops(CROP_PX, context=5.5)
"""What the encoder sees of a cell: more than the overlap of windows, so that frames beyond them are cut from."""


def screened_until_the_pacs_is_lost(house: House, pacs: Orthanc, slide: Path) -> str:
    """Order a slide. Once its windows' frames are there, the PACS ends, and the detector answers."""
    analysis = house.order(slide)
    house.until(lambda: ("infer", "started") in house.steps(analysis), PATIENCE_S)
    assert asked(house.state) == []
    pacs.stop()
    house.let_models_answer()
    return analysis


@pytest.fixture(scope="module")
def models(screening_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of screening, but with an encoder that sees cells in wide surroundings."""
    repository = shutil.copytree(screening_models, tmp_path_factory.mktemp("models") / "repository")
    for name, block in (("smartccs_embed", "crop"), ("smartccs_slide", "screening")):
        card = read(repository / name, "card.json")
        crop = asdict(WIDE) if block == "crop" else {}
        write(repository / name, "card.json", card | {block: card[block] | crop | {"transform_sha256": WIDE.digest}})
        seal(repository / name)
    return repository


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Path:
    """A smear in the PACS: one abnormal cell on an island, which one window sees, near its rim."""
    image = smear([], size_um=800)
    image[:] = image[0, 0]
    cv2.circle(image, (1764, 1764), 60, (150, 208, 214), -1)
    paint(image, HSIL, 1764, 1764, 0.25)
    folder = write_smear(tmp_path_factory.mktemp("slide"), image, root="island", organ=CERVIX)
    pacs.upload(folder)
    return folder


@pytest.fixture(scope="module")
def expected(slide: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> ScreeningResult:
    """What is said of the slide in one go."""
    folder = tmp_path_factory.mktemp("task")
    with screening(slide, models, folder, adequacy__min_cells="0") as task:
        outcome = asyncio.run(screened(task, OnnxEngine(models)))
    assert outcome.screening is not None
    return outcome.screening


@pytest.fixture
def house(pacs: Orthanc, models: Path, tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, pacs.address, models)
    yield made
    made.close()


def assert_said(house: House, analysis: str, expected: ScreeningResult) -> None:
    [found] = house.report(analysis)["screenings"]
    assert found["detected"] == list(expected.detected) == [0, 0, 0, 1, 0, 0]
    assert [each["probability"] for each in found["classes"]] == [each.probability for each in expected.classes]


def stored(pacs: Orthanc) -> Counter[str]:
    return Counter({modality: len(pacs.instances(modality)) for modality in ("SR", "ANN")})


def test_an_archive_that_stays_away_fails_the_order_and_a_retry_goes_on_behind_the_windows(
    house: House, pacs: Orthanc, slide: Path, expected: ScreeningResult
) -> None:
    house.worker(PATHSERVE_RETRY_ATTEMPTS="1")
    before = stored(pacs)
    analysis = screened_until_the_pacs_is_lost(house, pacs, slide)
    try:
        assert house.ended(analysis, PATIENCE_S) is State.FAILED
        failure = house.record(analysis).analysis.failure
        assert failure is not None
        assert failure.reason == "archive-unavailable"
        assert failure.detail.startswith("The PACS ")
        assert not {step for step, _ in house.steps(analysis)} & {"report", "deliver"}
        assert house.artifacts(analysis) == []
        assert set(asked(house.state)) == {"smartccs_detect"}
        detected = len(asked(house.state))
    finally:
        pacs.start()
    assert stored(pacs) == before
    house.retry(analysis)
    house.until(lambda: house.record(analysis).analysis.state is State.COMPLETED, PATIENCE_S)
    assert house.final_events(analysis) == ["failed", "completed"]
    assert Counter(asked(house.state)) == {"smartccs_detect": detected, "smartccs_embed": 1, "smartccs_slide": 1}
    assert_said(house, analysis, expected)
    assert stored(pacs) == before + Counter(SR=1, ANN=1)


def test_an_archive_that_comes_back_meanwhile_costs_nothing(
    house: House, pacs: Orthanc, slide: Path, expected: ScreeningResult
) -> None:
    house.worker(PATHSERVE_RETRY_ATTEMPTS="100")
    analysis = screened_until_the_pacs_is_lost(house, pacs, slide)
    try:
        house.until(lambda: ("infer", "retry") in house.steps(analysis), PATIENCE_S)
        assert house.record(analysis).analysis.state is State.RUNNING
        assert house.artifacts(analysis) == []
        detected = asked(house.state)
    finally:
        pacs.start()
    assert house.ended(analysis, PATIENCE_S) is State.COMPLETED
    assert house.final_events(analysis) == ["completed"]
    assert asked(house.state) == [*detected, "smartccs_embed", "smartccs_slide"]
    assert_said(house, analysis, expected)
