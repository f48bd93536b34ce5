"""The one error tree, and the one table from it to the protocols at the rim (DESIGN.md law 6).

Every error carries a sentence that says what happened and what to do; `reason` is stable and machine-readable.
"""

from dataclasses import dataclass
from typing import ClassVar


class PathserveError(Exception):
    """Root of the tree. `detail` is for the client: no stack trace, no path, no address, no patient data.

    Of a `retryable` one, `after_s` are the seconds until another try may succeed at all, 0 where nobody can tell.
    """

    reason: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    after_s: float = 0.0

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidInput(PathserveError):
    reason, title = "invalid-input", "Invalid input"


class InvalidOrder(InvalidInput):
    reason, title = "invalid-order", "Invalid order"


class PromptInvalid(InvalidOrder):
    """A prompt of segmentation by words that names no triple, or more than one."""

    reason, title = "prompt-invalid", "Prompt not understood"


class UnknownProtocol(InvalidInput):
    reason, title = "unknown-protocol", "Unknown protocol"


class InvalidSetting(InvalidInput):
    reason, title = "invalid-setting", "Invalid setting"


class BodyTooLarge(InvalidInput):
    reason, title = "body-too-large", "Request body too large"


class BodyTooSlow(InvalidInput):
    reason, title, retryable = "body-too-slow", "Request body too slow", True


class RangeNotSatisfiable(InvalidInput):
    reason, title = "range-not-satisfiable", "The file has no such range"


class IdempotencyConflict(InvalidInput):
    reason, title = "idempotency-conflict", "Idempotency-Key used with another body"


class MethodNotAllowed(InvalidInput):
    reason, title = "method-not-allowed", "Method not allowed"


class UnsupportedMediaType(InvalidInput):
    reason, title = "unsupported-media-type", "Unsupported media type"


class NotAcceptable(InvalidInput):
    reason, title = "not-acceptable", "No such encoding"


class Unauthenticated(PathserveError):
    reason, title = "unauthenticated", "Authentication required"


class Forbidden(PathserveError):
    reason, title = "forbidden", "Not allowed"


class WrongScope(Forbidden):
    reason, title = "wrong-scope", "The token's scopes do not allow this"


class WrongTenant(Forbidden):
    reason, title = "wrong-tenant", "The token belongs to another tenant"


