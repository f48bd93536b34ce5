"""Cervical slides as they were read: results of every kind over the committed slide's real headers, and their cells.

The slide is none of the cervix; only its headers count here.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
import pydicom

from gateway.domain.bethesda import AGC, ASC_US, CLASSES, HSIL, LSIL, NILM
from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Finding, FindingKind, Report, SlideReading
from gateway.domain.screened import Adaptation, Adequacy, ScreenedCell, ScreeningClass, ScreeningResult
from gateway.domain.tables import adequacy_code, finding_code
from gateway.reports import SCHEMA_VERSION, CellMap, SlideSource
from tests.reports.conftest import reading_of, report_of

SATISFACTORY = Adequacy(
    code=adequacy_code("satisfactory"),
    satisfactory=True,
    reasons=(),
    squamous_cells=12_340,
    least_cells=5000,
    obscured_share=0.0625,
    blurred_share=0.03125,
)
UNSATISFACTORY = replace(
    SATISFACTORY,
    code=adequacy_code("unsatisfactory"),
    satisfactory=False,
    reasons=(adequacy_code("unsatisfactory-few-cells"), adequacy_code("unsatisfactory-pen")),
    squamous_cells=312,
)
ADAPTED = Adaptation(
    site="hospital-a/scanner-1/PAP",
    version=3,
    verdict="adapted",
    digest="ad" * 32,
    applied=True,
    features_mapped=True,
    distance_raw=3.5,
    distance_coloured=0.875,
    gate=2.0,
    signed_by="person:jane",
)
NOT_COMMISSIONED = Adaptation(
    site="hospital-b/scanner-2/PAP",
    version=0,
    verdict="not commissioned",
    digest="0d" * 32,
    applied=False,
    features_mapped=False,
    distance_raw=None,
    distance_coloured=None,
    gate=None,
    signed_by=None,
)
MOSTLY_HSIL = (0.0625, 0.03125, 0.0625, 0.125, 0.5, 0.09375, 0.125)
MOSTLY_NILM = (0.9375, 0.03125, 0.015625, 0.0078125, 0.00390625, 0.0001, 0.00380625)
UNSUPPORTED = (5, 6)
LEAST = 0.125
COUNTS = (40, 30, 9, 21, 2, 5)


def classes_of(
    served_C: Sequence[float], unadapted_C: Sequence[float] | None = None, *, exploratory: bool = False
) -> tuple[ScreeningClass, ...]:
    """All seven; outside the intended use under neutral names."""
    return tuple(
        ScreeningClass(
            index=number,
            name=f"Pattern {number + 1}" if exploratory else entry.name,
            code=Code(f"cell-pattern-{number + 1}", PRIVATE_SCHEME, f"Cell pattern {number + 1}")
            if exploratory
            else entry.code,
            supported=number not in UNSUPPORTED,
            probability=served_C[number],
            probability_unadapted=(unadapted_C or served_C)[number],
            logit=_logit(served_C[number]),
            logit_unadapted=_logit((unadapted_C or served_C)[number]),
        )
        for number, entry in enumerate(CLASSES)
    )


def _logit(probability: float) -> float:
    """A finite one, also of a probability that is rounded to 0."""
    return log(max(probability, 1e-9))


def gallery_of(slide: SlideReading) -> tuple[ScreenedCell, ...]:
    mpp = slide.level_mpp
    assert mpp is not None
    return tuple(
        ScreenedCell(
            index=index,
            score=0.96875 - rank / 16,
            towards=HSIL,
            contribution=1.25 - rank / 2,
            x_um=(100.0 + 300 * rank) * mpp,
            y_um=400.0 * mpp,
            width_um=60 * mpp,
            height_um=(40 + 10 * rank) * mpp,
        )
        for rank, index in enumerate((HSIL, LSIL, AGC))
    )


def abnormal(slide: SlideReading, **changes: object) -> ScreeningResult:
    """HSIL, adapted, with a gallery."""
    result = ScreeningResult(
        series=slide.series,
        exploratory=False,
        adequacy=SATISFACTORY,
        abnormal=True,
        categories=(HSIL,),
        withheld=(),
        classes=classes_of(MOSTLY_HSIL, (0.25, 0.0625, 0.0625, 0.125, 0.375, 0.0625, 0.0625)),
        operating_point="sensitivity 95 % at stain A",
        abnormal_from=LEAST,
        adaptation=ADAPTED,
        detected=COUNTS,
        bag=96,
        gallery=gallery_of(slide),
        scale=1.328125,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def both(slide: SlideReading) -> ScreeningResult:
    """AGC beside HSIL: the model may name both here."""
    classes = classes_of((0.0625, 0.03125, 0.03125, 0.0625, 0.5, 0.03125, 0.28125))
    return abnormal(
        slide, categories=(HSIL, AGC), classes=tuple(replace(each, supported=each.index != 5) for each in classes)
    )


def negative(slide: SlideReading, **changes: object) -> ScreeningResult:
    values: dict[str, object] = {
        "abnormal": False,
        "categories": (NILM,),
        "classes": classes_of(MOSTLY_NILM),
        "adaptation": NOT_COMMISSIONED,
    }
    return abnormal(slide, **{**values, **changes})


def turned(slide: SlideReading) -> ScreeningResult:
    """Negative with the adaptation, HSIL without: the call without it stands."""
    return abnormal(slide, classes=classes_of(MOSTLY_NILM, MOSTLY_HSIL))


def withheld(slide: SlideReading) -> ScreeningResult:
    """The site lies too far from what the model was made for to be called negative."""
    far = replace(ADAPTED, verdict="out of scope", applied=False, features_mapped=False, distance_coloured=2.5)
    reason = (finding_code("site-out-of-scope"),)
    return negative(slide, abnormal=None, categories=(), withheld=reason, adaptation=far)


def unnamed(slide: SlideReading) -> ScreeningResult:
    """Abnormal, yet its most probable class is one that the model may not name."""
    served = (0.0625, 0.03125, 0.03125, 0.0625, 0.125, 0.5, 0.1875)
    reason = (finding_code("class-not-supported-screening"),)
    return abnormal(slide, categories=(), classes=classes_of(served), withheld=reason)


def unsatisfactory(slide: SlideReading) -> ScreeningResult:
    """Too few cells, some under pen: probabilities, but no category."""
    adequacy = UNSATISFACTORY
    return negative(slide, adequacy=adequacy, abnormal=None, categories=(), withheld=(adequacy.code,), gallery=())


def reached(slide: SlideReading) -> ScreeningResult:
    """Too few cells, yet what is there reaches the operating point."""
    adequacy = UNSATISFACTORY
    return abnormal(slide, adequacy=adequacy, abnormal=None, categories=(), withheld=(adequacy.code,))


def no_cells(slide: SlideReading) -> ScreeningResult:
    """Nothing for the slide's model to look at."""
    reason = (finding_code("no-candidate-cells"),)
    return negative(
        slide, abnormal=None, categories=(), withheld=reason, classes=(), detected=(0,) * 6, bag=0, gallery=()
    )


