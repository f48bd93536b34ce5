"""The use-cases: what a caller may do with analyses. REST, gRPC and every later door call this and nothing else.

Each method takes the caller first, checks its scope, and works in its tenant only: another tenant's analysis is not
there. What changes something has its audit record in the same transaction; reads and refusals have theirs beside it.
Every method may raise StateError (StateBusy, DatabaseUnavailable) and DiskFull; those with an id NotFound.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from gateway.analyses.catalogue import Catalogue, ModelState, ProtocolCards, ServerStatus
from gateway.analyses.feed import Feed
from gateway.analyses.interactive import Interactive
from gateway.analyses.ledger import Ledger, Record
from gateway.analyses.ledger.events import Event
from gateway.analyses.ledger.living import LivingWorkers
from gateway.analyses.protocols import check_order
from gateway.analyses.reads import Lately, ResultFile, ResultFiles, require_completed
from gateway.domain.analysis import State
from gateway.domain.order import Order, Priority
from gateway.domain.principal import Principal, Scope
from gateway.operations.audit import Action, AuditEvent, AuditQuery, AuditRecord, EventType, Outcome
from gateway.operations.errors import (
    IdentityMismatch,
    NotFound,
    PathserveError,
    PreconditionFailed,
    SlideNotInArchive,
    StateError,
    WrongScope,
    WrongTenant,
)
from gateway.operations.settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gateway.analyses.ledger import AnalysisQuery, Page
    from gateway.domain.delivery import Delivery
    from gateway.domain.feedback import Feedback, FeedbackRecord
    from gateway.domain.report import Amendment
    from gateway.domain.revision import Revision
    from gateway.domain.segment import SegmentAnswer, SegmentAsk

log = structlog.get_logger("gateway.analyses.service")


class Service:
    """The use-cases over one ledger. Thread-safe; every method blocks until it is on disk."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self.living = LivingWorkers(ledger.workers)
        self._catalogue = Catalogue(settings, ledger)
        self._lately = Lately()
        self._interactive = Interactive(settings, ledger.choices.read)

    def stop(self) -> None:
        """Begin to end what is being answered; a signal's handler may call it."""
        self._interactive.stop()

    def close(self) -> None:
        """End what is being answered. The ledger stays open: it is its opener's."""
        self._interactive.close()

    # Orders

    def create(self, by: Principal, order: Order, key: str | None = None) -> tuple[Record, bool]:
        """Write an order down; on disk when this returns. The flag is False where the caller's key was known already.

        Raises WrongScope (analyses:write); UnknownProtocol, InvalidSetting, InvalidOrder; IdempotencyConflict.
        """
        self._admit(by, Scope.ANALYSES_WRITE, "analysis-create")
        check_order(order)
        return self._ledger.accept(order, by, key, self._settings.deadline_s)

    def create_batch(self, by: Principal, orders: Sequence[tuple[Order, str | None]]) -> list[Record | PathserveError]:
        """Write orders down in one transaction, each on its own merits: the record, or why that one was refused.

        Raises WrongScope (analyses:write).
        """
        self._admit(by, Scope.ANALYSES_WRITE, "analysis-create")
        answers: list[Record | PathserveError | None] = [_refusal_of(order) for order, _ in orders]
        good = [each for each, refusal in zip(orders, answers, strict=True) if refusal is None]
        accepted = iter(self._ledger.accept_batch(good, by, self._settings.deadline_s) if good else [])
        return [next(accepted) if answer is None else answer for answer in answers]

    def page(self, by: Principal, query: "AnalysisQuery", limit: int, cursor: str | None = None) -> "Page":
        """Up to `limit` analyses of the tenant that fit the query, newest first, and the cursor of those that follow.

        Raises WrongScope (analyses:read); InvalidInput for a cursor that is not one, or of another query.
        """
        self._admit(by, Scope.ANALYSES_READ, "analysis-list")
        page = self._ledger.page(by.tenant, query, limit, cursor)
        self._note(by, EventType.QUERY, "analysis-list", Action.EXECUTE, found=len(page.items))
        return page

    def get(self, by: Principal, analysis_id: str) -> Record:
        """One analysis. Raises WrongScope (analyses:read)."""
        record = self._read(by, analysis_id, "analysis-read")
        if self._lately.is_new(by.subject, analysis_id):
            self._note(by, EventType.ORDER_RECORD, "analysis-read", Action.READ, analysis_id)
        return record

    def events(self, by: Principal, analysis_id: str, after: int = 0) -> tuple[Event, ...]:
        """What happened to it after the event of that number, oldest first. Raises WrongScope (analyses:read)."""
        self.get(by, analysis_id)
        return self._ledger.events(analysis_id, after)

    def is_over(self, by: Principal, analysis_id: str) -> bool:
        """Whether nothing more will happen to it: it has ended, or is no longer kept. False where nobody can tell now.

        For streams, which outlast a database that is down. Raises WrongScope (analyses:read).
        """
        try:
            return self.get(by, analysis_id).analysis.state.final
        except NotFound:
            return True
        except StateError:
            return False

    def feed(self) -> Feed:
        """What tells the streams of one event loop what is new. Whether a caller may read it, `get` says before."""
        return Feed(self._ledger)

    def cancel(self, by: Principal, analysis_id: str, *, if_match: str | None = None) -> Record:
        """End a waiting analysis at once, ask the worker to end a running one; repeating it changes nothing.

        Raises WrongScope (analyses:write); PreconditionFailed; Conflict where it has ended otherwise, or its delivery
        has begun.
        """
        with self._on(by, Scope.ANALYSES_WRITE, "analysis-cancel", analysis_id):
            return self._ledger.cancel(analysis_id, by, if_match)

    def retry(self, by: Principal, analysis_id: str, *, if_match: str | None = None) -> Record:
        """Accept a failed or cancelled analysis again.

        Raises WrongScope (analyses:write); PreconditionFailed; Conflict where it has not ended so.
        """
        with self._on(by, Scope.ANALYSES_WRITE, "analysis-retry", analysis_id):
            return self._ledger.retry(analysis_id, by, if_match, self._settings.deadline_s)

    def prioritise(self, by: Principal, analysis_id: str, priority: Priority, *, if_match: str | None = None) -> Record:
        """Change the priority of an analysis that has not ended.

        Raises WrongScope (analyses:write); PreconditionFailed; Conflict where it has ended.
        """
        with self._on(by, Scope.ANALYSES_WRITE, "analysis-prioritise", analysis_id):
            return self._ledger.prioritise(analysis_id, priority, by, if_match)

    # What a person answers for

    def release(self, by: Principal, analysis_id: str, reason: str) -> Record:
        """Let a held analysis go on although order and slides differ; a difference that is new later holds it again.

        Raises WrongScope (analyses:sign); Conflict where it is not held.
        """
        with self._on(by, Scope.ANALYSES_SIGN, "analysis-release", analysis_id):
            return self._ledger.release(analysis_id, reason, by)

    def sign(
        self,
        by: Principal,
        analysis_id: str,
        comment: str | None = None,
        *,
        revision: int | None = None,
        if_match: str | None = None,
    ) -> "Revision":
        """Make the preliminary report final: a new revision, which the next read of the report gives.

        `revision`: the one that the person has read; `if_match`: the analysis's version then. Raises WrongScope
        (analyses:sign); ReportNotReady, Cancelled, Conflict; PreconditionFailed where it has changed since.
        """
        from gateway.analyses import signing  # it encodes reports: DICOM, PDF, pictures

        with self._on(by, Scope.ANALYSES_SIGN, "report-sign", analysis_id):
            expected = self._seen(by, analysis_id, revision, if_match)
            return signing.sign(self._settings, self._ledger, by, analysis_id, comment, expected=expected)

    def amend(
        self,
        by: Principal,
        analysis_id: str,
        amendment: "Amendment",
        *,
        revision: int | None = None,
        if_match: str | None = None,
    ) -> "Revision":
        """Correct the report: a new signed revision, which supersedes the one before it and overwrites nothing.

        Arguments and errors as of `sign`.
        """
        from gateway.analyses import signing

        with self._on(by, Scope.ANALYSES_SIGN, "report-amend", analysis_id):
            expected = self._seen(by, analysis_id, revision, if_match)
            return signing.amend(self._settings, self._ledger, by, analysis_id, amendment, expected=expected)

    def _seen(self, by: Principal, analysis_id: str, revision: int | None, if_match: str | None) -> int | None:
        """The revision that a person has before the eyes who signs or corrects; None where nothing is said of it."""
        require_completed(self._ledger.get(analysis_id, by.tenant))
        if if_match is None:
            return revision
        # The version is read last: where it is the one that was seen, so is this revision.
        newest = self._ledger.revisions.get(analysis_id).number
        if if_match != self._ledger.get(analysis_id, by.tenant).version:
            raise PreconditionFailed("The analysis has changed since it was read. Read it again, then decide.")
        return newest if revision is None else revision

    def give_feedback(self, by: Principal, analysis_id: str, feedback: "Feedback") -> "FeedbackRecord":
        """Keep what a reader says of a result, as training signal.

        Raises WrongScope (analyses:write); ReportNotReady, Conflict; InvalidInput for a series that is not the case's.
        """
        with self._on(by, Scope.ANALYSES_WRITE, "feedback-give", analysis_id):
            require_completed(self._ledger.get(analysis_id, by.tenant))
            return self._ledger.feedback.give(by, analysis_id, feedback, self._settings.state / "analyses")

    def feedback(self, by: Principal, analysis_id: str) -> tuple["FeedbackRecord", ...]:
        """All feedback on it, oldest first. Raises WrongScope (analyses:read)."""
        self._read(by, analysis_id, "feedback-read")
        self._note_read(by, "feedback-read", analysis_id)
        return self._ledger.feedback.of(analysis_id)

    # What it made

    def report(self, by: Principal, analysis_id: str, media_type: str, revision: int | None = None) -> ResultFile:
        """The report in one encoding, of the latest revision or of that one; the first study's where there are several.

        Raises WrongScope (analyses:read); ReportNotReady, Cancelled, Conflict (it failed); NotAcceptable; NotFound.
        """
        files, number = self._files(by, analysis_id, "report-read", revision)
        file = files.report(media_type)
        self._note(
            by,
            EventType.PATIENT_RECORD,
            "report-read",
            Action.READ,
            analysis_id,
            media_type=media_type,
            revision=number,
        )
        return file

    def documents(self, by: Principal, analysis_id: str, revision: int | None = None) -> tuple[ResultFile, ...]:
        """The report's DICOM documents, one a study. Raises as `report` does."""
        files, number = self._files(by, analysis_id, "report-read", revision)
        self._note_read(by, "report-read", analysis_id, media_type="application/dicom", revision=number)
        return files.documents()

    def artifacts(self, by: Principal, analysis_id: str, revision: int | None = None) -> tuple[ResultFile, ...]:
        """All files of it, by name; none before it is completed. Raises WrongScope (analyses:read)."""
        record = self._read(by, analysis_id, "artifacts-list")
        if record.analysis.state is not State.COMPLETED:
            return ()
        files, number = self._files(by, analysis_id, "artifacts-list", revision)
        self._note_read(by, "artifacts-list", analysis_id, revision=number)
        return files.all()

    def artifact(self, by: Principal, analysis_id: str, name: str, revision: int | None = None) -> ResultFile:
        """One file of it. Raises as `report` does."""
        files, number = self._files(by, analysis_id, "artifact-read", revision)
        file = files.named(name)
        self._note_read(by, "artifact-read", analysis_id, name=file.name, revision=number)
        return file

    def revisions(self, by: Principal, analysis_id: str) -> tuple["Revision", ...]:
        """All revisions of its report, the machine's first. Raises WrongScope (analyses:read)."""
        self._read(by, analysis_id, "revisions-read")
        self._note_read(by, "revisions-read", analysis_id)
        return self._ledger.revisions.of(analysis_id)

    def deliveries(self, by: Principal, analysis_id: str) -> tuple["Delivery", ...]:
        """What of it was sent, is to be sent, or could not be sent, oldest first. Raises WrongScope (analyses:read)."""
        self._read(by, analysis_id, "deliveries-read")
        self._note(by, EventType.ORDER_RECORD, "deliveries-read", Action.READ, analysis_id)
        return self._ledger.outbox.of(analysis_id)

    # What is answered at once

    def segment(self, by: Principal, ask: "SegmentAsk") -> "Future[SegmentAnswer]":
        """Masks of a region by words. It alone does not block: the future has the answer, and cancelling it ends the
        work. A slide that others have ordered is not there for a tenant without an analysis of it that was completed.

        The future raises WrongScope (analyses:write), SlideNotInArchive, and as `Interactive.begin`; this, StateBusy.
        """
        asked: dict[str, Any] = {"study": ask.study, "series": ask.series, "prompts": len(ask.prompts)}
        # In the same words, whether the archive or only this tenant does not have it.
        absent = SlideNotInArchive(
            f"The archive holds no slide {ask.series} of study {ask.study}. Check the UIDs, or send the slide."
        )

        def admit() -> None:
            self._admit(by, Scope.ANALYSES_WRITE, "slide-segment")
            check_order(ask.order)
            # An order alone proves nothing: what it says of the patient is compared with the slide, and has to agree.
            proven = self._ledger.tenants_of(ask.study, (State.COMPLETED,))
            others = self._ledger.tenants_of(ask.study, (State.ACCEPTED, State.RUNNING, State.COMPLETED)) - {by.tenant}
            if others and by.tenant not in proven:
                self._refused(by, "slide-segment", None, reason=WrongTenant.reason)
                raise absent

        def note(error: PathserveError | None) -> None:
            if isinstance(error, IdentityMismatch):  # somebody tries whose it is
                self._refused(by, "slide-segment", None, reason=error.reason, **asked)
            else:
                outcome = Outcome.SUCCESS if error is None else Outcome.MINOR_FAILURE
                why = {} if error is None else {"reason": error.reason}
                read = EventType.INSTANCES_ACCESSED
                self._note(by, read, "slide-segmented", Action.READ, outcome=outcome, **asked, **why)
            if isinstance(error, SlideNotInArchive):
                raise absent

        return self._interactive.begin(ask, by.subject, admit, note)

    # What the server can do now

    def protocols(self, by: Principal) -> tuple[ProtocolCards, ...]:
        """The protocols that an order may ask for, with their models' cards. Raises WrongScope (models:read)."""
        self._admit(by, Scope.MODELS_READ, "protocols-read")
        return self._catalogue.protocols()

    def models(self, by: Principal, *, every: bool = False) -> tuple[ModelState, ...]:
        """The models and whether they are ready; `every`: also those that stand by and those that were retired.

        Raises WrongScope (models:read).
        """
        self._admit(by, Scope.MODELS_READ, "models-read")
        found = self._catalogue.models(self.living())
        return tuple(each for each in found if every or each.state not in ("standby", "retired"))

    def status(self, by: Principal) -> ServerStatus:
        """Workers, queues, dead letters. Raises WrongScope (analyses:read)."""
        self._admit(by, Scope.ANALYSES_READ, "status-read")
        return self._catalogue.status(self.living(), self.living.readiness())

    def audit(
        self, by: Principal, *, after: int, limit: int, since: datetime | None = None, until: datetime | None = None
    ) -> list[AuditRecord]:
        """Up to `limit` records of the tenant after number `after`, oldest first. Raises WrongScope (audit:read)."""
        self._admit(by, Scope.AUDIT_READ, "audit-read")
        found = self._ledger.trail.page(AuditQuery(tenant=by.tenant, since=since, until=until), after, limit)
        self._note(by, EventType.AUDIT_LOG_USED, "audit-read", Action.READ, after=after, found=len(found))
        return found

    # Who may, and what is written down of it

    def require(self, by: Principal, scope: Scope, operation: str) -> None:
        """For what a door does by itself, e.g. showing metrics. Raises WrongScope, and has it audited."""
        self._admit(by, scope, operation)

    def _admit(self, by: Principal, scope: Scope, operation: str, analysis_id: str | None = None) -> None:
        if not by.may(scope):
            self._refused(by, operation, analysis_id, scope=scope.value)
            who = "a person's token with the scope" if scope is Scope.ANALYSES_SIGN else "a token with the scope"
            raise WrongScope(f"This needs {who} {scope.value}. Ask whoever gives the tokens out.")

    def _read(self, by: Principal, analysis_id: str, operation: str) -> Record:
        with self._on(by, Scope.ANALYSES_READ, operation, analysis_id):
            return self._ledger.get(analysis_id, by.tenant)

    def _files(self, by: Principal, analysis_id: str, operation: str, revision: int | None) -> tuple[ResultFiles, int]:
        require_completed(self._read(by, analysis_id, operation))
        # Reports from before there were revisions have one that nobody wrote down.
        folders = {each.number: each.folder for each in self._ledger.revisions.of(analysis_id)} or {1: "artifacts"}
        number = max(folders) if revision is None else revision
        if number not in folders:
            raise NotFound("The report has no such revision; see the list at its revisions.")
        analysis = self._settings.state / "analyses" / analysis_id
        made = sorted((each for each in folders if each <= number), reverse=True)
        return ResultFiles(number, tuple(analysis / folders[each] for each in made)), number

    @contextmanager
    def _on(self, by: Principal, scope: Scope, operation: str, analysis_id: str) -> Iterator[None]:
        """Around a use of one analysis: another tenant's is audited as a refusal, and not there for the caller."""
        self._admit(by, scope, operation, analysis_id)
        try:
            yield
        except WrongTenant:
            self._refused(by, operation, analysis_id, reason=WrongTenant.reason)
            raise NotFound("There is no analysis with this id.") from None

    def _note_read(self, by: Principal, subtype: str, analysis_id: str, **detail: Any) -> None:
        self._note(by, EventType.PATIENT_RECORD, subtype, Action.READ, analysis_id, **detail)

    def _refused(self, by: Principal, operation: str, analysis_id: str | None, **detail: Any) -> None:
        try:
            self._note(
                by,
                EventType.SECURITY_ALERT,
                "access-refused",
                Action.EXECUTE,
                analysis_id,
                Outcome.MINOR_FAILURE,
                operation=operation,
                **detail,
            )
        except PathserveError as error:  # a refusal that cannot be written down is still one
            log.error("a refusal could not be audited", operation=operation, reason=error.reason)

    def _note(
        self,
        by: Principal,
        kind: EventType,
        subtype: str,
        action: Action,
        analysis_id: str | None = None,
        outcome: Outcome = Outcome.SUCCESS,
        **detail: Any,
    ) -> None:
        self._ledger.audit(
            AuditEvent(
                type=kind,
                subtype=subtype,
                action=action,
                outcome=outcome,
                tenant=by.tenant,
                entity_kind=None if analysis_id is None else "analysis",
                entity=analysis_id,
                detail=detail,
            ).by(by)
        )


def _refusal_of(order: Order) -> PathserveError | None:
    try:
        check_order(order)
    except PathserveError as error:
        return error
    return None
