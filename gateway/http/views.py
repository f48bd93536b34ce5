"""How analyses, revisions, deliveries and feedback look in JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from gateway.analyses.ledger.records import Record
from gateway.analyses.order_form import EXAMPLE
from gateway.domain.analysis import State
from gateway.domain.delivery import Channel, Delivery, DeliveryState
from gateway.domain.feedback import FeedbackRecord, Verdict
from gateway.domain.identity import Problem as IdentityProblem
from gateway.domain.order import Priority
from gateway.domain.report import ReportState
from gateway.domain.revision import Revision
from gateway.operations import codec

PREFIX = "/v1/analyses"
EXAMPLE_ID = "0b2a3f5c-7c1d-4e2f-9a3b-5d6e7f809182"
_PATH = f"{PREFIX}/{EXAMPLE_ID}"


class Accepted(BaseModel):
    """The answer to an accepted order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": EXAMPLE_ID, "state": "accepted"}]})

    id: str
    state: State


class BatchAnswer(BaseModel):
    """What became of one order of a batch: `status` 202 with `id` and `state`, or an error with its `problem`."""

    status: int
    id: str | None = None
    state: State | None = None
    problem: dict[str, Any] | None = None


class BatchAnswers(BaseModel):
    """One answer for each order of the batch, in the order in which they were sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"status": 202, "id": EXAMPLE_ID, "state": "accepted", "problem": None}]}]
        }
    )

    items: list[BatchAnswer]


class ProgressView(BaseModel):
    """How far the running step is; `total` is null while it is not known."""

    step: str
    done: int
    total: int | None
    unit: str


class FailureView(BaseModel):
    """Why an analysis failed: the stable reason, and a sentence that says what to do."""

    reason: str
    detail: str


class HeldView(BaseModel):
    """One identifier that does not agree between the order and a slide. Its values are not shown."""

    attribute: str
    series: str
    problem: IdentityProblem


_SUMMARY: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "state": "failed",
    "protocol": "tissue-classification",
    "priority": "ROUTINE",
    "accession": "S26-004711",
    "created": "2026-11-26T08:15:00Z",
    "updated": "2026-11-26T08:15:42Z",
    "deadline": "2026-11-26T12:15:00Z",
    "run": 1,
    "cancel_requested": False,
    "progress": {"step": "fetch", "done": 2196612, "total": 2196612, "unit": "bytes"},
    "failure": {"reason": "no-tissue", "detail": "There is no tissue on this slide; scan it again."},
    "held": [],
    "links": {"self": _PATH, "events": f"{_PATH}/events", "deliveries": f"{_PATH}/deliveries"},
}


class AnalysisSummary(BaseModel):
    """One analysis. `cancel_requested` is true from a DELETE until the worker has ended it; `run` counts its retries
    from 1; `held` says why it is `held-identity`."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUMMARY]})

    id: str
    state: State
    protocol: str
    priority: Priority
    accession: str | None
    created: datetime
    updated: datetime
    deadline: datetime | None
    run: int
    cancel_requested: bool
    progress: ProgressView | None
    failure: FailureView | None
    held: list[HeldView]
    links: dict[str, str]


class PinnedModel(BaseModel):
    """One version of a model."""

    name: str
    version: str


class AnalysisView(AnalysisSummary):
    """One analysis with its order as it was accepted.

    `models` are the versions that it uses from its start to its end, an ensemble's steps too; empty before it starts.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [_SUMMARY | {"order": EXAMPLE, "models": [{"name": "tile_encoder", "version": "1"}]}]
        }
    )

    order: dict[str, Any]
    models: list[PinnedModel]


class AnalysisPage(BaseModel):
    """Newest first; `next` is the cursor of the next page, or null."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_SUMMARY], "next": "NDItM2Y"}]})

    items: list[AnalysisSummary]
    next: str | None


_REVISION: dict[str, Any] = {
    "number": 2,
    "state": "final",
    "documents": ["2.25.81231"],
    "by": "person:a.meier",
    "by_name": "Dr. A. Meier",
    "reason": "Agrees with the microscope.",
    "made": "2026-11-26T09:02:11Z",
    "links": {"report": f"{_PATH}/report?revision=2", "artifacts": f"{_PATH}/artifacts?revision=2"},
}
_DELIVERY: dict[str, Any] = {
    "id": "5f0c1d2e-0b7a-4d55-8f7e-3c1b2a190807",
    "channel": "stow",
    "target": "archive",
    "event": "report",
    "revision": 1,
    "state": "dead",
    "tries": 3,
    "done": 2,
    "reason": "archive-refused",
    "detail": "The archive refused an object; see its log.",
    "created": "2026-11-26T08:17:00Z",
    "next": "2026-11-26T08:17:09Z",
    "settled": "2026-11-26T08:17:09Z",
}
_FEEDBACK: dict[str, Any] = {
    "number": 1,
    "revision": 2,
    "verdict": "amend",
    "finding": {"code": "35917007", "scheme": "SCT", "display": "Adenocarcinoma"},
    "series": "1.2.826.0.1.3680043.8.498.1.1",
    "comment": "Missed at the margin.",
    "by": "person:a.meier",
    "time": "2026-11-26T09:05:00Z",
}


