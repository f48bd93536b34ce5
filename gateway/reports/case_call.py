"""What a case of several cervical slides is read as: one slide speaks for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.domain.bethesda import CLASSES, NILM
from gateway.domain.codes import Code
from gateway.domain.report import Report
from gateway.domain.screened import ScreeningClass, ScreeningResult
from gateway.domain.tables import finding_code


@dataclass(frozen=True, slots=True)
class CaseCall:
    """`slide`: the one that speaks for the case. `category` is None where the case has none; `withheld`: why."""

    slide: ScreeningResult
    category: ScreeningClass | None
    withheld: tuple[Code, ...]


def case_call(report: Report) -> CaseCall | None:
    """Which slide speaks for the case. None where nothing was screened.

    Of abnormal slides the gravest does, by its category, or, where it has none, by its most probable abnormal class:
    then the case has none either. Where none is abnormal, the least surely negative of those whose category is withheld
    (an unsatisfactory one's is) does: a case is negative only where every slide of it is, whole, so its category is
    withheld, too, where a slide was not read or only in part. Else the slide that is least surely negative does. Of
    equals the first.
    """
    results = report.screenings
    if not results:
        return None
    abnormal = [result for result in results if result.abnormal]
    if abnormal:
        slide = max(abnormal, key=lambda result: (_severity(result), _deciding(result)))
        return CaseCall(slide, slide.category, _reasons(slide))
    undecided = [result for result in results if result.category is None]
    if undecided:
        slide = max(undecided, key=_deciding)
        return CaseCall(slide, None, _reasons(slide))
    slide = max(results, key=_deciding)
    unseen = tuple(map(finding_code, _unseen(report)))
    return CaseCall(slide, None if unseen else slide.category, unseen)


def _unseen(report: Report) -> Iterator[str]:
    """Why cells of the case may not have been seen, though every slide that was read is negative."""
    screened = {result.series for result in report.screenings}
    if any(reading.series not in screened for reading in report.slides):
        yield "slide-not-read"
    if any(reading.frames_missing for reading in report.slides):
        yield "frames-missing"
    if report.order.region is not None:
        yield "region-only"


def _severity(result: ScreeningResult) -> int:
    worst = max((each for each in result.classes if each.index != NILM), key=result.standing, default=None)
    numbers = result.categories or ((worst.index,) if worst else ())
    return max((CLASSES[number].severity for number in numbers), default=0)


def _deciding(result: ScreeningResult) -> float:
    return result.deciding or 0.0


def _reasons(result: ScreeningResult) -> tuple[Code, ...]:
    """Why a slide has no category: what withholds it, else its adequacy."""
    if result.category is not None:
        return ()
    return result.withheld or (result.adequacy.code,)
