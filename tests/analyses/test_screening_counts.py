"""What is counted of a report's cervical slides."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from gateway.analyses.metrics import count_screenings
from gateway.domain.report import SlideReading
from gateway.domain.screened import ScreeningResult
from gateway.domain.tables import finding_code
from tests.reports.screened import (
    abnormal,
    exploratory,
    negative,
    no_cells,
    reached,
    turned,
    unnamed,
    unsatisfactory,
    withheld,
)

SLIDE = SlideReading(study="1.2.1", series="1.2.1.1", read=True, level_mpp=0.25)
Kind = Callable[[SlideReading], ScreeningResult]


def of_another_stain(slide: SlideReading) -> ScreeningResult:
    """Withheld for its stain first, and unsatisfactory besides."""
    result = unsatisfactory(slide)
    return replace(result, withheld=(finding_code("stain-not-papanicolaou"), *result.withheld))


def counted() -> dict[tuple[str, ...], float]:
    """By outcome and verdict; of those that were turned by nothing."""
    return {
        tuple(sample.labels[name] for name in ("outcome", "site_verdict") if name in sample.labels): sample.value
        for family in REGISTRY.collect()
        if family.name in ("screenings", "screenings_turned")
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@pytest.mark.parametrize(
    ("kind", "outcome", "verdict"),
    [
        (negative, "negative", "not commissioned"),
        (abnormal, "abnormal", "adapted"),
        (exploratory, "abnormal", "adapted"),
        (unnamed, "abnormal", "adapted"),
        (unsatisfactory, "unsatisfactory", "not commissioned"),
        (reached, "unsatisfactory", "adapted"),
        (no_cells, "no_cells", "not commissioned"),
        (withheld, "withheld", "out of scope"),
        (of_another_stain, "withheld", "not commissioned"),
    ],
)
def test_a_slide_is_counted_once_by_what_became_of_it(kind: Kind, outcome: str, verdict: str) -> None:
    before = counted()
    count_screenings([kind(SLIDE)])
    rose = {labels: value for labels, value in counted().items() if value != before.get(labels, 0.0)}
    assert rose == {(outcome, verdict): before.get((outcome, verdict), 0.0) + 1}


def test_a_slide_that_the_adaptation_would_have_turned_normal_is_counted_besides() -> None:
    before = counted()
    count_screenings([turned(SLIDE), abnormal(SLIDE)])
    after = counted()
    assert after[()] == before[()] + 1
    assert after["abnormal", "adapted"] == before.get(("abnormal", "adapted"), 0.0) + 2


def test_other_protocols_count_nothing() -> None:
    before = counted()
    count_screenings([])
    assert counted() == before
