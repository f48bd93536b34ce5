"""What readers say of reports: written down with the revision that they saw, and given out as training signal."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.revisions import revisions_in
from gateway.analyses.ledger.schema import FEEDBACK
from gateway.analyses.ledger.transitions import row_of
from gateway.domain.codes import Code
from gateway.domain.feedback import Feedback, FeedbackRecord, Verdict
from gateway.domain.principal import Principal
from gateway.domain.revision import Revision
from gateway.operations import audit, codec
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.disk import disk_errors
from gateway.operations.errors import InvalidInput, ReportNotReady, StateError

Transaction = Callable[[], AbstractContextManager[sa.Connection]]


class FeedbackLog:
    """The table of feedback, over the transactions of the ledger that it belongs to."""

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    def of(self, analysis_id: str) -> tuple[FeedbackRecord, ...]:
        """All feedback on an analysis's report, oldest first."""
        query = sa.select(FEEDBACK).where(FEEDBACK.c.analysis_id == analysis_id).order_by(FEEDBACK.c.number)
        with self._read() as connection:
            return tuple(_record(row) for row in connection.execute(query))

    def give(self, by: Principal, analysis_id: str, feedback: Feedback, analyses: Path) -> FeedbackRecord:
        """Write feedback on the newest revision down, with its audit record. `analyses`: the folder of all analyses.

        Raises ReportNotReady where there is no report, InvalidInput where it names a series that was not read.
        """
        with self._write() as connection:
            row_of(connection, analysis_id, lock=True)
            revisions = revisions_in(connection, analysis_id)
            if not revisions:
                raise ReportNotReady("There is no report yet, so there is nothing to say of it.")
            if feedback.series is not None and feedback.series not in _series_read(analyses, revisions[-1]):
                raise InvalidInput("The feedback names a series that the report was not read from. See its slides.")
            row = connection.execute(
                FEEDBACK.insert()
                .values(
                    analysis_id=analysis_id,
                    revision=revisions[-1].number,
                    verdict=feedback.verdict.value,
                    finding=codec.dump(feedback.finding) if feedback.finding else None,
                    series=feedback.series,
                    comment=feedback.comment,
                    by=by.subject,
                    time=datetime.now(UTC),
                )
                .returning(*FEEDBACK.c)
            ).one()
            audit.append(
                connection,
                AuditEvent(
                    type=EventType.PATIENT_RECORD,
                    subtype="feedback-given",
                    action=Action.CREATE,
                    tenant=by.tenant,
                    entity_kind="analysis",
                    entity=analysis_id,
                    detail={"verdict": feedback.verdict.value, "revision": row.revision},
                ).by(by),
            )
            return _record(row)

    def signal(self, analyses: Path) -> Iterator[dict[str, Any]]:
        """All feedback as training signal, oldest first: the models, the slides' series and the verdict; no patient,
        and no free text, which may name one.

        An analysis whose files are gone is told without models and slides.
        """
        with self._read() as connection:
            rows = connection.execute(sa.select(FEEDBACK).order_by(FEEDBACK.c.number)).all()
            for row in rows:
                record = _record(row)
                revision = next(r for r in revisions_in(connection, row.analysis_id) if r.number == row.revision)
                report = _report(analyses, revision)
                yield {
                    "analysis": record.analysis_id,
                    "revision": record.revision,
                    "protocol": report.get("protocol"),
                    "models": [
                        {key: model[key] for key in ("name", "version", "engine_sha256", "weights_sha256")}
                        for model in report.get("models", [])
                    ],
                    "series": [slide["series"] for slide in report.get("slides", []) if slide["read"]],
                    "about": record.feedback.series,
                    "verdict": record.feedback.verdict.value,
                    "finding": codec.dump(record.feedback.finding) if record.feedback.finding else None,
                    "time": record.time.isoformat(),
                }


def _report(analyses: Path, revision: Revision) -> dict[str, Any]:
    try:
        with disk_errors():
            report: dict[str, Any] = json.loads(
                (analyses / revision.analysis_id / revision.folder / "report.json").read_bytes()
            )
    except StateError:
        return {}
    return report


def _series_read(analyses: Path, revision: Revision) -> set[str]:
    return {slide["series"] for slide in _report(analyses, revision).get("slides", []) if slide["read"]}


def _record(row: sa.Row[Any]) -> FeedbackRecord:
    return FeedbackRecord(
        number=row.number,
        analysis_id=row.analysis_id,
        revision=row.revision,
        feedback=Feedback(
            verdict=Verdict(row.verdict),
            finding=codec.load(Code, row.finding) if row.finding else None,
            series=row.series,
            comment=row.comment,
        ),
        by=row.by,
        time=row.time,
    )
