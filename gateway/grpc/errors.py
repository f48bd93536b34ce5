"""Errors as google.rpc.Status: the one table of gateway.operations.errors, seen from gRPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2  # type: ignore[import-untyped]
from google.rpc import error_details_pb2 as details  # type: ignore[import-untyped]
from google.rpc import status_pb2

from gateway.operations.errors import Conflict, InvalidOrder, NotFound, PathserveError, come_again_s, rim_of

DOMAIN = "pathserve"
"""Of every ErrorInfo: together with `reason` it names the error."""

_SHOWN_VIOLATIONS = 10
# The status travels in a trailer, base64: many clients take 8 KiB of headers in all.
_MOST_BYTES = 4_000


class InvalidFields(InvalidOrder):
    """A request whose fields are not valid: `violations` are their paths, each with what is wrong with it."""

    def __init__(self, *violations: tuple[str, str]) -> None:
        self.violations = violations[:_SHOWN_VIOLATIONS]
        named = "; ".join(f"{path}: {message}" for path, message in violations[:3])
        super().__init__(f"The request is not valid ({named}). Correct it and send it again.")


def status_of(error: PathserveError, subject: str = "") -> status_pb2.Status:
    """The status of an error of our tree. `subject`: the analysis that the request named, if it named one."""
    code = rim_of(error).grpc
    status = status_pb2.Status(code=getattr(grpc.StatusCode, code).value[0], message=error.detail)
    more = error.more if isinstance(error, Conflict) else {}
    _add(status, details.ErrorInfo(domain=DOMAIN, reason=more.get("reason", error.reason), metadata=_besides(more)))
    if (after_s := come_again_s(error)) is not None:
        retry = details.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(after_s * 1e9))
        _add(status, retry)
    if code == "NOT_FOUND":
        kind = "analysis" if isinstance(error, NotFound) else "slide"
        _add(status, details.ResourceInfo(resource_type=kind, resource_name=subject, description=error.detail))
    elif code in ("FAILED_PRECONDITION", "ABORTED"):
        violation = details.PreconditionFailure.Violation(type=error.reason, subject=subject, description=error.detail)
        _add(status, details.PreconditionFailure(violations=[violation]))
    elif code == "RESOURCE_EXHAUSTED":
        quota = details.QuotaFailure.Violation(subject=error.reason, description=error.detail)
        _add(status, details.QuotaFailure(violations=[quota]))
    elif isinstance(error, InvalidFields):
        _add(status, _bad_request(error.violations))
    return status


def internal() -> PathserveError:
    return PathserveError("An internal error stopped the call; the server's log has it. Try again later.")


def _besides(more: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in more.items() if name != "reason"}


def _bad_request(violations: Sequence[tuple[str, str]]) -> Any:
    request = details.BadRequest()
    for path, message in violations:
        request.field_violations.add(field=path, description=message)
    while request.ByteSize() > _MOST_BYTES:
        request.field_violations.pop()
    return request


def _add(status: Any, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
