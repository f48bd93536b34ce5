"""What the structured report says of a cervical slide: the case's category, and the parts of the slide's groups.

Bethesda's codes are values only where something is called so: the category, and what a single cell was taken for.
Probabilities and counts of all classes are measurements that a class's code names (TID 1501, TID 300).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from highdicom import sr as hd

from gateway.domain.bethesda import NILM
from gateway.domain.codes import NO_UNITS, PERCENT, PRIVATE_SCHEME, Code
from gateway.domain.report import Report, SlideReading
from gateway.domain.screened import Adaptation, Adequacy, ScreenedCell, ScreeningResult
from gateway.reports import sr_concepts as concept
from gateway.reports.case_call import case_call
from gateway.reports.screened_words import point_of, scaled_by
from gateway.reports.sr_segments import evaluation, measurement

CATEGORY = Code("19762-4", "LN", "General categories")
ADEQUACY = Code("19764-0", "LN", "Statement of adequacy")
WITHHELD = Code("withheld", PRIVATE_SCHEME, "Why no category is given")
SPEAKS = Code("speaking-slide", PRIVATE_SCHEME, "Slide that speaks for the case")
SLIDE_CATEGORY = Code("slide-category", PRIVATE_SCHEME, "Category of the slide")
BESIDE = Code("category-beside", PRIVATE_SCHEME, "Class that stands beside the category")
SLIDE_ADEQUACY = Code("slide-adequacy", PRIVATE_SCHEME, "Adequacy of the slide")
ADEQUACY_REASON = Code("adequacy-reason", PRIVATE_SCHEME, "Why the slide is unsatisfactory")
SQUAMOUS_CELLS = Code("squamous-cells", PRIVATE_SCHEME, "Estimated number of squamous cells")
LEAST_CELLS = Code("least-cells", PRIVATE_SCHEME, "Number of squamous cells that is asked for")
OBSCURED = Code("obscured-share", PRIVATE_SCHEME, "Share of the stained area that is obscured")
OUT_OF_FOCUS = Code("unfocused-share", PRIVATE_SCHEME, "Share of the stained area that is out of focus")
PROBABILITIES = Code("probabilities", PRIVATE_SCHEME, "Probabilities of the classes, as served")
UNADAPTED = Code("probs-unadapted", PRIVATE_SCHEME, "Probabilities without the adaptation to the site")
CANDIDATE_CELLS = Code("candidate-cells", PRIVATE_SCHEME, "Numbers of cells found, by class")
BAG_CELLS = Code("bag-cells", PRIVATE_SCHEME, "Number of cells that the slide's model saw")
SCREENED_CELL = Code("screened-cell", PRIVATE_SCHEME, "Cell that the answer rests on")
DETECTED_AS = Code("detected-as", PRIVATE_SCHEME, "Class that the detector gave the cell")
CONTRIBUTION = Code("contribution", PRIVATE_SCHEME, "What the cell adds to the logit of a class")
TOWARDS = Code("contributes-to", PRIVATE_SCHEME, "Class whose logit the cell adds to")
CELLS = Code("{cells}", "UCUM", "cells")


@dataclass(frozen=True, slots=True)
class GroupParts:
    """One measurement group of a slide, all but what all groups have. `role`: its name in tracking identifiers."""

    role: str
    finding: Code
    measurements: list[hd.Measurement]
    evaluations: list[hd.QualitativeEvaluation] = field(default_factory=list)
    parameters: list[str] | None = None


def case_items(report: Report) -> Iterator[hd.ContentItem]:
    """The case's category, once, or why it has none, and its adequacy; each names the slide that speaks for it."""
    call = case_call(report)
    if call is None:
        return
    said = (
        [(CATEGORY, call.category.code)] if call.category is not None else [(WITHHELD, code) for code in call.withheld]
    )
    for name, value in (*said, (ADEQUACY, call.slide.adequacy.code)):
        item = hd.CodeContentItem(
            name=concept.coded(name),
            value=concept.coded(value),
            relationship_type=hd.RelationshipTypeValues.CONTAINS,
        )
        item.ContentSequence = hd.ContentSequence(
            [
                hd.UIDRefContentItem(
                    name=concept.coded(SPEAKS),
                    value=call.slide.series,
                    relationship_type=hd.RelationshipTypeValues.HAS_PROPERTIES,
                )
            ]
        )
        yield item


