"""Where a study's answers come from: the analyses of the ledger, or folders that `pathserve analyze` wrote.

Always the machine's own report, the first revision: what persons signed or corrected later is not what is studied.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from gateway.analyses.ledger import AnalysisQuery, Ledger, Record
from gateway.analyses.study_journal import StudyDamaged, damaged, regular_bytes
from gateway.analyses.study_patients import patient_of
from gateway.domain.order import Order, Patient
from gateway.domain.report import Report
from gateway.operations.disk import disk_errors
from gateway.operations.errors import InvalidInput, NotFound, WrongTenant
from gateway.reports import from_json

_PAGE = 500
_REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """An analysis of the study's protocol. `number` orders them; `series`: of the slides that its order names (none
    where it names whole studies); `patient`: whom its order names (of a folder's report: else the slides)."""

    analysis: str
    number: int
    accession: str | None
    series: tuple[str, ...]
    patient: Patient


@dataclass(frozen=True, slots=True)
class Given:
    """What came of an analysis. `report` is None where there is none: `why` says for what reason, `ended` whether there
    will be none. `cards`: folder of a model -> sha256 of its card; None where nobody noted them. `issued`: when the
    report was built, where only that tells whether it was there before."""

    report: Report | None
    sha256: str | None
    why: str | None
    ended: bool
    cards: Mapping[str, str] | None = None
    issued: datetime | None = None


class Answers(Protocol):
    """Raises StateError."""

    def of(self, accession: str) -> tuple[Asked, ...]:
        """The analyses of an accession, oldest first."""

    def after(self, number: int) -> tuple[Asked, ...]:
        """All that were accepted after that one, oldest first."""

    def is_answered(self, asked: Asked) -> bool:
        """Whether it has a result, or has ended without one."""

    def given(self, analysis: str) -> Given:
        """What came of it."""


class LedgerAnswers:
    """The analyses of one tenant and one protocol."""

    def __init__(self, ledger: Ledger, state: Path, tenant: str, protocol: str) -> None:
        self._ledger = ledger
        self._analyses = state / "analyses"
        self._tenant = tenant
        self._protocol = protocol

    def of(self, accession: str) -> tuple[Asked, ...]:
        return self._found(AnalysisQuery(protocol=self._protocol, accession=accession), 0)

    def after(self, number: int) -> tuple[Asked, ...]:
        return self._found(AnalysisQuery(protocol=self._protocol), number)

    def _found(self, query: AnalysisQuery, after: int) -> tuple[Asked, ...]:
        found: list[Asked] = []
        cursor: str | None = None
        while True:  # newest first
            page = self._ledger.page(self._tenant, query, _PAGE, cursor)
            found += [_asked(record) for record in page.items if record.number > after]
            cursor = page.next
            if cursor is None or page.items[-1].number <= after:
                return tuple(reversed(found))

    def is_answered(self, asked: Asked) -> bool:
        # Of what was retried, too: a person has seen how it ended.
        record = self._ledger.get(asked.analysis, self._tenant)
        return record.analysis.state.final or record.run > 1 or bool(self._ledger.revisions.of(asked.analysis))

    def given(self, analysis: str) -> Given:
        try:
            record = self._ledger.get(analysis, self._tenant)
        except (NotFound, WrongTenant):
            return Given(None, None, "the analysis is no longer kept", True)
        state, failure = record.analysis.state, record.analysis.failure
        revisions = self._ledger.revisions.of(analysis)
        if not revisions:
            why = failure.reason if failure is not None else state.value
            return Given(None, None, why, state.final)
        first = revisions[0]
        with disk_errors():
            data = regular_bytes(self._analyses / analysis / first.folder / _REPORT)
        if data is None or hashlib.sha256(data).hexdigest() != first.report_sha256:
            raise damaged(f"the report of analysis {analysis} is not the one that the ledger has the digest of")
        pins = self._ledger.pins(analysis)
        cards = None if pins is None else {pin["folder"]: pin["card_sha256"] for pin in pins["pins"]}
        return Given(_report(data, analysis), first.report_sha256, None, True, cards)


class FolderAnswers:
    """A folder of folders, one for each `pathserve analyze --out`; those of other protocols do not count."""

    def __init__(self, folder: Path, protocol: str) -> None:
        self._given: dict[str, Given] = {}
        found: list[tuple[datetime, str, Asked]] = []
        try:
            folders = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError as error:
            raise InvalidInput(f"The folder given by --results cannot be read ({error.strerror}).") from None
        for path in folders:
            try:
                data = regular_bytes(path / _REPORT)
            except (OSError, StudyDamaged):
                raise InvalidInput(f"The report in {path.name}, below --results, cannot be read.") from None
            if data is None:
                continue
            report = _report(data, path.name)
            if report.protocol != protocol:
                continue
            name = report.analysis_id
            if name in self._given:
                raise InvalidInput(f"The report of {path.name} is there twice. Take one copy away.")
            digest = hashlib.sha256(data).hexdigest()
            self._given[name] = Given(report, digest, None, True, issued=report.issued)
            found.append(
                (report.issued, name, Asked(name, 0, _accession(report), _series(report.order), patient_of(report)))
            )
        self._all = tuple(
            replace(each, number=number)
            for number, (_, _, each) in enumerate(sorted(found, key=lambda one: one[:2]), 1)
        )

    def of(self, accession: str) -> tuple[Asked, ...]:
        return tuple(each for each in self._all if each.accession == accession)

    def after(self, number: int) -> tuple[Asked, ...]:
        return tuple(each for each in self._all if each.number > number)

    def is_answered(self, asked: Asked) -> bool:
        return asked.analysis in self._given

    def given(self, analysis: str) -> Given:
        return self._given[analysis]


def _asked(record: Record) -> Asked:
    order = record.analysis.order
    return Asked(record.analysis.id, record.number, order.accession, _series(order), order.patient)


def _series(order: Order) -> tuple[str, ...]:
    return tuple(series for specimen in order.specimens for slide in specimen.slides for series in slide.series)


def _accession(report: Report) -> str | None:
    """Of the order, else of its slides' headers, where they agree."""
    headers = {slide.header.accession for slide in report.slides if slide.header is not None}
    return report.order.accession or (headers.pop() if len(headers) == 1 else None)


def _report(data: bytes, name: str) -> Report:
    try:
        return from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(f"the report of {name} cannot be read") from None