class TooManyRequests(PathserveError):
    """`after_s`: the seconds until the caller may come again."""

    reason, title, retryable = "too-many-requests", "Too many requests", True

    def __init__(self, detail: str, after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.after_s = after_s


class IdentityProviderUnavailable(PathserveError):
    reason, title, retryable = "identity-provider-unavailable", "Identity provider not reachable", True
    after_s = 5.0


class PreconditionFailed(PathserveError):
    reason, title = "precondition-failed", "It has changed since it was read"


class NotFound(PathserveError):
    reason, title = "not-found", "Not found"


class Conflict(PathserveError):
    """`more`: what a program may want to know besides, as further members of the problem."""

    reason, title = "conflict", "Not possible in this state"

    def __init__(self, detail: str, **more: str) -> None:
        super().__init__(detail)
        self.more = more


class ReportNotReady(Conflict):
    reason, title = "report-not-ready", "Report not ready"


class IdentityMismatch(Conflict):
    reason, title = "identity-mismatch", "The slide belongs to another case"


class Cancelled(Conflict):
    reason, title = "cancelled", "Cancelled"


class KillsWorker(PathserveError):
    """The worker process died again and again on this analysis alone: it is ended, so that the others go on."""

    reason, title = "kills-worker", "The worker died repeatedly"


class DeadlineExceeded(PathserveError):
    reason, title = "deadline-exceeded", "Not done in time"


class TurnLost(PathserveError):
    """Another worker has taken the analysis over: whoever is told this stops, and writes nothing more."""

    reason, title = "turn-lost", "Another worker works on it"


class DeliveryError(PathserveError):
    reason, title = "delivery", "Delivery failed"


class DeliveryUnavailable(DeliveryError):
    reason, title, retryable = "delivery-unavailable", "Target not reachable", True


class DeliveryRefused(DeliveryError):
    reason, title = "delivery-refused", "Target refused the delivery"


class TargetNotAllowed(DeliveryError):
    reason, title = "target-not-allowed", "Target is not on the allow-list"


class SlideError(PathserveError):
    """The slide itself cannot be measured: the analysis ends `failed` with this reason and no report."""

    reason, title = "slide", "Slide cannot be read"


class NotDicom(SlideError):
    reason, title = "not-dicom", "Not a DICOM file"


class TruncatedFile(SlideError):
    reason, title = "truncated-file", "File is truncated"


class InvalidSlide(SlideError):
    reason, title = "invalid-slide", "Slide header is not usable"


class NoVolumeImage(SlideError):
    reason, title = "no-volume-image", "No VOLUME image in the series"


class MissingPixelSpacing(SlideError):
    reason, title = "missing-pixel-spacing", "Pixel spacing missing"


class ResolutionTooCoarse(SlideError):
    reason, title = "resolution-too-coarse", "Resolution too coarse for the model"


class UnsupportedTransferSyntax(SlideError):
    reason, title = "unsupported-transfer-syntax", "Unsupported transfer syntax"


class CorruptFrame(SlideError):
    reason, title = "corrupt-frame", "A frame cannot be decoded"


class NoTissue(SlideError):
    reason, title = "no-tissue", "No tissue found"


class ArchiveError(PathserveError):
    reason, title = "archive", "Archive error"


class SlideNotInArchive(ArchiveError):
    reason, title = "slide-not-in-archive", "Slide not in the archive"


class ArchiveUnavailable(ArchiveError):
    reason, title, retryable = "archive-unavailable", "Archive not reachable", True

    def __init__(self, detail: str, after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.after_s = after_s


class ArchiveRefused(ArchiveError):
    reason, title = "archive-refused", "Archive refused the request"


class InferenceError(PathserveError):
    reason, title = "inference", "Inference failed"


class InferenceUnavailable(InferenceError):
    reason, title, retryable = "inference-unavailable", "Inference server not reachable", True


class InferenceTimeout(InferenceError):
    reason, title, retryable = "inference-timeout", "Inference took too long", True


class ModelNotLoaded(InferenceError):
    reason, title = "model-not-loaded", "Model not loaded"


class ModelRefused(InferenceError):
    reason, title = "model-refused", "Model refused"


class ModelsUnfit(InferenceError):
    """Models that serve were not made for each other: their figures would mean nothing."""

    reason, title = "models-unfit", "Models do not belong together"


class ModelChanged(InferenceError):
    """A model's files are no longer those that the analysis began with: what was computed by them is done anew."""

    reason, title, retryable = "model-changed", "Model changed meanwhile", True


class StateError(PathserveError):
    reason, title = "state", "State folder not usable"


class StateLocked(StateError):
    reason, title = "state-locked", "State folder in use"


class StateBusy(StateError):
    reason, title, retryable = "state-busy", "State in use, try again", True
    after_s = 1.0


class DatabaseUnavailable(StateError):
    reason, title, retryable = "database-unavailable", "Database not reachable", True
    after_s = 5.0


class DiskFull(StateError):
    reason, title, retryable = "disk-full", "No space left", True


class FramesNotFetched(StateError):
    """Frames that are to be read are not in the frame cache (any more): they are fetched, then read again."""

    reason, title, retryable = "frames-not-fetched", "Frames not fetched", True


class RowsOutdated(StateError):
    """What was computed of a slide belongs to another model, plan or release, or is not all there: it is done anew."""

    reason, title, retryable = "rows-outdated", "Stored answers outdated", True


@dataclass(frozen=True, slots=True)
class Rim:
    """How an error looks at the rim: HTTP status (RFC 9110), gRPC status name."""

    http: int
    grpc: str


_RIM: dict[type[PathserveError], Rim] = {
    PathserveError: Rim(500, "INTERNAL"),
    InvalidInput: Rim(400, "INVALID_ARGUMENT"),
    InvalidOrder: Rim(422, "INVALID_ARGUMENT"),
    UnknownProtocol: Rim(422, "INVALID_ARGUMENT"),
    IdempotencyConflict: Rim(422, "FAILED_PRECONDITION"),
    BodyTooLarge: Rim(413, "RESOURCE_EXHAUSTED"),
    BodyTooSlow: Rim(408, "DEADLINE_EXCEEDED"),
    RangeNotSatisfiable: Rim(416, "OUT_OF_RANGE"),
    MethodNotAllowed: Rim(405, "UNIMPLEMENTED"),
    UnsupportedMediaType: Rim(415, "INVALID_ARGUMENT"),
    NotAcceptable: Rim(406, "INVALID_ARGUMENT"),
    Unauthenticated: Rim(401, "UNAUTHENTICATED"),
    Forbidden: Rim(403, "PERMISSION_DENIED"),
    TooManyRequests: Rim(429, "RESOURCE_EXHAUSTED"),
    IdentityProviderUnavailable: Rim(503, "UNAVAILABLE"),
    PreconditionFailed: Rim(412, "ABORTED"),
    NotFound: Rim(404, "NOT_FOUND"),
    Conflict: Rim(409, "FAILED_PRECONDITION"),
    SlideError: Rim(422, "FAILED_PRECONDITION"),
    ArchiveError: Rim(502, "UNAVAILABLE"),
    SlideNotInArchive: Rim(404, "NOT_FOUND"),
    ArchiveUnavailable: Rim(503, "UNAVAILABLE"),
    InferenceError: Rim(502, "INTERNAL"),
    InferenceUnavailable: Rim(503, "UNAVAILABLE"),
    InferenceTimeout: Rim(504, "DEADLINE_EXCEEDED"),
    ModelNotLoaded: Rim(503, "UNAVAILABLE"),
    ModelChanged: Rim(503, "UNAVAILABLE"),
    DeadlineExceeded: Rim(504, "DEADLINE_EXCEEDED"),
    TurnLost: Rim(409, "ABORTED"),
    DeliveryError: Rim(502, "UNAVAILABLE"),
    TargetNotAllowed: Rim(403, "PERMISSION_DENIED"),
    StateError: Rim(500, "INTERNAL"),
    StateLocked: Rim(503, "UNAVAILABLE"),
    StateBusy: Rim(503, "UNAVAILABLE"),
    DatabaseUnavailable: Rim(503, "UNAVAILABLE"),
    DiskFull: Rim(507, "RESOURCE_EXHAUSTED"),
    FramesNotFetched: Rim(503, "UNAVAILABLE"),
    RowsOutdated: Rim(503, "UNAVAILABLE"),
}


LATER_S = 2.0
"""After which to come again, where nobody can tell."""


def come_again_s(error: PathserveError) -> float | None:
    """The seconds after which the same request may succeed; None where coming again alone is of no use."""
    again = error.retryable or isinstance(error, ReportNotReady) or rim_of(error).http == 503
    return (error.after_s or LATER_S) if again else None


def rim_of(error: PathserveError | type[PathserveError]) -> Rim:
    """The rim status of an error: its own row of the table, or its nearest ancestor's."""
    kind = error if isinstance(error, type) else type(error)
    return next(_RIM[cls] for cls in kind.__mro__ if cls in _RIM)
