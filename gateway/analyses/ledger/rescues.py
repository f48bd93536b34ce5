"""What a worker left behind is taken over, and what is out of time is ended: for the one worker that watches."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.choices import Transaction
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, WORKERS
from gateway.analyses.ledger.transitions import change, row_of
from gateway.analyses.ledger.turns import Stage, end_turn
from gateway.domain.analysis import Failure, State
from gateway.domain.delivery import DeliveryState
from gateway.operations.errors import DeadlineExceeded, KillsWorker

_WORKABLE = (State.ACCEPTED.value, State.RUNNING.value)
_AT_WORK = ANALYSES.c.state == State.RUNNING.value
"""What every row with a worker fulfils: found by an index, however many have ended."""

MAX_DEATHS = 3
"""After so many deaths that count against it an analysis is given up."""


@dataclass(frozen=True, slots=True)
class Rescue:
    """What became of an analysis whose worker died: `state` is running where another one is to take it over."""

    analysis: str
    state: State
    counted: bool


class Rescues:
    """Over the table of analyses. Every analysis is one transaction of the ledger that this belongs to."""

    def __init__(self, read: Transaction, write: Transaction, outbox: Outbox) -> None:
        self._read = read
        self._write = write
        self._outbox = outbox

    def take_over(self, worker: str) -> tuple[Rescue, ...]:
        """Free what a dead worker had in hand; what has killed its worker too often ends as `kills-worker`.

        A death counts against an analysis only where it ran alone and had got no further since the death before.
        """
        return tuple(
            rescue
            for analysis_id in self._ids(_AT_WORK, ANALYSES.c.worker == worker)
            if (rescue := self._rescue(analysis_id, worker)) is not None
        )

    def _rescue(self, analysis_id: str, worker: str) -> Rescue | None:
        with self._write() as connection:
            row = row_of(connection, analysis_id, lock=True)
            if row.worker != worker:
                return None
            if row.cancel_requested:
                return Rescue(row.id, end_turn(connection, self._outbox, row, State.CANCELLED), counted=False)
            mark = f"{row.run}:{row.step}:{row.done}"
            counted = bool(row.alone) and row.mark == mark
            deaths = row.deaths + counted
            change(connection, row.id, worker=None, alone=True, mark=mark, deaths=deaths)
            if deaths < MAX_DEATHS:
                return Rescue(row.id, State(row.state), counted)
            failure = Failure(
                KillsWorker.reason,
                f"The worker process died {deaths} times on this analysis, with nothing beside it, without getting any "
                "further; see the server's log, and order it again once the cause is removed.",
            )
            return Rescue(row.id, end_turn(connection, self._outbox, row, State.FAILED, failure), counted)

    def free_left(self) -> None:
        """Free what belongs to workers that have left and could not give it back; nobody has died of it."""
        workers = sa.select(WORKERS.c.id)
        left = self._ids(_AT_WORK, ANALYSES.c.worker.is_not(None), ANALYSES.c.worker.not_in(workers))
        for analysis_id in left:
            with self._write() as connection:
                if (worker := row_of(connection, analysis_id, lock=True).worker) is not None:
                    gone = sa.select(WORKERS.c.id).where(WORKERS.c.id == worker)
                    if connection.execute(gone).first() is None:
                        change(connection, analysis_id, worker=None)
        trying = sa.select(DELIVERIES.c.worker).where(DELIVERIES.c.state == DeliveryState.PENDING.value).distinct()
        with self._read() as connection:
            leavers = connection.execute(
                trying.where(DELIVERIES.c.worker.is_not(None), DELIVERIES.c.worker.not_in(workers))
            ).scalars()
            gone_senders = tuple(leavers)
        for worker in gone_senders:
            self._outbox.free(worker)

    def expire(self) -> tuple[str, ...]:
        """End what is out of time; what waits for a person, or only for its delivery, is not."""
        over = (
            ANALYSES.c.state.in_(_WORKABLE),
            ANALYSES.c.stage != Stage.DELIVER.value,
            ANALYSES.c.deadline < datetime.now(UTC),
        )
        failure = Failure(
            DeadlineExceeded.reason,
            "The analysis was not done in time; see the server's log for what held it up, and retry it.",
        )
        ended = []
        for analysis_id in self._ids(*over):
            with self._write() as connection:
                query = sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id, *over).with_for_update()
                # It may have ended meanwhile, or have got a new deadline.
                if (row := connection.execute(query).first()) is not None:
                    end_turn(connection, self._outbox, row, State.FAILED, failure)
                    ended.append(analysis_id)
        return tuple(ended)

    def shift(self, seconds: float) -> None:
        """The wall clock jumped by so much: move what is to happen by it."""
        # What is held gets its time when it is released (`transitions.release`).
        for analysis_id in self._ids(ANALYSES.c.state.in_(_WORKABLE), ANALYSES.c.deadline.is_not(None)):
            with self._write() as connection:
                row = row_of(connection, analysis_id, lock=True)
                if row.state in _WORKABLE and row.deadline is not None:
                    change(connection, analysis_id, deadline=row.deadline + timedelta(seconds=seconds))

    def _ids(self, *which: sa.ColumnElement[bool]) -> tuple[str, ...]:
        query: sa.Select[Any] = sa.select(ANALYSES.c.id).where(*which).order_by(ANALYSES.c.number)
        with self._read() as connection:
            return tuple(connection.execute(query).scalars())
