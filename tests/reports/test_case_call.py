"""Which slide of a case speaks for it, and what the case is then called."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pydicom
import pytest

from gateway.domain.bethesda import AGC, ASC_US, HSIL, LSIL, NAMES, NILM, SCC
from gateway.domain.order import RegionUm
from gateway.domain.report import Report
from gateway.domain.screened import ScreeningResult
from gateway.reports import screened_words, to_json, to_sr
from gateway.reports.case_call import case_call
from tests.reports.conftest import reading_of
from tests.reports.screened import (
    abnormal,
    classes_of,
    negative,
    no_cells,
    report_with,
    turned,
    unnamed,
    unsatisfactory,
    withheld,
)
from tests.reports.test_screened import ADEQUACY, CATEGORY, items, own, values_of

Kind = Callable[..., ScreeningResult]


@pytest.fixture(scope="module")
def images(image: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Three slides of one study."""
    made = [deepcopy(image) for _ in range(3)]
    for number, each in enumerate(made, 1):
        each.SeriesInstanceUID, each.SOPInstanceUID = f"2.25.70{number}", f"2.25.71{number}"
        each.ContainerIdentifier = f"A{number}"
    return made


def named(number: int) -> Kind:
    """An abnormal slide of that class."""

    def kind(slide, **changes: object) -> ScreeningResult:
        served = [0.0625] * 7
        served[number] = 0.625
        return abnormal(slide, categories=(number,), classes=classes_of(served), **changes)

    return kind


def less_sure(slide) -> ScreeningResult:
    return negative(slide, classes=classes_of((0.90625, 0.0625, 0.03125, 0, 0, 0, 0)))


def doubtful(slide) -> ScreeningResult:
    """Abnormal, most of all of an unsupported class that is as grave as HSIL."""
    return replace(unnamed(slide), classes=classes_of((0.0625, 0.0625, 0, 0, 0.25, 0.125, 0.5)))


def doubted(slide) -> ScreeningResult:
    """Unsatisfactory, and more abnormal than not."""
    return replace(unsatisfactory(slide), classes=classes_of((0.25, 0.0625, 0.0625, 0.125, 0.375, 0.0625, 0.0625)))


def case(images: list[pydicom.Dataset], *kinds: Kind) -> Report:
    slides = [reading_of(image) for image in images]
    return report_with(slides, [kind(slide) for kind, slide in zip(kinds, slides, strict=False)])


@pytest.mark.parametrize(
    ("kinds", "speaks", "category"),
    [
        ((negative, named(LSIL), named(HSIL)), 2, HSIL),
        ((named(SCC), named(HSIL), negative), 0, SCC),
        ((named(ASC_US), negative, named(AGC)), 2, AGC),
        ((unsatisfactory, named(ASC_US), negative), 1, ASC_US),
        ((withheld, negative, named(LSIL)), 2, LSIL),
        # Of equals the first, and AGC is no graver than HSIL.
        ((named(HSIL), named(AGC), named(HSIL)), 0, HSIL),
        # Graver than what is named beside it: no lesser class stands for the case.
        ((named(LSIL), unnamed, negative), 1, None),
        ((doubtful, named(SCC), negative), 1, SCC),
        ((negative, unsatisfactory, negative), 1, None),
        ((negative, negative, no_cells), 2, None),
        ((withheld, unsatisfactory, negative), 0, None),
        # Of undecided slides the most abnormal, and one without cells keeps the case from being negative.
        ((withheld, doubted, negative), 1, None),
        ((doubted, no_cells, unsatisfactory), 0, None),
        ((no_cells, unsatisfactory, negative), 1, None),
        ((negative, turned, less_sure), 1, HSIL),
        ((negative, less_sure, negative), 1, NILM),
    ],
)
def test_the_gravest_slide_speaks(
    kinds: tuple[Kind, ...], speaks: int, category: int | None, images: list[pydicom.Dataset]
) -> None:
    report = case(images, *kinds)
    call = case_call(report)
    assert call is not None
    assert call.slide.series == images[speaks].SeriesInstanceUID
    assert (call.category and call.category.index) == category
    assert bool(call.withheld) == (category is None)
    document = json.loads(to_json(report))
    slide = report.screenings[speaks]
    assert (document["category"] or {}).get("label") == (None if category is None else NAMES[category])
    assert document["screened_series"] == slide.series
    assert (document["probabilities"] or {}).get("NILM") == (slide.classes[0].probability if slide.classes else None)
    assert document["adequacy"]["code"] == slide.adequacy.code.code
    assert document["adaptation"]["verdict"] == slide.adaptation.verdict
    assert len(document["screenings"]) == 3
    said = screened_words.case_words(report)
    assert said is not None
    assert said.given == (category is not None)
    assert said.rest.startswith(f"Slide {speaks + 1} (container A{speaks + 1})")
    sr = to_sr(report, images)
    assert values_of(sr, CATEGORY) == ([] if call.category is None else [call.category.code.code])
    assert values_of(sr, ADEQUACY) == [slide.adequacy.code.code]
    assert values_of(sr, own("slide-category")) == [
        each.category.code.code for each in report.screenings if each.category is not None
    ]


