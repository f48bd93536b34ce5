"""A person signs or corrects a report: the next revision, made from the files of the one before it.

No slide is needed. All that says the report is written anew, under new UIDs, in a folder of the revision's own; what
is drawn on the slides stays. Files first, under a name that nobody reads; then one transaction (`Revisions.publish`)
gives them their name and writes the row, the delivery, the event, the audit record. So a kill at any moment leaves
either the whole revision or none, and what it left is replaced by the next one of that number.
"""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.revisions import HEADERS, revision_of
from gateway.domain.analysis import State
from gateway.domain.principal import Principal
from gateway.domain.report import Amendment, Report, Signature
from gateway.domain.revision import Revision
from gateway.operations.disk import disk_errors, locked_folder, sync_files, sync_folder
from gateway.operations.errors import Conflict, PreconditionFailed, ReportNotReady, StateError
from gateway.operations.settings import Settings
from gateway.reports import from_json, kept, write_revision

REVISIONS = "revisions"
"""The folder of the revisions' folders, in the analysis's."""

_NAME = 64
"""As long as a DICOM person name, or an organisation's, may be (PS3.5 6.2: PN, LO)."""


def sign(
    settings: Settings,
    ledger: Ledger,
    by: Principal,
    analysis_id: str,
    comment: str | None,
    *,
    expected: int | None = None,
) -> Revision:
    """The next revision of the report, signed by `by`. `expected` is the number of the one that the person has read.

    Raises ReportNotReady, Conflict (signed already, or somebody was faster), PreconditionFailed (it is not the newest),
    StateError, DiskFull, NotFound.
    """

    def signed(report: Report) -> Report:
        if not report.may_be_signed:
            raise Conflict("The report is signed already. Amend it where something of it is wrong.")
        return report.signed(_signature(by, comment))

    return _revise(settings, ledger, by, analysis_id, signed, expected)


def amend(
    settings: Settings,
    ledger: Ledger,
    by: Principal,
    analysis_id: str,
    amendment: Amendment,
    *,
    expected: int | None = None,
) -> Revision:
    """The next revision of the report, with a correction, signed by `by`. Arguments and errors as of `sign`."""
    return _revise(
        settings, ledger, by, analysis_id, lambda report: report.amended(amendment, _signature(by, None)), expected
    )


def _signature(by: Principal, comment: str | None) -> Signature:
    return Signature(
        by=by.subject,
        name=(by.name or by.subject)[:_NAME],
        organisation=by.tenant[:_NAME],
        time=datetime.now(UTC).replace(microsecond=0),
        comment=comment or None,
    )


def _revise(
    settings: Settings,
    ledger: Ledger,
    by: Principal,
    analysis_id: str,
    change: Callable[[Report], Report],
    expected: int | None,
) -> Revision:
    if ledger.get(analysis_id).analysis.state is not State.COMPLETED:
        raise ReportNotReady("There is no report to sign: the analysis has not completed.")
    folder = settings.state / "analyses" / analysis_id
    if not folder.is_dir():
        raise _gone()
    if not (folder / HEADERS).is_dir():
        raise Conflict("The report was made by a version that could not have it signed. Order the analysis again.")
    with disk_errors(), locked_folder(folder):  # who signs the same report waits here, and then comes too late
        made = ledger.revisions.of(analysis_id)
        if not made:
            raise ReportNotReady("There is no report to sign.")
        if expected not in (None, made[-1].number):
            raise PreconditionFailed(
                f"The report's newest revision is {made[-1].number}, not {expected}. Read it, then decide anew."
            )
        report = change(_report_of(folder, made[-1]))
        name = f"{REVISIONS}/{report.revision}"
        part = folder / f"{name}.part"
        try:
            _write(part, report, folder / HEADERS, [folder / each.folder for each in reversed(made)])
            revision = revision_of(analysis_id, part, name)
            amended = any(each.revision == report.revision for each in report.amendments)
            ledger.revisions.publish(by, revision, ledger.outbox, lambda: _put(part, folder / name), amended=amended)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return revision


def _report_of(folder: Path, revision: Revision) -> Report:
    path = folder / revision.folder / "report.json"
    if not path.is_file():
        raise _gone()
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != revision.report_sha256:
        raise StateError("The report's file is not the one that was made. Restore it, or order the analysis again.")
    return from_json(data)


def _write(part: Path, report: Report, headers: Path, earlier: list[Path]) -> None:
    images = kept(headers)
    if len(images) != sum(slide.read for slide in report.slides):
        raise _gone()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_revision(part, report, images, earlier)
    sync_files(part)


def _put(part: Path, target: Path) -> None:
    """Give the files their name; what lies there was never published."""
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    sync_folder(target.parent)


def _gone() -> StateError:
    return StateError("The report's files are gone from the state folder. Order the analysis again.")
