"""The change of an analysis's state, for whoever holds its row; and what a worker's turn at an analysis is."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gateway.analyses.events import add_event
from gateway.analyses.outbox import Outbox
from gateway.analyses.schema import ANALYSES
from gateway.domain.analysis import Failure, State
from gateway.domain.order import Order
from gateway.operations.errors import NotFound


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


def locked(connection: sa.Connection, analysis_id: str) -> sa.Row[Any]:
    """The row of an analysis, locked until the transaction ends. Raises NotFound."""
    row = connection.execute(sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id).with_for_update()).first()
    if row is None:
        raise NotFound("There is no analysis with this id.")
    return row


def change(connection: sa.Connection, analysis_id: str, **values: Any) -> None:
    """Set columns of a row that the transaction has locked."""
    connection.execute(
        ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(**values, updated=datetime.now(UTC))
    )


def end(
    connection: sa.Connection, outbox: Outbox, row: sa.Row[Any], state: State, failure: Failure | None = None
) -> State:
    """End the analysis of a locked row; where it has ended already, nothing changes. Returns the state that holds.

    A requested cancellation wins over a failure.
    """
    if State(row.state).final:
        return State(row.state)
    if row.cancel_requested and state is State.FAILED:
        state, failure = State.CANCELLED, None
    change(
        connection,
        row.id,
        state=state.value,
        worker=None,
        failure_reason=failure.reason if failure else None,
        failure_detail=failure.detail if failure else None,
    )
    said = {"reason": failure.reason, "detail": failure.detail} if failure else {}
    add_event(connection, row.id, "state", {"state": state.value} | said)
    outbox.tell(connection, row.id, f"analysis.{state.value}")
    return state
