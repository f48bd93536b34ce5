"""The error tree as google.rpc.Status: the same table as REST, details that programs can act on, nothing else."""

import grpc
import pytest
from google.rpc import error_details_pb2 as details

from gateway.grpc.errors import DOMAIN, InvalidFields, internal, status_of
from gateway.http.problems import problem, problem_of
from gateway.operations import errors
from gateway.operations.errors import (
    Conflict,
    NotFound,
    PathserveError,
    PreconditionFailed,
    ReportNotReady,
    TooManyRequests,
    rim_of,
)


def tree(root: type[PathserveError]) -> list[type[PathserveError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(leaf for child in children for leaf in tree(child))]


# RFC 9110 beside google.rpc.Code: what each gRPC status may be in REST.
HTTP_OF = {
    "INVALID_ARGUMENT": {400, 406, 415, 422},
    "UNAUTHENTICATED": {401},
    "PERMISSION_DENIED": {403},
    "NOT_FOUND": {404},
    "UNIMPLEMENTED": {405},
    "FAILED_PRECONDITION": {409, 422},
    "ABORTED": {409, 412},
    "RESOURCE_EXHAUSTED": {413, 429, 507},
    "OUT_OF_RANGE": {416},
    "INTERNAL": {500, 502},
    "UNAVAILABLE": {500, 502, 503},
    "DEADLINE_EXCEEDED": {408, 504},
}


def details_of(error: PathserveError, subject: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for packed in status_of(error, subject).details:
        kind = packed.TypeName().rpartition(".")[2]
        found[kind] = getattr(details, kind)()
        assert packed.Unpack(found[kind])
    return found


@pytest.mark.parametrize("kind", tree(PathserveError), ids=lambda kind: kind.__name__)
def test_every_error_has_the_status_of_the_table(kind: type[PathserveError]) -> None:
    error = kind("what happened; what to do")
    status, told = status_of(error), details_of(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    assert code.name == rim_of(kind).grpc
    assert problem(error).status_code in HTTP_OF[code.name], "REST says another thing of the same error"
    assert status.message == "what happened; what to do"
    info = told["ErrorInfo"]
    assert isinstance(info, details.ErrorInfo)
    assert (info.reason, info.domain) == (kind.reason, DOMAIN)
    assert ("RetryInfo" in told) == ("retry-after" in problem(error).headers)
    assert "RetryInfo" in told or not kind.retryable
    assert ("PreconditionFailure" in told) == (code.name in ("FAILED_PRECONDITION", "ABORTED"))
    assert ("ResourceInfo" in told) == (code.name == "NOT_FOUND")
    assert ("QuotaFailure" in told) == (code.name == "RESOURCE_EXHAUSTED")


def test_details_say_what_a_program_needs() -> None:
    retry = details_of(TooManyRequests("slower", after_s=2.5))["RetryInfo"]
    assert isinstance(retry, details.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 2500
    missing = details_of(NotFound("no such"), "an-id")["ResourceInfo"]
    assert isinstance(missing, details.ResourceInfo)
    assert (missing.resource_type, missing.resource_name) == ("analysis", "an-id")
    changed = details_of(PreconditionFailed("it has changed"), "an-id")["PreconditionFailure"]
    assert isinstance(changed, details.PreconditionFailure)
    assert (changed.violations[0].type, changed.violations[0].subject) == ("precondition-failed", "an-id")
    wrong = details_of(InvalidFields(("order.protocol", "Field required")))["BadRequest"]
    assert isinstance(wrong, details.BadRequest)
    assert [(each.field, each.description) for each in wrong.field_violations] == [("order.protocol", "Field required")]


def test_what_stands_in_for_a_report_has_the_reason_and_state_of_rest() -> None:
    failed = Conflict("There is no tissue, so there is no report.", state="failed", reason="no-tissue")
    info, rest = details_of(failed)["ErrorInfo"], problem_of(failed)
    assert isinstance(info, details.ErrorInfo)
    assert (
        (info.reason, dict(info.metadata))
        == (rest["reason"], {"state": rest["state"]})
        == ("no-tissue", {"state": "failed"})
    )
    later = details_of(ReportNotReady("Not yet.", state="running"))["RetryInfo"]
    assert isinstance(later, details.RetryInfo)
    assert later.retry_delay.ToSeconds() == 2


def test_a_status_fits_into_the_trailers_of_a_call() -> None:
    """Clients refuse more than 8 KiB of metadata in all, and would then show another error than ours."""
    status = status_of(InvalidFields(*((f"order.{'x' * 500}.{n}", "m" * 200) for n in range(50))))
    assert len(status.SerializeToString()) < 6000


def test_an_unexpected_error_says_nothing_of_itself() -> None:
    assert status_of(internal()).code == grpc.StatusCode.INTERNAL.value[0]
