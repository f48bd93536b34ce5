"""One case of a study: how it was called, whether by what was frozen, and what adaptation to the site did to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.study_answers import Answers, Asked, Given
from gateway.analyses.study_patients import drawn_as, patient_digest, patient_of, several
from gateway.analyses.study_record import StudyRecord, numbers
from gateway.analyses.study_register import Enrolled
from gateway.domain.bethesda import NAMES, NILM
from gateway.domain.report import Report
from gateway.domain.screened import ScreeningResult
from gateway.domain.screening import ScreeningPoint, called
from gateway.domain.tables import adequacy_code, finding_code
from gateway.operations.errors import InvalidSetting, UnknownProtocol
from gateway.reports.case_call import case_call


class Outcome(StrEnum):
    """How a case was called; all but the first two are no call. No answer: it has not ended, or was never ordered."""

    ABNORMAL = "abnormal"
    NEGATIVE = "negative"
    UNSATISFACTORY = "unsatisfactory"
    WITHHELD = "withheld"
    NOT_READ = "not read"
    NO_ANSWER = "no answer yet"

    @property
    def is_call(self) -> bool:
        return self in (Outcome.ABNORMAL, Outcome.NEGATIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One that was enrolled, and what came of it.

    `why`: the codes for which there is no call, or no category. `category`: a Bethesda name, None where none was
    named. `score`: the greatest 1 - p(NILM) of its slides that their calls rest on (where adaptation would have turned
    one normal, that is the one without it), `score_unadapted` without the adaptation; None where no slide had a cell.
    `adapted_abnormal`, `unadapted_abnormal`: what either alone would call. `adapted`: whether a site's state changed
    anything. `patient`: who is drawn at once; the accession where nobody is named.
    `deviations`: in what it was not answered by what was frozen, or not of the patient who was enrolled.
    """

    enrolled: Enrolled
    outcome: Outcome
    why: tuple[str, ...] = ()
    category: str | None = None
    score: float | None = None
    score_unadapted: float | None = None
    adapted_abnormal: bool | None = None
    unadapted_abnormal: bool | None = None
    adapted: bool = False
    exploratory: bool = False
    patient: str = ""
    analysis: str | None = None
    report_sha256: str | None = None
    deviations: tuple[str, ...] = ()


def case_of(enrolled: Enrolled, record: StudyRecord, answers: Answers) -> Case:
    """What came of a case; the first analysis of its accession where it was enrolled before it was ordered. Raises
    StateError (StudyDamaged: a report was changed)."""
    found, analysis = answers.of(enrolled.accession), enrolled.analysis
    if analysis is None:
        if not found:
            return Case(enrolled=enrolled, outcome=Outcome.NO_ANSWER, why=("not ordered",), patient=enrolled.accession)
        analysis = found[0].analysis
    given = answers.given(analysis)
    case = _ended(enrolled, record, analysis, given)
    return replace(case, deviations=(*_strangers(enrolled, record, found, given.report), *case.deviations))


def _ended(enrolled: Enrolled, record: StudyRecord, analysis: str, given: Given) -> Case:
    if given.report is None:
        return Case(
            enrolled=enrolled,
            outcome=Outcome.NOT_READ if given.ended else Outcome.NO_ANSWER,
            why=() if given.why is None else (given.why,),
            patient=enrolled.accession,
            analysis=analysis,
        )
    return _answered(enrolled, record, analysis, given, given.report)


def _answered(enrolled: Enrolled, record: StudyRecord, analysis: str, given: Given, report: Report) -> Case:
    outcome, why, category = _called(report)
    with_cells = [result for result in report.screenings if result.classes]
    sides = [_sides(result) for result in with_cells]
    return Case(
        enrolled=enrolled,
        outcome=outcome,
        why=why,
        category=category,
        score=max((score for result in with_cells if (score := result.deciding) is not None), default=None),
        score_unadapted=max(map(_unadapted, with_cells), default=None),
        adapted_abnormal=any(adapted for adapted, _ in sides) if sides else None,
        unadapted_abnormal=any(unadapted for _, unadapted in sides) if sides else None,
        adapted=any(result.adaptation.applied for result in report.screenings),
        exploratory=report.exploratory,
        patient=drawn_as(patient_of(report)) or enrolled.accession,
        analysis=analysis,
        report_sha256=given.sha256,
        deviations=tuple(_deviations(enrolled, record, given, report)),
    )


