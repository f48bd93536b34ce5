"""What is said between the process that answers requests and its child that reads slides: frames over two pipes.

A request's frame is an errand, or nothing, which ends it; an answer's frame is its masks, or the error. The child's
first, of number 0, says that it has started. It is data only: what reads foreign files cannot hand an object of its
making to the process that answers, nor more than that takes, nor another answer than was asked for.
"""

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import structlog

from gateway.analyses.ledger.choices import Choices
from gateway.domain.segment import SegmentAnswer, SegmentAsk
from gateway.operations import codec
from gateway.operations.errors import (
    ArchiveError,
    IdentityMismatch,
    InferenceError,
    InvalidOrder,
    PathserveError,
    SlideError,
    StateError,
)

HEAD = struct.Struct(">QI")
"""Before each body: the request's number, and the body's length."""
MOST_BYTES = 64 * 2**20
"""Of an answer's body: three times sixteen masks of the largest regions with all their corners."""
_ANSWER, _ERROR = b"A", b"E"
_MOST_AFTER_S = 60.0
_SAYABLE = (InvalidOrder, SlideError, IdentityMismatch, ArchiveError, InferenceError, StateError)
"""What the child may say of a region, with all that is narrower: who may ask, and how much, is for others to say."""

log = structlog.get_logger("gateway.analyses.segment_wire")


@dataclass(frozen=True, slots=True)
class Errand:
    """What the child is asked, and which versions of models serve: it opens no ledger."""

    ask: SegmentAsk
    choices: Choices


@dataclass(frozen=True, slots=True)
class _Told:
    reason: str
    detail: str
    after_s: float


def failed() -> PathserveError:
    """The error of a region that nobody foresaw; why is in a log."""
    return PathserveError("The region could not be segmented. Report this, with the server's logs.")


def sayable(error: PathserveError) -> bool:
    """Whether the child may say it; another becomes `failed`."""
    return isinstance(error, _SAYABLE)


def framed(number: int, body: bytes) -> bytes:
    return HEAD.pack(number, len(body)) + body


def body_of(outcome: SegmentAnswer | PathserveError) -> bytes:
    if isinstance(outcome, PathserveError):
        told = {"reason": outcome.reason, "detail": outcome.detail, "after_s": outcome.after_s}
        return _ERROR + json.dumps(told, ensure_ascii=False).encode(errors="replace")
    masks = tuple(replace(mask, png=base64.b64encode(mask.png)) for mask in outcome.masks)
    body: bytes = _ANSWER + codec.adapter(SegmentAnswer).dump_json(replace(outcome, masks=masks))
    return body


def outcome_of(body: bytes, ask: SegmentAsk) -> SegmentAnswer:
    """The answer to an ask. Raises the error that the child sent, `failed` where it may not say that one; ValueError
    where it is no answer, or another's."""
    kind, told = body[:1], body[1:]
    if kind == _ERROR:
        raise _error_of(codec.loads(_Told, told))
    answer = codec.loads(SegmentAnswer, told)
    given = answer.study, answer.series, answer.region, tuple(mask.prompt for mask in answer.masks)
    if given != (ask.study, ask.series, ask.region, ask.prompts):
        raise ValueError("an answer to something else")
    return replace(answer, masks=tuple(replace(mask, png=base64.b64decode(mask.png)) for mask in answer.masks))


def _error_of(told: _Told) -> PathserveError:
    kind = next((kind for most in _SAYABLE for kind in _kinds(most) if kind.reason == told.reason), None)
    if kind is None:
        log.error("a region failed by an error that is not told", reason=told.reason)
        return failed()
    error = kind(told.detail)
    error.after_s = told.after_s if 0.0 <= told.after_s <= _MOST_AFTER_S else 0.0
    return error


def _kinds(kind: type[PathserveError]) -> Iterator[type[PathserveError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
