"""What a reader says of a report; kept as training signal."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gateway.domain.codes import Code


class Verdict(StrEnum):
    """Whether the reader would have said the same: yes, with changes, no."""

    AGREE = "agree"
    AMEND = "amend"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Feedback:
    """A verdict on the newest revision. `finding`: what the reader sees instead; `series`: the slide, or None."""

    verdict: Verdict
    finding: Code | None = None
    series: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """Feedback as it was written down. `by` is the principal's subject, `time` is UTC."""

    number: int
    analysis_id: str
    revision: int
    feedback: Feedback
    by: str
    time: datetime