def _called(report: Report) -> tuple[Outcome, tuple[str, ...], str | None]:
    """The case's call (`gateway.reports.case_call`), why it has none or no category, and its category."""
    call = case_call(report)
    if call is None:
        return Outcome.NOT_READ, (finding_code("slide-not-read").code,), None
    why = tuple(code.code for code in call.withheld)
    category = None if call.category is None else NAMES[call.category.index]
    if call.slide.abnormal:
        return Outcome.ABNORMAL, why, category
    if call.category is not None:
        return Outcome.NEGATIVE, why, category
    unsatisfactory = adequacy_code("unsatisfactory").code in why
    return (Outcome.UNSATISFACTORY if unsatisfactory else Outcome.WITHHELD), why, None


def _unadapted(result: ScreeningResult) -> float:
    """1 - p(NILM) without the adaptation."""
    return next(1 - each.probability_unadapted for each in result.classes if each.index == NILM)


def _sides(result: ScreeningResult) -> tuple[bool, bool]:
    """Whether the slide is abnormal with the adaptation alone, and without it, by the deciding rule itself."""
    classes = sorted(result.classes, key=lambda each: each.index)
    point = ScreeningPoint(result.abnormal_from, tuple(each.supported for each in classes))
    adapted, unadapted = (
        called([getattr(each, name) for each in classes], point).abnormal
        for name in ("probability", "probability_unadapted")
    )
    return adapted, unadapted


def _strangers(enrolled: Enrolled, record: StudyRecord, found: Sequence[Asked], report: Report | None) -> Iterator[str]:
    """Why the accession, by which the reference is joined, may be another patient's than the answer."""
    named = [asked.patient for asked in found]
    if several(named if report is None else [*named, patient_of(report)]):
        yield "orders of its accession name different patients"
    now = None if report is None else patient_digest(record.patient_key, report.order.patient)
    if report is not None and enrolled.patient not in (None, now):
        yield "its order names another patient than when it was enrolled"


def _deviations(enrolled: Enrolled, record: StudyRecord, given: Given, report: Report) -> Iterator[str]:
    if given.issued is not None and given.issued < enrolled.time.replace(microsecond=0):
        yield "it was answered before it was enrolled"
    if report.software.version != record.software:
        yield f"pathserve {report.software.version} in place of {record.software}"
    frozen = {each.version.name: each.version for each in record.models}
    if {each.name: each for each in report.models} != frozen:
        others = [f"{each.name} {each.version}" for each in report.models if frozen.get(each.name) != each]
        yield f"other models ({', '.join(others) or 'some are missing'})"
    elif given.cards is not None and given.cards != {each.folder: each.card_sha256 for each in record.models}:
        yield "another card of a model"
    if not _has_settings(report, record):
        yield "other settings"
    if report.order.region is not None:
        yield "only a region was read"
    if any(
        (each.operating_point, each.abnormal_from) != (record.operating_point, record.abnormal_from)
        for each in report.screenings
    ):
        yield "another operating point"
    for used in dict.fromkeys(each.adaptation for each in report.screenings):
        site = record.site(used.site)
        expected = (0, None) if site is None else (site.version, site.digest)
        if (used.version, used.digest if used.version else None) != expected:
            yield f"version {used.version} of the site {used.site} in place of {expected[0]}"


def _has_settings(report: Report, record: StudyRecord) -> bool:
    try:
        return numbers(options_of(protocol_named(report.order.protocol), report.order)) == dict(record.settings)
    except (InvalidSetting, UnknownProtocol):
        return False


def deviating(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Those that were not answered by what was frozen, or whose patient is in doubt."""
    return tuple(case for case in cases if case.deviations)
