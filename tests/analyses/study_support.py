"""A study over a real ledger: orders are accepted, begun and reported as workers do, with made reports of one slide."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.revisions import first_revision
from gateway.analyses.ledger.turns import Stage, Turn, workflow_id
from gateway.analyses.study_record import StudyRecord
from gateway.domain.analysis import Failure, State
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.domain.report import Report, SlideReading
from gateway.domain.screened import ScreeningResult
from gateway.operations import codec
from gateway.reports import to_json
from tests.reports.conftest import COMMITTED, reading_of, volume_headers
from tests.reports.screened import NOT_COMMISSIONED, report_with
from tests.support.commands import run_command

WHO = "Dr. Ada North"
PROTOCOL = "cervical-screening"
Reading = Callable[[SlideReading], ScreeningResult]


class Cohort:
    """A state folder, its ledger, and the commands, which run in this process."""

    def __init__(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ledger = Ledger.open(f"sqlite:///{state / 'pathserve.db'}", state)
        self._capsys = capsys
        self._image: pydicom.Dataset = volume_headers(COMMITTED)[0]

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """The exit status of `pathserve study …`, and what was said; an error is one sentence."""
        return run_command(self._capsys, "study", *arguments)

    def does(self, *arguments: str) -> str:
        """What was said by a command that must succeed."""
        status, said = self(*arguments)
        assert status == 0, said
        return said

    def refuses(self, *arguments: str) -> str:
        """The sentence of a command that must fail."""
        status, said = self(*arguments)
        assert status == 1, said
        return said

    def new(self, name: str = "north", *more: str) -> None:
        self.does("new", name, "--protocol", PROTOCOL, "--by", WHO, *more)

    def folder(self, name: str = "north") -> Path:
        return self.state / "studies" / name

    def record(self, name: str = "north") -> StudyRecord:
        return codec.loads(StudyRecord, (self.folder(name) / "study.json").read_bytes())

    # What a server and its workers do

    def order(self, accession: str | None, patient: str | None = None, tenant: str = "default") -> str:
        """The id of the analysis."""
        by = Principal("key:lis", PrincipalKind.KEY, tenant, frozenset(Scope))
        order = Order(
            protocol=PROTOCOL,
            specimens=(Specimen(slides=(SlideReference("1.2.3", ("1.2.3.4",)),)),),
            accession=accession,
            patient=Patient(patient),
        )
        return self.ledger.accept(order, by)[0].analysis.id

    def answer(self, analysis: str, reading: Reading, **changes: Any) -> None:
        """Have it reported. `changes`: of the report; `card_sha256`: of what it was pinned to."""
        record = self.record()
        card = changes.pop("card_sha256", None)
        pins = [
            {
                "folder": each.folder,
                "model": each.version.name,
                "version": each.version.version,
                "engine_sha256": each.version.engine_sha256,
                "card_sha256": card or each.card_sha256,
            }
            for each in record.models
        ]
        turn = self._begun(analysis, Stage.FETCH)
        self.ledger.pin(analysis, {"folders": {}, "pins": pins})
        self.ledger.runs.advance(turn)
        turn = self._begun(analysis, Stage.INFER)
        artifacts = self.state / "analyses" / analysis / "artifacts"
        artifacts.mkdir(parents=True)
        report = self.report(reading, record, analysis, turn.order, **changes)
        (artifacts / "report.json").write_bytes(to_json(report))
        self.ledger.runs.reported(turn, first_revision(analysis, artifacts))

    def fail(self, analysis: str) -> None:
        turn = self._begun(analysis, Stage.FETCH)
        self.ledger.runs.finish(turn, State.FAILED, Failure("corrupt-frame", "A frame cannot be decoded."))

    def report(self, reading: Reading, record: StudyRecord, analysis: str, order: Order, /, **changes: Any) -> Report:
        """A report of one slide by what was frozen, unless `changes` say otherwise."""
        slide = reading_of(self._image)
        result = replace(
            reading(slide),
            operating_point=record.operating_point,
            abnormal_from=record.abnormal_from,
            adaptation=NOT_COMMISSIONED,
        )
        made = report_with([slide], [result])
        return replace(
            made,
            **{
                "analysis_id": analysis,
                "order": order,
                "models": tuple(each.version for each in record.models),
                "software": replace(made.software, version=record.software),
                **changes,
            },
        )

    def _begun(self, analysis: str, stage: Stage) -> Turn:
        turn = self.ledger.runs.begin(workflow_id(analysis, 1, stage), "worker")
        assert turn is not None
        return turn
