"""When a slide's quality or stain becomes a finding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.analyses.planned import Planned
from gateway.analyses.readings import findings_of
from gateway.analyses.slide_half import SlideTask
from gateway.domain.model import StainReference
from gateway.domain.report import FindingKind, SlideQuality, SlideReading, StainFigures
from gateway.operations.settings import Settings
from gateway.slides.stain import stain_figures
from tests.analyses.test_slide_classes import opened
from tests.slides.test_stain import EOSIN, HAEMATOXYLIN, painted

SEEN = SlideQuality(
    focus_p10=0.1,
    focus_median=0.2,
    focus_p90=0.3,
    blurred_share=0.01,
    saturation=0.4,
    brightness=0.5,
    pen_area_mm2=0.0,
)
STAINED = StainFigures(haematoxylin_od=0.35, eosin_od=0.3, haematoxylin=HAEMATOXYLIN, eosin=EOSIN, distance_deg=10.0)


@pytest.fixture(scope="module")
def task(cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlideTask]:
    with opened(cmu_slide, Settings().model_repository, tmp_path_factory.mktemp("task")) as found:
        yield found


def keys(
    task: SlideTask,
    seen: SlideQuality = SEEN,
    stained: StainFigures | None = STAINED,
    *,
    tiles: int = 0,
    stain: str | None = None,
) -> list[str]:
    header, plan = task.slide.header, Planned.of_task(task).plan
    reading = SlideReading(
        study=header.study_uid,
        series=header.series_uid,
        read=True,
        grid=plan.grid,
        level_mpp=0.499,
        stain=stain,
        tiles_read=tiles,
        quality=seen,
        stain_figures=stained,
    )
    found = findings_of(task, reading)
    assert {finding.kind for finding in found} <= {FindingKind.QUALITY}
    assert {finding.series for finding in found} <= {header.series_uid}
    return [finding.code.code for finding in found]


def test_a_usual_slide_has_none(task: SlideTask) -> None:
    assert keys(task) == []
    assert keys(task, stained=None) == []


def test_quality(task: SlideTask) -> None:
    assert keys(task, replace(SEEN, blurred_share=0.3)) == ["out-of-focus"]
    assert keys(task, replace(SEEN, pen_area_mm2=1.5)) == ["pen-marks"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"haematoxylin_od": 0.1}, "haematoxylin-pale"),
        ({"haematoxylin_od": 0.7}, "haematoxylin-dark"),
        ({"eosin_od": 0.1}, "eosin-pale"),
        ({"eosin_od": 0.7}, "eosin-dark"),
        ({"distance_deg": 26.0}, "stain-unlike"),
    ],
)
def test_stain(task: SlideTask, change: dict[str, float], key: str) -> None:
    assert keys(task, stained=replace(STAINED, **change)) == [key]


def test_an_he_slide_without_a_stain_to_measure_is_faint(task: SlideTask) -> None:
    assert keys(task, stained=None, tiles=53, stain="HE") == ["stain-faint"]
    assert keys(task, stained=None, tiles=2, stain="HE") == []
    assert keys(task, stained=None, tiles=53, stain="PAP") == []


def test_a_restained_slide_is_unlike_its_reference_and_a_faded_one_pale(task: SlideTask) -> None:
    """Green instead of eosin; and both stains at a seventh of their density."""
    reference = StainReference(haematoxylin=HAEMATOXYLIN, eosin=EOSIN, origin="painted")
    restained = stain_figures(painted()[:, [0, 2, 1]], reference)
    assert keys(task, stained=restained) == ["stain-unlike"]
    assert keys(task, stained=stain_figures(painted(), reference)) == []
    assert keys(task, stained=stain_figures(painted((0.07, 0.06)), reference)) == ["haematoxylin-pale", "eosin-pale"]
