"""Whether a smear can be judged, by The Bethesda System (2014), chapter 1, and by what hides the cells of this one.

The figures are `gateway.slides.smear_quality`'s; what they are held against are settings of the protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.analyses.slide_half import SlideTask
from gateway.domain.report import Finding, FindingKind
from gateway.domain.screened import Adequacy
from gateway.domain.tables import adequacy_code, finding_code
from gateway.slides.smear_quality import SmearFigures

_EMPTY_UM2 = 1000.0
"""Stained area below which there is nothing on the slide: that of one squamous cell."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A slide's adequacy, and a finding for each reason against it."""

    adequacy: Adequacy
    findings: tuple[Finding, ...]


def judged(task: SlideTask, figures: SmearFigures) -> Judged:
    """A slide's figures held against the protocol's settings."""
    reasons = list(_against(task, figures))
    series = task.slide.header.series_uid
    adequacy = Adequacy(
        code=adequacy_code("unsatisfactory" if reasons else "satisfactory"),
        satisfactory=not reasons,
        reasons=tuple(adequacy_code(f"unsatisfactory-{key}") for key, _ in reasons),
        squamous_cells=figures.squamous_cells,
        least_cells=round(task.option("adequacy.min_cells")),
        obscured_share=figures.obscured_share,
        blurred_share=figures.blurred_share,
    )
    findings = (
        Finding(
            kind=FindingKind.QUALITY,
            code=finding_code(f"unsatisfactory-{key}"),
            text=f"{text} The slide is unsatisfactory for evaluation.",
            series=series,
        )
        for key, text in reasons
    )
    return Judged(adequacy, tuple(findings))


def _against(task: SlideTask, figures: SmearFigures) -> Iterator[tuple[str, str]]:
    """What makes the slide unsatisfactory: the reason's key, and a sentence."""
    if figures.stained_area_um2 < _EMPTY_UM2:
        yield "empty", "Nothing stained was seen on the slide."
        yield from _pen(task, figures)
        return
    least = round(task.option("adequacy.min_cells"))
    if figures.squamous_cells < least:
        yield "few-cells", f"About {figures.squamous_cells} squamous cells were seen; {least} are asked for."
    for key, setting, share, words in (
        ("obscured", "max_obscured", figures.obscured_share, "of the stained area is obscured"),
        ("blurred", "max_blurred", figures.blurred_share, "of the stained area is out of focus"),
        ("blood", "max_blood", figures.blood_share, "of the stained area is blood"),
        (
            "air-dried",
            "max_air_dried",
            figures.air_dried_share,
            "of the nuclei have no sharp edge, as air-dried",
        ),
    ):
        if share > task.option(f"adequacy.{setting}"):
            yield key, f"{100 * share:.0f} % {words}."
    yield from _pen(task, figures)


def _pen(task: SlideTask, figures: SmearFigures) -> Iterator[tuple[str, str]]:
    """Of a slide on which nothing else is seen, too: what lies under the ink is not known."""
    if figures.pen_share > task.option("adequacy.max_pen"):
        yield "pen", f"{100 * figures.pen_share:.0f} % of the stained and inked area is pen."