class RevisionView(BaseModel):
    """One revision of the report: the machine's, or one of a signature or correction; none ever changes."""

    model_config = ConfigDict(json_schema_extra={"examples": [_REVISION]})

    number: int
    state: ReportState
    documents: list[str]
    by: str | None
    by_name: str | None
    reason: str | None
    made: datetime
    links: dict[str, str]


class Revisions(BaseModel):
    """The revisions of a report, oldest first; none before the analysis has one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_REVISION]}]})

    items: list[RevisionView]


class DeliveryView(BaseModel):
    """One thing on its way out of the house. `dead`: it was given up, and waits for somebody to replay it.

    `tries` count since it was last replayed, `next` is the time of the next one while it is `pending`; `done` are the
    objects that the target has already.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_DELIVERY]})

    id: str
    channel: Channel
    target: str
    event: str
    revision: int | None
    state: DeliveryState
    tries: int
    done: int
    reason: str | None
    detail: str | None
    created: datetime
    next: datetime
    settled: datetime | None


class Deliveries(BaseModel):
    """What of an analysis was sent, is to be sent, or could not be sent; oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_DELIVERY]}]})

    items: list[DeliveryView]


class FindingView(BaseModel):
    """A coded concept."""

    code: str
    scheme: str
    display: str


class FeedbackView(BaseModel):
    """What a reader said of one revision."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FEEDBACK]})

    number: int
    revision: int
    verdict: Verdict
    finding: FindingView | None
    series: str | None
    comment: str | None
    by: str
    time: datetime


class FeedbackList(BaseModel):
    """All feedback on an analysis, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_FEEDBACK]}]})

    items: list[FeedbackView]


class Artifact(BaseModel):
    """One file of the analysis."""

    name: str
    media_type: str
    bytes: int
    href: str


class Artifacts(BaseModel):
    """All files of the analysis, by name; none before it is completed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "name": "report.json",
                            "media_type": "application/json",
                            "bytes": 18234,
                            "href": f"{_PATH}/artifacts/report.json",
                        }
                    ]
                }
            ]
        }
    )

    items: list[Artifact]


def path_of(analysis_id: str) -> str:
    return f"{PREFIX}/{analysis_id}"


def summary_of(record: Record) -> dict[str, Any]:
    """An `AnalysisSummary`, JSON-ready."""
    analysis = record.analysis
    path = path_of(analysis.id)
    links = {"self": path, "events": f"{path}/events", "deliveries": f"{path}/deliveries"}
    if analysis.state is State.COMPLETED:
        links |= {name: f"{path}/{name}" for name in ("report", "artifacts", "revisions", "feedback")}
    return {
        "id": analysis.id,
        "state": analysis.state.value,
        "protocol": analysis.order.protocol,
        "priority": analysis.order.priority.value,
        "accession": analysis.order.accession,
        "created": _time(analysis.created),
        "updated": _time(analysis.updated),
        "deadline": _time(record.deadline),
        "run": record.run,
        "cancel_requested": record.cancel_requested and not analysis.state.final,
        "progress": codec.dump(record.progress) if record.progress else None,
        "failure": codec.dump(analysis.failure) if analysis.failure else None,
        "held": [
            {"attribute": each.attribute, "series": each.series, "problem": each.problem.value} for each in record.held
        ],
        "links": links,
    }


def view_of(record: Record) -> dict[str, Any]:
    """An `AnalysisView`, JSON-ready."""
    models = [{"name": name, "version": version} for name, version in record.models]
    return summary_of(record) | {"order": codec.dump(record.analysis.order), "models": models}


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def revision_view(revision: Revision) -> RevisionView:
    path = path_of(revision.analysis_id)
    links = {name: f"{path}/{name}?revision={revision.number}" for name in ("report", "artifacts")}
    return RevisionView(
        number=revision.number,
        state=revision.state,
        documents=list(revision.documents),
        by=revision.by,
        by_name=revision.by_name,
        reason=revision.reason,
        made=revision.made,
        links=links,
    )


def delivery_views(deliveries: Sequence[Delivery]) -> Deliveries:
    names = DeliveryView.model_fields
    return Deliveries(
        items=[DeliveryView(**{name: getattr(each, name) for name in names}) for each in deliveries],
    )


def feedback_view(record: FeedbackRecord) -> FeedbackView:
    given = record.feedback
    return FeedbackView(
        number=record.number,
        revision=record.revision,
        verdict=given.verdict,
        finding=None if given.finding is None else FindingView(**codec.dump(given.finding)),
        series=given.series,
        comment=given.comment,
        by=record.by,
        time=record.time,
    )


def etag_of(record: Record) -> str:
    return f'"{record.version}"'
