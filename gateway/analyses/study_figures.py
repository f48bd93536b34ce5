"""The figures of a study against its reference standard, for each centre and pooled.

Every enrolled case with a reference counts (intention to diagnose). Those without a call (withheld, unsatisfactory, not
read, no answer yet) are counted both ways, as abnormal and as negative: the truth lies between. The figures of called
cases alone stand beside them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.analyses.study_cases import Case, Outcome
from gateway.analyses.study_record import StudyRecord
from gateway.analyses.study_reference import Row
from gateway.analyses.study_statistics import area, share
from gateway.domain.bethesda import NAMES, NILM

WAYS = ("as abnormal", "as negative", "called only")
"""How cases without a call are counted."""
UNNAMED = "abnormal, not named"
COLUMNS = (*NAMES, UNNAMED, *(each.value for each in Outcome if not each.is_call))
"""What a case may be called: of the confusion matrix."""


@dataclass(frozen=True, slots=True)
class Held:
    """A case with its row of the reference standard."""

    case: Case
    row: Row

    @property
    def positive(self) -> bool:
        return self.row.category != NAMES[NILM]

    @property
    def column(self) -> str:
        """What it was called, one of COLUMNS."""
        if not self.case.outcome.is_call:
            return self.case.outcome.value
        return self.case.category or UNNAMED


def held(cases: Sequence[Case], rows: Sequence[Row]) -> tuple[Held, ...]:
    """The cases that have a reference, in the order of enrolment."""
    by_accession = {row.accession: row for row in rows}
    return tuple(
        Held(case, by_accession[case.enrolled.accession]) for case in cases if case.enrolled.accession in by_accession
    )


def by_centre(cases: Sequence[Held], record: StudyRecord) -> dict[str, dict[str, Any]]:
    """The figures of each centre, sorted by name."""
    names = sorted({each.case.enrolled.centre for each in cases})
    return {name: figures([each for each in cases if each.case.enrolled.centre == name], record) for name in names}


def figures(cases: Sequence[Held], record: StudyRecord) -> dict[str, Any]:
    """The figures of these cases together, JSON-ready. Shares have Wilson's interval, areas a bootstrap's."""
    outcomes = Counter(each.case.outcome for each in cases)
    patients = Counter(each.case.patient for each in cases)
    return {
        "cases": len(cases),
        "patients": len(patients),
        "positives": sum(each.positive for each in cases),
        "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "outside_intended_use": sum(each.case.exploratory for each in cases),
        "sides": {way: _sides(cases, way) for way in WAYS},
        "auc": _area(cases, record, "score"),
        "auc_unadapted": _area(cases, record, "score_unadapted"),
        "confusion": _confusion(cases),
        "adaptation": _adaptation(cases),
        "histology": _histology(cases),
    }


def _sides(cases: Sequence[Held], way: str) -> dict[str, Any]:
    """Sensitivity and specificity of the side: any abnormal class against NILM."""
    counted = [each for each in cases if way != "called only" or each.case.outcome.is_call]
    said = [
        each.case.outcome is Outcome.ABNORMAL or (way == "as abnormal" and not each.case.outcome.is_call)
        for each in counted
    ]
    positive = [abnormal for each, abnormal in zip(counted, said, strict=True) if each.positive]
    negative = [not abnormal for each, abnormal in zip(counted, said, strict=True) if not each.positive]
    return {
        "sensitivity": asdict(share(sum(positive), len(positive))),
        "specificity": asdict(share(sum(negative), len(negative))),
    }


def _area(cases: Sequence[Held], record: StudyRecord, name: str) -> dict[str, Any]:
    """Of all cases that have a probability, whether there is a call or not."""
    scored = [each for each in cases if getattr(each.case, name) is not None]
    found = area(
        [getattr(each.case, name) for each in scored],
        [each.positive for each in scored],
        [each.case.patient for each in scored],
        resamples=record.resamples,
        seed=record.seed,
    )
    return asdict(found)


def _confusion(cases: Sequence[Held]) -> dict[str, dict[str, int]]:
    """Reference category -> what the case was called -> how many."""
    counted = Counter((each.row.category, each.column) for each in cases)
    return {name: {column: counted[name, column] for column in COLUMNS} for name in NAMES}


def _adaptation(cases: Sequence[Held]) -> dict[str, Any]:
    """How many cases the adaptation to their site changed the side of, by what they are. One that it would turn normal
    stays abnormal, with a finding."""
    both = [each for each in cases if each.case.adapted_abnormal is not None]
    flips: Counter[tuple[bool, bool]] = Counter(
        (bool(each.case.adapted_abnormal), each.positive)
        for each in both
        if each.case.adapted_abnormal != each.case.unadapted_abnormal
    )
    return {
        "adapted": sum(each.case.adapted for each in cases),
        "to_abnormal": _flips(flips, abnormal=True),
        "to_normal": _flips(flips, abnormal=False),
    }


def _flips(flips: Mapping[tuple[bool, bool], int], *, abnormal: bool) -> dict[str, int]:
    return {"reference abnormal": flips.get((abnormal, True), 0), "reference NILM": flips.get((abnormal, False), 0)}


def _histology(cases: Sequence[Held]) -> dict[str, dict[str, int]]:
    """Histology, as the reference standard has it -> outcome -> how many."""
    counted = Counter((each.row.histology, each.case.outcome) for each in cases if each.row.histology)
    names = sorted({each.row.histology for each in cases if each.row.histology})
    return {name: {outcome.value: counted[name, outcome] for outcome in Outcome} for name in names}