def exploratory(slide: SlideReading) -> ScreeningResult:
    """Outside the intended use: called, under neutral names."""
    return both_shown(slide, classes_of(MOSTLY_HSIL, exploratory=True))


def both_shown(slide: SlideReading, classes: tuple[ScreeningClass, ...]) -> ScreeningResult:
    return abnormal(slide, exploratory=True, classes=classes)


def cells_of(slide: SlideReading, detected: Sequence[int] = COUNTS, *, seed: int = 1) -> CellMap:
    """So many cells of each class anywhere on the slide, some over its edge, and every tile of the grid."""
    grid = slide.grid
    assert grid is not None
    random = np.random.default_rng(seed)
    count = sum(detected)
    size = np.array([slide.level_width_px, slide.level_height_px], np.float64)
    middles_N2 = random.random((count, 2)) * size
    half_N2 = random.uniform(8, 40, (count, 2))
    scores_N = np.sort(random.uniform(0.3, 1, count))[::-1].astype(np.float32)
    classes_N = random.permutation(np.repeat(np.arange(ASC_US, len(CLASSES)), detected)).astype(np.int32)
    highest_RC = np.zeros((grid.rows + 1, grid.columns + 1), np.float32)
    column_N, row_N = (middles_N2 // grid.field_px).astype(int).T
    np.maximum.at(highest_RC, (row_N, column_N), scores_N)
    rows_M, columns_M = (axis.ravel().astype(np.int32) for axis in np.indices((grid.rows, grid.columns)))
    return CellMap(
        series=slide.series,
        boxes_N4=np.concatenate([middles_N2 - half_N2, middles_N2 + half_N2], axis=1),
        classes_N=classes_N,
        scores_N=scores_N,
        rows_M=rows_M,
        columns_M=columns_M,
        highest_M=highest_RC[rows_M, columns_M],
    )


def screened(
    image: pydicom.Dataset, result: ScreeningResult, findings: Sequence[Finding] = ()
) -> tuple[Report, SlideSource]:
    """A report of one slide, and its source with as many cells as the result counts."""
    slide = replace(reading_of(image), stain="PAP", site=Code("71252005", "SCT", "Cervix uteri structure"))
    reasons = [
        Finding(kind=FindingKind.CONFIDENCE, code=code, text=f"{code.display}, as was measured.", series=slide.series)
        for code in result.withheld
    ]
    return report_with([slide], [result], [*findings, *reasons]), source_with(image, cells_of(slide, result.detected))


def report_with(
    slides: Sequence[SlideReading], results: Sequence[ScreeningResult], findings: Sequence[Finding] = ()
) -> Report:
    report = report_of(slides, [], findings)
    return replace(
        report,
        schema_version=SCHEMA_VERSION,
        protocol="cervical-screening",
        statement="Research use, not a medical device. Made for conventional smears of the cervix.",
        screenings=tuple(results),
        exploratory=any(result.exploratory for result in results),
        order=replace(report.order, protocol="cervical-screening"),
    )


def source_with(image: pydicom.Dataset, cells: CellMap | None) -> SlideSource:
    return SlideSource(
        series=str(image.SeriesInstanceUID),
        levels=(image,),
        instances=((str(image.SOPInstanceUID),),),
        read=0,
        tiles=None,
        cells=cells,
    )
