"""Who takes part in a study, as its journal tells it: enrolled, excluded and why, and the reference standard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from gateway.analyses.study_journal import Entry, Kind
from gateway.analyses.study_reference import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A case. `place` counts from 1, in the order of enrolment. `analysis` and `number`: of its order in the ledger;
    None where it was enrolled before it was ordered, and then `series`, its slides' (those the order names), are
    unknown, too. `patient`: what the journal calls the order's (`study_patients.patient_digest`); None where nobody was
    named."""

    place: int
    accession: str
    centre: str
    time: datetime
    analysis: str | None
    number: int | None
    series: tuple[str, ...]
    patient: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A case that is left out. What was known then: `enrolled`, `answered` (it had a result), `joined` (so had the
    reference standard)."""

    accession: str
    reason: str
    time: datetime
    enrolled: bool
    answered: bool
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """One version of the reference standard, from 1; a later one takes the place of all of the one before, and says
    why. `file_sha256`: of the file as it was given."""

    version: int
    time: datetime
    file_sha256: str
    rows: tuple[Row, ...]
    supersedes: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Register:
    """By accession; versions and looks, oldest first. `looks`: when figures were given out."""

    enrolled: Mapping[str, Enrolled]
    excluded: Mapping[str, Excluded]
    joined: tuple[Joined, ...]
    looks: tuple[datetime, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        enrolled: dict[str, Enrolled] = {}
        excluded: dict[str, Excluded] = {}
        joined: list[Joined] = []
        looks: list[datetime] = []
        for entry in entries:
            said = entry.data
            match entry.kind:
                case Kind.ENROLLED:
                    for case in said["cases"]:
                        enrolled[case["accession"]] = Enrolled(
                            place=len(enrolled) + 1,
                            accession=case["accession"],
                            centre=said["centre"],
                            time=entry.time,
                            analysis=case["analysis"],
                            number=case["number"],
                            series=tuple(case["series"]),
                            patient=case["patient"],
                        )
                case Kind.EXCLUDED:
                    excluded[said["accession"]] = Excluded(
                        accession=said["accession"],
                        reason=said["reason"],
                        time=entry.time,
                        enrolled=said["accession"] in enrolled,
                        answered=said["answered"],
                        joined=bool(joined),
                    )
                case Kind.JOINED:
                    joined.append(
                        Joined(
                            version=len(joined) + 1,
                            time=entry.time,
                            file_sha256=said["file_sha256"],
                            rows=tuple(Row(*row) for row in said["rows"]),
                            supersedes=len(joined) or None,
                            reason=said["reason"],
                        )
                    )
                case Kind.REPORTED:
                    looks.append(entry.time)
        return cls(enrolled, excluded, tuple(joined), tuple(looks))

    @property
    def cases(self) -> tuple[Enrolled, ...]:
        """Those that count, in the order of enrolment."""
        return tuple(each for name, each in self.enrolled.items() if name not in self.excluded)

    def knows(self, accession: str) -> bool:
        return accession in self.enrolled or accession in self.excluded