def test_a_case_is_not_negative_where_a_slide_was_not_read(images: list[pydicom.Dataset]) -> None:
    report = case(images, negative, less_sure)
    slides = (*report.slides[:2], replace(report.slides[2], read=False, reason="It is damaged."))
    call = case_call(replace(report, slides=slides))
    assert call is not None
    assert (call.slide.series, call.category) == ("2.25.702", None)
    assert [code.code for code in call.withheld] == ["slide-not-read"]
    grave = case_call(replace(case(images, negative, named(LSIL)), slides=slides))
    assert grave is not None
    assert grave.category is not None
    assert grave.category.index == LSIL


@pytest.mark.parametrize("key", ["frames-missing", "region-only"])
def test_a_case_is_not_negative_where_a_slide_was_read_in_part(key: str, images: list[pydicom.Dataset]) -> None:
    def in_part(*kinds: Kind) -> Report:
        report = case(images, *kinds)
        if key == "region-only":
            region = RegionUm(x_um=0, y_um=0, width_um=50, height_um=50)
            return replace(report, order=replace(report.order, region=region))
        return replace(report, slides=(*report.slides[:2], replace(report.slides[2], frames_missing=1)))

    report = in_part(negative, less_sure, negative)
    call = case_call(report)
    assert call is not None
    assert (call.slide.series, call.category) == ("2.25.702", None)
    assert [code.code for code in call.withheld] == [key]
    said = screened_words.case_words(report)
    assert said is not None
    assert not said.given
    assert call.withheld[0].display in said.rest
    grave = case_call(in_part(negative, named(LSIL), negative))
    assert grave is not None
    assert grave.category is not None
    assert (grave.category.index, grave.withheld) == (LSIL, ())


def parameters(sr: pydicom.Dataset) -> list[str]:
    return [str(item.TextValue) for item in items(sr) if item.ValueType == "TEXT"]


def test_the_figure_that_decides_is_the_one_that_is_printed(images: list[pydicom.Dataset]) -> None:
    report = case(images, turned)
    [result] = report.screenings
    said = screened_words.call_words(result)
    assert said.head.startswith("HSIL")
    assert "1 - p(NILM) is 0.938 without the adaptation; operating point" in said.rest
    told = "the call without the adaptation stands: 1 - probability of Negative"
    assert sum(told in text for text in parameters(to_sr(report, images))) == 1
    plain = case(images, abnormal)
    assert "without the adaptation" not in screened_words.call_words(plain.screenings[0]).rest
    assert not any(told in text for text in parameters(to_sr(plain, images)))


def test_nothing_speaks_where_nothing_was_screened(images: list[pydicom.Dataset]) -> None:
    assert case_call(case(images)) is None
