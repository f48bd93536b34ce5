"""What a try of a delivery comes to."""

import random
from dataclasses import dataclass

from gateway.domain.identity import Difference
from gateway.operations.errors import PathserveError

MOST_PAUSE_S = 600.0
MOST_ASKED_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The target has it."""


@dataclass(frozen=True, slots=True)
class Again:
    """It did not succeed, and another try may; not before `after_s` seconds, where the target says so."""

    reason: str
    detail: str
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Dead:
    """No further try would succeed."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Held:
    """Order and slides do not agree: nothing leaves before a person has released what differs."""

    differences: tuple[Difference, ...]
    detail: str


Outcome = Delivered | Again | Dead | Held


def outcome_of(error: PathserveError) -> Again | Dead:
    """An error's outcome: where it may pass, the delivery is tried again."""
    if error.retryable:
        return Again(error.reason, error.detail, error.after_s)
    return Dead(error.reason, error.detail)


def pause_s(tries: int, delay_s: float, asked_s: float = 0.0) -> float:
    """The seconds before the next try, after so many: doubled each time up to 10 minutes, and half of it by chance, so
    that what failed together does not come back together. A target that asks for more gets it, up to 6 hours."""
    growing = min(MOST_PAUSE_S, delay_s * 2.0 ** min(tries - 1, 30))
    return max(growing * random.uniform(0.5, 1.0), min(asked_s, MOST_ASKED_S))  # noqa: S311 - no secret
