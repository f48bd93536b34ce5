"""`pathserve.v1.AnalysisService` over the use-cases: each method reads a request, calls one of them and shows it."""

# Methods have the names of the .proto.
# ruff: noqa: N802

import asyncio
from typing import Any

from gateway.analyses.forms import BATCH_LIMIT, AmendBody, FeedbackBody, PriorityBody, ReleaseBody, SignBody
from gateway.analyses.ledger.queries import AnalysisQuery
from gateway.analyses.segment_form import SegmentBody
from gateway.analyses.service import Service
from gateway.domain.analysis import State
from gateway.domain.feedback import Verdict
from gateway.domain.order import Order, Priority
from gateway.grpc import views
from gateway.grpc.admission import caller
from gateway.grpc.errors import InvalidFields, status_of
from gateway.grpc.files import send_file
from gateway.grpc.follow import Followers
from gateway.grpc.forms import Filters, choice_of, id_of, key_of, order_of, read, said, time_of, values_of
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceServicer
from gateway.grpc.threads import in_thread
from gateway.operations.errors import PathserveError

_PAGE, _LARGEST_PAGE = 50, 200
_FEEDBACK = ("finding", "series", "comment")


class Analyses(AnalysisServiceServicer):
    """The methods. Errors of our tree go through: the admission around them makes statuses of them."""

    def __init__(self, service: Service, followers: Followers) -> None:
        self._service = service
        self._followers = followers

    async def CreateAnalysis(self, request: Any, context: Any) -> Any:
        order, key = order_of(request), key_of(request)
        record, _ = await in_thread(self._service.create, caller(), order, key)
        return views.analysis(record)

    async def BatchCreateAnalyses(self, request: Any, context: Any) -> Any:
        if not 1 <= len(request.requests) <= BATCH_LIMIT:
            raise InvalidFields(("requests", f"must be 1 to {BATCH_LIMIT} orders"))
        asked = [_asked(each) for each in request.requests]
        good = [each for each in asked if not isinstance(each, PathserveError)]
        accepted = iter(await in_thread(self._service.create_batch, caller(), good))
        answers = [each if isinstance(each, PathserveError) else next(accepted) for each in asked]
        return pb.BatchCreateAnalysesResponse(results=[_result(each) for each in answers])

    async def RunAnalysis(self, request: Any, context: Any) -> None:
        await self._followers.run(caller(), order_of(request), key_of(request), context)

    async def GetAnalysis(self, request: Any, context: Any) -> Any:
        return views.analysis(await in_thread(self._service.get, caller(), id_of(request)))

    async def ListAnalyses(self, request: Any, context: Any) -> Any:
        size = request.page_size or _PAGE
        if not 1 <= size <= _LARGEST_PAGE:
            raise InvalidFields(("page_size", f"must be 1 to {_LARGEST_PAGE}"))
        page = await in_thread(self._service.page, caller(), _query(request), size, request.page_token or None)
        return pb.ListAnalysesResponse(
            items=[views.summary(record) for record in page.items], next_page_token=page.next or ""
        )

    async def WatchAnalysis(self, request: Any, context: Any) -> None:
        if not 0 <= request.after < 2**31:
            raise InvalidFields(("after", "must be the seq of an event, or 0"))
        await self._followers.watch(caller(), id_of(request), request.after, context)

    async def CancelAnalysis(self, request: Any, context: Any) -> Any:
        return await self._changed(self._service.cancel, request)

    async def RetryAnalysis(self, request: Any, context: Any) -> Any:
        return await self._changed(self._service.retry, request)

    async def UpdatePriority(self, request: Any, context: Any) -> Any:
        form = read(PriorityBody, said(request, "priority"))
        return await self._changed(self._service.prioritise, request, form.priority)

    async def ReleaseAnalysis(self, request: Any, context: Any) -> Any:
        form = read(ReleaseBody, said(request, "reason"))
        return views.analysis(await in_thread(self._service.release, caller(), id_of(request), form.reason))

    async def SignAnalysis(self, request: Any, context: Any) -> Any:
        form = read(SignBody, said(request, "comment", "revision"))
        return await self._revised(self._service.sign, request, form.comment, form.revision)

    async def AmendAnalysis(self, request: Any, context: Any) -> Any:
        form = read(AmendBody, said(request, "reason", "text", "findings", "revision"))
        return await self._revised(self._service.amend, request, form.domain(), form.revision)

    async def CreateFeedback(self, request: Any, context: Any) -> Any:
        verdict = choice_of(request.feedback, "verdict", Verdict, "feedback.")
        form = read(FeedbackBody, said(request.feedback, *_FEEDBACK) | {"verdict": verdict}, "feedback.")
        return views.feedback(await in_thread(self._service.give_feedback, caller(), id_of(request), form.domain()))

    async def ListFeedback(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.feedback, caller(), id_of(request))
        return pb.ListFeedbackResponse(items=[views.feedback(each) for each in found])

    async def GetReport(self, request: Any, context: Any) -> None:
        media_type = request.media_type or "application/json"
        file = await in_thread(self._service.report, caller(), id_of(request), media_type, _revision(request))
        await send_file(file, context)

    async def ListArtifacts(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.artifacts, caller(), id_of(request), _revision(request))
        return pb.ListArtifactsResponse(items=[views.file_info(each) for each in found])

    async def GetArtifact(self, request: Any, context: Any) -> None:
        file = await in_thread(self._service.artifact, caller(), id_of(request), request.name, _revision(request))
        await send_file(file, context)

    async def ListRevisions(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.revisions, caller(), id_of(request))
        return pb.ListRevisionsResponse(items=[views.revision(each) for each in found])

    async def ListDeliveries(self, request: Any, context: Any) -> Any:
        found = await in_thread(self._service.deliveries, caller(), id_of(request))
        return pb.ListDeliveriesResponse(items=[views.delivery(each) for each in found])

    async def Segment(self, request: Any, context: Any) -> Any:
        ask = read(SegmentBody, values_of(request)).domain()
        answer = await asyncio.wrap_future(self._service.segment(caller(), ask))
        return await in_thread(views.segmented, answer)  # outlines are many numbers

    async def _revised(self, revise: Any, request: Any, said: Any, revision: int | None) -> Any:
        etag = request.etag or None
        return views.revision(await in_thread(revise, caller(), id_of(request), said, revision=revision, if_match=etag))

    async def _changed(self, change: Any, request: Any, *arguments: Any) -> Any:
        record = await in_thread(change, caller(), id_of(request), *arguments, if_match=request.etag or None)
        return views.analysis(record)


def _asked(request: Any) -> tuple[Order, str | None] | PathserveError:
    try:
        return order_of(request), key_of(request)
    except PathserveError as error:
        return error


def _result(answer: Any) -> Any:
    if isinstance(answer, PathserveError):
        return pb.BatchCreateAnalysesResponse.Result(error=status_of(answer))
    return pb.BatchCreateAnalysesResponse.Result(analysis=views.analysis(answer))


def _query(request: Any) -> AnalysisQuery:
    filters = read(Filters, said(request, *Filters.model_fields))
    return AnalysisQuery(
        state=choice_of(request, "state", State),
        protocol=filters.protocol,
        priority=choice_of(request, "priority", Priority),
        accession=filters.accession,
        patient_id=filters.patient.id,
        patient_issuer=filters.patient.issuer,
        study=filters.study,
        created_after=time_of(request, "created_after"),
        created_before=time_of(request, "created_before"),
    )


def _revision(request: Any) -> int | None:
    if not request.revision >= 0:
        raise InvalidFields(("revision", "must be 1 or more; 0 is the latest"))
    return request.revision or None
