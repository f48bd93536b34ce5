"""An analysis: one accepted order on its way to one report."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gateway.domain.order import Order


class State(StrEnum):
    """States of an analysis; the last three are final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    HELD_IDENTITY = "held-identity"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


class Step(StrEnum):
    """The durable steps of an analysis, in order."""

    FETCH = "fetch"
    INFER = "infer"
    REPORT = "report"
    DELIVER = "deliver"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an analysis ended `failed`: the error's stable reason and a sentence that says what to do."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one step: `done` of `total` units (bytes, tiles, objects; total None = not known yet)."""

    step: Step
    done: int
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis as the ledger knows it. Times are UTC."""

    id: str
    order: Order
    state: State
    created: datetime
    updated: datetime
    failure: Failure | None = None
