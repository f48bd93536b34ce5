"""What is sent about an analysis besides its order: strict, bounded, nothing unknown; and its way into the domain."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from gateway.analyses.order_form import EXAMPLE as ORDER
from gateway.analyses.order_form import CodeBody, Uid
from gateway.domain.feedback import Feedback, Verdict
from gateway.domain.order import Priority
from gateway.domain.report import Amendment

BATCH_LIMIT = 100
"""Most orders of one batch."""

# Text that people write: lines and tabs are allowed, other control characters are not.
_LINES = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024, pattern=_LINES)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000, pattern=_LINES)]
Comment = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024, pattern=_LINES)]
Remark = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000, pattern=_LINES)]


def _number(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is the integer 2; "2" and true are none."""
    if isinstance(value, str | bool):
        raise ValueError("must be an integer")
    return value


RevisionNumber = Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_number)]
IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]

_CARCINOMA: dict[str, Any] = {"code": "35917007", "scheme": "SCT", "display": "Adenocarcinoma"}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchItem(_Body):
    """One order of a batch. `order` is what `POST /v1/analyses` takes; each is looked at on its own."""

    order: dict[str, Any]
    idempotency_key: IdempotencyKey | None = None


class BatchBody(_Body):
    """Several orders at once."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"orders": [{"order": ORDER, "idempotency_key": "S26-004711-1"}]}]},
    )

    orders: list[BatchItem] = Field(min_length=1, max_length=BATCH_LIMIT)


class PriorityBody(_Body):
    """What of an analysis can be changed: its priority."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"priority": Priority.STAT.value}]}
    )

    priority: Priority


class ReleaseBody(_Body):
    """Why a held analysis may go on although its order and its slides differ."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"reason": "The container was relabelled; checked against the request form."}]},
    )

    reason: Reason


class SignBody(_Body):
    """A signature under the report. `revision`: the one that was read; refused (412) where there is a newer one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"revision": 1, "comment": "Agrees with the microscope."}]},
    )

    revision: RevisionNumber | None = None
    comment: Comment | None = None


class AmendBody(_Body):
    """A correction of the report: why, what is right instead, and the same as coded findings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "revision": 2,
                    "reason": "A second reading",
                    "text": "The area read as stroma is adenocarcinoma.",
                    "findings": [_CARCINOMA],
                }
            ]
        },
    )

    reason: Reason
    text: Text
    findings: list[CodeBody] = Field(default_factory=list, max_length=32)
    revision: RevisionNumber | None = None

    def domain(self) -> Amendment:
        return Amendment(self.reason, self.text, tuple(each.domain() for each in self.findings))


class FeedbackBody(_Body):
    """What a reader says of the newest report: agrees, would change it, rejects it; kept as training signal."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"verdict": Verdict.AMEND.value, "finding": _CARCINOMA, "comment": "Missed at the margin."}]
        },
    )

    verdict: Verdict
    finding: CodeBody | None = None
    series: Uid | None = None
    comment: Remark | None = None

    def domain(self) -> Feedback:
        return Feedback(self.verdict, self.finding.domain() if self.finding else None, self.series, self.comment)
