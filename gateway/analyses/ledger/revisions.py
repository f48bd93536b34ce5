"""The revisions of reports, as the ledger knows them: written once each, never changed."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.events import add_event
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.schema import ANALYSES, REVISIONS
from gateway.analyses.ledger.transitions import note, row_of
from gateway.domain.analysis import State
from gateway.domain.principal import Principal
from gateway.domain.report import ObjectKind, ReportState
from gateway.domain.revision import Revision
from gateway.domain.uids import object_uid
from gateway.operations.audit import Action
from gateway.operations.disk import disk_errors
from gateway.operations.errors import Conflict, NotFound

HEADERS = "headers"
"""The folder, in the analysis's, of the headers that later revisions are made from."""

Transaction = Callable[[], AbstractContextManager[sa.Connection]]


class Revisions:
    """The table of revisions, over the transactions of the ledger that it belongs to."""

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    def of(self, analysis_id: str) -> tuple[Revision, ...]:
        """All revisions of an analysis's report, oldest first; none before it is built."""
        with self._read() as connection:
            return revisions_in(connection, analysis_id)

    def get(self, analysis_id: str, number: int | None = None) -> Revision:
        """The revision of this number, by default the newest. Raises NotFound."""
        for revision in reversed(self.of(analysis_id)):
            if number in (None, revision.number):
                return revision
        raise NotFound("The report has no such revision; see the list of its revisions.")

    def publish(
        self, by: Principal, revision: Revision, outbox: Outbox, put: Callable[[], None], *, amended: bool
    ) -> None:
        """A person's revision, in one transaction: its files (`put` gives them their name), its row, its delivery, the
        event, the audit record, and what webhooks tell. `amended`: it corrects something, and is no mere signature.

        Raises Conflict where another revision was faster, or the analysis has not completed; what `put` raises.
        """
        with self._write() as connection:
            row = row_of(connection, revision.analysis_id, lock=True)
            made = revisions_in(connection, revision.analysis_id)
            if row.state != State.COMPLETED.value or not made or made[-1].number + 1 != revision.number:
                raise Conflict("The report has changed meanwhile: somebody was faster. Read it, then decide anew.")
            put()
            connection.execute(REVISIONS.insert().values(**_values(revision)))
            connection.execute(
                ANALYSES.update().where(ANALYSES.c.id == revision.analysis_id).values(updated=datetime.now(UTC))
            )
            outbox.add_stow(connection, revision.analysis_id, revision.number)
            told = {"revision": revision.number, "state": revision.state.value}
            add_event(connection, revision.analysis_id, "revision", told)
            subtype = "report-amended" if amended else "report-signed"
            note(connection, by, row, subtype, Action.CREATE, **told)
            event = "report.amended" if amended else "report.signed"
            outbox.tell(connection, revision.analysis_id, event, revision.number)

    def add(self, connection: sa.Connection, revision: Revision) -> None:
        """Write a revision down, in the transaction of what it is told with, which holds the analysis's row.

        Repeating it changes nothing. Raises Conflict where this number is another revision's already.
        """
        noted = next(
            (each for each in revisions_in(connection, revision.analysis_id) if each.number == revision.number), None
        )
        if noted is None:
            connection.execute(REVISIONS.insert().values(**_values(revision)))
        elif noted.report_sha256 != revision.report_sha256:
            raise Conflict(
                f"The report has a revision {revision.number} already: somebody was faster. Read it, then decide anew."
            )


def revisions_in(connection: sa.Connection, analysis_id: str) -> tuple[Revision, ...]:
    """All revisions of an analysis's report, oldest first, as a transaction sees them."""
    query = sa.select(REVISIONS).where(REVISIONS.c.analysis_id == analysis_id).order_by(REVISIONS.c.number)
    return tuple(_revision(row) for row in connection.execute(query))


def first_revision(analysis_id: str, artifacts: Path) -> Revision:
    """The machine's report in `artifacts`, a folder of the analysis's own, as its first revision.

    Raises StateError where its files are gone, DiskFull.
    """
    return revision_of(analysis_id, artifacts, artifacts.name)


def revision_of(analysis_id: str, files: Path, folder: str) -> Revision:
    """The revision whose report.json lies in `files`, to be known under `folder`. Raises StateError, DiskFull."""
    with disk_errors():
        data = (files / "report.json").read_bytes()
    report: dict[str, Any] = json.loads(data)
    number = report["revision"]
    signature = report["signature"] or {}
    amendments = [each["amendment"] for each in report["amendments"] if each["revision"] == number]
    return Revision(
        analysis_id=analysis_id,
        number=number,
        state=ReportState(report["state"]),
        folder=folder,
        report_sha256=hashlib.sha256(data).hexdigest(),
        documents=tuple(
            object_uid(analysis_id, "sr", item["study"], number)
            for item in report["objects"]
            if item["kind"] == ObjectKind.STRUCTURED_REPORT.value
        ),
        made=datetime.fromisoformat(report["issued"]).astimezone(UTC),
        by=signature.get("by"),
        by_name=signature.get("name"),
        reason=amendments[0]["reason"] if amendments else signature.get("comment"),
    )


def _values(revision: Revision) -> dict[str, Any]:
    return {
        "analysis_id": revision.analysis_id,
        "number": revision.number,
        "state": revision.state.value,
        "folder": revision.folder,
        "report_sha256": revision.report_sha256,
        "documents": list(revision.documents),
        "by": revision.by,
        "by_name": revision.by_name,
        "reason": revision.reason,
        "made": revision.made,
    }


def _revision(row: sa.Row[Any]) -> Revision:
    return Revision(
        analysis_id=row.analysis_id,
        number=row.number,
        state=ReportState(row.state),
        folder=row.folder,
        report_sha256=row.report_sha256,
        documents=tuple(row.documents),
        made=row.made,
        by=row.by,
        by_name=row.by_name,
        reason=row.reason,
    )
