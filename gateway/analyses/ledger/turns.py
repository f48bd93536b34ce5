"""What a worker's turn at an analysis is, and how the queues name it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.transitions import end
from gateway.domain.analysis import Failure, State
from gateway.domain.order import Order


class Stage(StrEnum):
    """The parts of an analysis that are queued apart from each other, in order."""

    FETCH = "fetch"
    INFER = "infer"
    DELIVER = "deliver"


@dataclass(frozen=True, slots=True)
class Turn:
    """A worker's turn at one stage of an analysis.

    `attempt` fences: once another turn has begun, or the analysis has ended, nothing of this one is written any more.
    `alone`: nothing else may run in the worker meanwhile. `released`: digests of the differences between order and
    slides that a person has released.
    """

    analysis: str
    run: int
    stage: Stage
    tenant: str
    order: Order
    worker: str
    attempt: int
    alone: bool
    released: frozenset[str]


def workflow_id(analysis: str, run: int, stage: str) -> str:
    """The id of the durable workflow of a stage; an analysis id has no dots."""
    return f"{analysis}.{run}.{stage}"


def parsed(workflow: str) -> tuple[str, int, str]:
    """Analysis, run and stage of a workflow's id."""
    analysis, run, stage = workflow.rsplit(".", 2)
    return analysis, int(run), stage


def end_turn(
    connection: sa.Connection, outbox: Outbox, row: sa.Row[Any], state: State, failure: Failure | None = None
) -> State:
    """End the analysis of a locked row; one that has ended already stays as it is. Returns the state that holds.

    A requested cancellation wins over a failure.
    """
    if State(row.state).final:
        return State(row.state)
    if row.cancel_requested and state is State.FAILED:
        state, failure = State.CANCELLED, None
    end(connection, outbox, row.id, state, failure)
    return state