def slide_evaluations(result: ScreeningResult) -> list[hd.QualitativeEvaluation]:
    """What the slide was read as, or why it has no category, and whether it can be judged."""
    codes = {each.index: each.code for each in result.classes}
    said = [
        evaluation(name, codes[number])
        for name, number in zip((SLIDE_CATEGORY, BESIDE), result.categories, strict=False)
    ]
    said += [evaluation(WITHHELD, code) for code in result.withheld]
    return [*said, evaluation(SLIDE_ADEQUACY, result.adequacy.code)]


def slide_parameters(result: ScreeningResult, slide: SlideReading) -> Iterator[str]:
    """The scale, the operating point, which classes are never named, and the adaptation to the slide's site."""
    scaled = scaled_by(result, slide)
    if scaled is not None:
        yield f"scaled by {scaled}"
    yield f"operating point {result.operating_point}: {point_of(result)}"
    first = next((each.code.display for each in result.classes if each.index == NILM), None)
    if first is not None:
        yield f"operating point {result.operating_point}: 1 - probability of {first} >= {result.abnormal_from:g}"
    if first is not None and result.turned:
        yield f"the call without the adaptation stands: 1 - probability of {first} is {result.deciding:g}"
    never = [each.code.display for each in result.classes if not each.supported]
    if never:
        yield f"never named, as the model was not measured for them: {', '.join(never)}"
    yield from _adaptation(result.adaptation)


def _adaptation(state: Adaptation) -> Iterator[str]:
    applied = "yes" if state.applied else "no"
    yield (
        f"adaptation to site {state.site}, version {state.version}, verdict {state.verdict}, applied {applied}, "
        f"sha256 {state.digest}, signed by {state.signed_by or 'nobody'}"
    )
    distances = (("raw", state.distance_raw), ("colours mapped", state.distance_coloured), ("gate", state.gate))
    measured = [f"{name} {value:g}" for name, value in distances if value is not None]
    if measured:
        yield f"distance of the site from the model's source: {', '.join(measured)}"


def screening_groups(result: ScreeningResult) -> Iterator[GroupParts]:
    """Adequacy; then, where a cell was found, the probabilities with and without adaptation, and the cells."""
    yield _adequacy(result.adequacy)
    if not result.classes:
        return
    yield GroupParts(
        "probabilities",
        PROBABILITIES,
        [measurement(each.code, each.probability, NO_UNITS) for each in result.classes],
    )
    yield GroupParts(
        "probabilities-unadapted",
        UNADAPTED,
        [measurement(each.code, each.probability_unadapted, NO_UNITS) for each in result.classes],
    )
    abnormal = [each for each in result.classes if each.index != NILM]
    counts = [measurement(each.code, count, CELLS) for each, count in zip(abnormal, result.detected, strict=True)]
    yield GroupParts("cells", CANDIDATE_CELLS, [*counts, measurement(BAG_CELLS, result.bag, CELLS)])


def _adequacy(adequacy: Adequacy) -> GroupParts:
    return GroupParts(
        "adequacy",
        adequacy.code,
        [
            measurement(SQUAMOUS_CELLS, adequacy.squamous_cells, CELLS),
            measurement(LEAST_CELLS, adequacy.least_cells, CELLS),
            measurement(OBSCURED, adequacy.obscured_share * 100, PERCENT),
            measurement(OUT_OF_FOCUS, adequacy.blurred_share * 100, PERCENT),
        ],
        [evaluation(ADEQUACY_REASON, code) for code in adequacy.reasons],
    )


def cell_parts(result: ScreeningResult, rank: int, cell: ScreenedCell) -> GroupParts:
    """One of the cells that the answer rests on; where it lies is the caller's (TID 1410)."""
    codes = {each.index: each.code for each in result.classes}
    return GroupParts(
        f"cell-{rank}",
        SCREENED_CELL,
        [
            measurement(concept.CELL_SCORE, cell.score, NO_UNITS),
            measurement(CONTRIBUTION, cell.contribution, NO_UNITS),
        ],
        [evaluation(DETECTED_AS, codes[cell.index]), evaluation(TOWARDS, codes[cell.towards])],
    )
