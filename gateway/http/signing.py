"""`/v1/analyses/{id}/sign`, `/amend`, `/revisions`, `/feedback`: what people answer for, and say of a result."""

from typing import Annotated

from fastapi import Body, Response

from gateway.analyses.forms import AmendBody, FeedbackBody, SignBody
from gateway.domain.principal import Scope
from gateway.domain.revision import Revision
from gateway.http.context import AnalysisId, By, Here, IfMatch
from gateway.http.routing import Responses, Router, examples_of, needs
from gateway.http.views import (
    PREFIX,
    FeedbackList,
    FeedbackView,
    Revisions,
    RevisionView,
    feedback_view,
    path_of,
    revision_view,
)

router = Router(prefix=f"{PREFIX}/{{analysis_id}}", tags=["results"])

_MADE: Responses = {
    201: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The report of this revision"}}},
    412: {"description": "The report has a newer revision than the one that was read"},
}


@router.post(
    "/sign",
    status_code=201,
    response_model=RevisionView,
    summary="Sign the report",
    openapi_extra=needs(Scope.ANALYSES_SIGN),
    responses=_MADE,
)
def sign(
    here: Here,
    by: By,
    analysis_id: AnalysisId,
    response: Response,
    if_match: IfMatch,
    signature: Annotated[SignBody | None, Body(openapi_examples=examples_of(SignBody))] = None,
) -> RevisionView:
    """The preliminary report becomes final: a new revision in every encoding, which the archive gets as well.

    409 where it is final already. When this answers, `GET …/report` gives the new revision.
    """
    given = signature or SignBody()
    made = if_match.change(
        lambda version: here.service.sign(by, analysis_id, given.comment, revision=given.revision, if_match=version)
    )
    return _made(made, response)


@router.post(
    "/amend",
    status_code=201,
    response_model=RevisionView,
    summary="Correct the report",
    openapi_extra=needs(Scope.ANALYSES_SIGN),
    responses=_MADE,
)
def amend(
    here: Here,
    by: By,
    analysis_id: AnalysisId,
    response: Response,
    if_match: IfMatch,
    amendment: Annotated[AmendBody, Body(openapi_examples=examples_of(AmendBody))],
) -> RevisionView:
    """A signed correction: a new revision, which supersedes the one before it; that one stays as it is, to be read."""
    said, read = amendment.domain(), amendment.revision
    made = if_match.change(lambda version: here.service.amend(by, analysis_id, said, revision=read, if_match=version))
    return _made(made, response)


@router.get(
    "/revisions",
    response_model=Revisions,
    summary="The revisions of the report",
    openapi_extra=needs(Scope.ANALYSES_READ),
)
def revisions(here: Here, by: By, analysis_id: AnalysisId) -> Revisions:
    return Revisions(items=[revision_view(each) for each in here.service.revisions(by, analysis_id)])


@router.post(
    "/feedback",
    status_code=201,
    response_model=FeedbackView,
    summary="Say what a reader makes of the result",
    openapi_extra=needs(Scope.ANALYSES_WRITE),
)
def give_feedback(
    here: Here,
    by: By,
    analysis_id: AnalysisId,
    feedback: Annotated[FeedbackBody, Body(openapi_examples=examples_of(FeedbackBody))],
) -> FeedbackView:
    """Kept as training signal, with the revision that it is about; the report stays as it is."""
    return feedback_view(here.service.give_feedback(by, analysis_id, feedback.domain()))


@router.get(
    "/feedback",
    response_model=FeedbackList,
    summary="What readers made of the result",
    openapi_extra=needs(Scope.ANALYSES_READ),
)
def feedback(here: Here, by: By, analysis_id: AnalysisId) -> FeedbackList:
    return FeedbackList(items=[feedback_view(each) for each in here.service.feedback(by, analysis_id)])


def _made(revision: Revision, response: Response) -> RevisionView:
    response.headers["Location"] = f"{path_of(revision.analysis_id)}/report?revision={revision.number}"
    return revision_view(revision)
