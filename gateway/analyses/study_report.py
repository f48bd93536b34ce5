"""The report of a study as one JSON document: who took part, the figures, every case, and the digests of it all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.analyses.study_answers import Answers
from gateway.analyses.study_cases import Case, Outcome
from gateway.analyses.study_figures import by_centre, figures, held
from gateway.analyses.study_record import StudyRecord
from gateway.analyses.study_register import Register
from gateway.analyses.study_store import Study
from gateway.operations import codec

FORMAT = "pathserve-study-report-1"


@dataclass(frozen=True, slots=True)
class Roll:
    """Whether enrolment was consecutive. `gaps`: accessions (an analysis' id where it has none) that were ordered since
    the study began and before the last enrolled order, and neither enrolled nor excluded. `repeats`: accessions that
    were ordered again; the first order counts."""

    gaps: tuple[str, ...]
    repeats: tuple[str, ...]


def rolled(record: StudyRecord, register: Register, answers: Answers) -> Roll:
    """Raises StateError."""
    ordered = answers.after(record.after)
    first = {asked.accession: asked.analysis for asked in reversed(ordered) if asked.accession is not None}
    first |= {each.accession: each.analysis for each in register.enrolled.values() if each.analysis is not None}
    enrolled = {first[name] for name in register.enrolled if name in first}
    last = max((asked.number for asked in ordered if asked.analysis in enrolled), default=0)
    others = [asked for asked in ordered if asked.analysis not in enrolled]
    gaps = (
        asked.accession or asked.analysis
        for asked in others
        if asked.number <= last and not (asked.accession is not None and register.knows(asked.accession))
    )
    repeats = (asked.accession for asked in others if asked.accession in register.enrolled)
    return Roll(tuple(dict.fromkeys(gaps)), tuple(dict.fromkeys(name for name in repeats if name is not None)))


def document_of(study: Study, register: Register, cases: Sequence[Case], roll: Roll, time: datetime) -> dict[str, Any]:
    """JSON-ready. `cases`: those that count, all answered by what was frozen; `time`: when it is made."""
    record, joined = study.record, register.joined[-1]
    compared = held(cases, joined.rows)
    references = {row.accession: row for row in joined.rows}
    return {
        "format": FORMAT,
        "study": record.shown(),
        "study_sha256": record.digest,
        "journal": {"lines": len(study.entries), "sha256": study.head},
        "look": len(register.looks) + 1,
        "made": time.isoformat(),
        "reference": {
            "version": joined.version,
            "joined": joined.time.isoformat(),
            "file_sha256": joined.file_sha256,
            "rows": len(joined.rows),
            "superseded": [
                {"version": old.version, "file_sha256": old.file_sha256, "why": later.reason}
                for old, later in zip(register.joined, register.joined[1:], strict=False)
            ],
        },
        "enrolment": {
            "enrolled": len(register.enrolled),
            "excluded": [codec.dump(each) for each in register.excluded.values()],
            "gaps": list(roll.gaps),
            "repeats": list(roll.repeats),
            "no_answer": [case.enrolled.accession for case in cases if case.outcome is Outcome.NO_ANSWER],
            "without_reference": [
                case.enrolled.accession for case in cases if case.enrolled.accession not in references
            ],
        },
        "pooled": figures(compared, record),
        "centres": by_centre(compared, record),
        "cases": [
            {
                "place": case.enrolled.place,
                "accession": case.enrolled.accession,
                "centre": case.enrolled.centre,
                "enrolled": case.enrolled.time.isoformat(),
                "outcome": case.outcome.value,
                "why": list(case.why),
                "category": case.category,
                "reference": row.category if (row := references.get(case.enrolled.accession)) else None,
                "score": case.score,
                "score_unadapted": case.score_unadapted,
                "analysis": case.analysis,
                "report_sha256": case.report_sha256,
            }
            for case in cases
        ],
    }
