"""The revisions of an analysis's report: the machine's, then one for each signature and each correction."""

from dataclasses import dataclass
from datetime import datetime

from gateway.domain.report import ReportState


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One revision, never changed again. `number` counts from 1.

    `folder`: of its files, below the analysis's. `documents`: SOP instance UIDs of its structured reports, one a study.
    `by` (the principal's subject), `by_name` and `reason` are None for the machine's. `made` is UTC.
    """

    analysis_id: str
    number: int
    state: ReportState
    folder: str
    report_sha256: str
    documents: tuple[str, ...]
    made: datetime
    by: str | None = None
    by_name: str | None = None
    reason: str | None = None
