"""The work at analyses as the ledger knows it: what is due, and the turns that workers have at it.

The ledger is the truth: durable workflows are only the queue, and what they say decides nothing. Every transaction
locks the analysis's row first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.choices import Transaction
from gateway.analyses.ledger.events import add_event
from gateway.analyses.ledger.holding import hold
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.revisions import Revisions
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, EVENTS
from gateway.analyses.ledger.transitions import change, row_of
from gateway.analyses.ledger.turns import Stage, Turn, end_turn, parsed, workflow_id
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.domain.delivery import Channel, DeliveryState
from gateway.domain.identity import Difference
from gateway.domain.order import Order
from gateway.domain.revision import Revision
from gateway.operations import codec
from gateway.operations.audit import Action, AuditEvent, EventType, append
from gateway.operations.errors import Cancelled, NotFound, TurnLost

_WORKABLE = (State.ACCEPTED.value, State.RUNNING.value)
_STAGES = (Stage.FETCH.value, Stage.INFER.value)


@dataclass(frozen=True, slots=True)
class Due:
    """A stage of an analysis that waits to be worked on. `rank`: 0 is served first."""

    workflow: str
    stage: Stage
    rank: int


@dataclass(frozen=True, slots=True)
class Held:
    """How the ledger sees a turn that a worker believes to have."""

    attempt: int
    cancel_requested: bool


class Runs:
    """Turns over the table of analyses. Every method is one transaction of the ledger that it belongs to."""

    def __init__(self, read: Transaction, write: Transaction, outbox: Outbox) -> None:
        self._read = read
        self._write = write
        self._revisions = Revisions(read, write)
        self._outbox = outbox

    # What is due

    def begun(self) -> tuple[Due, ...]:
        """The analyses that have begun and that no worker has in hand now, the first to be served first."""
        return self._due(ANALYSES.c.state == State.RUNNING.value, limit=1000)

    def waiting(self, rank: int, limit: int) -> tuple[Due, ...]:
        """The oldest analyses of a rank that have not begun."""
        return self._due(ANALYSES.c.state == State.ACCEPTED.value, ANALYSES.c.rank == rank, limit=limit)

    def _due(self, *which: sa.ColumnElement[bool], limit: int) -> tuple[Due, ...]:
        query = (
            sa.select(ANALYSES.c.id, ANALYSES.c.run, ANALYSES.c.stage, ANALYSES.c.rank)
            .where(*which, ANALYSES.c.worker.is_(None), ANALYSES.c.stage.in_(_STAGES))
            .order_by(ANALYSES.c.rank, ANALYSES.c.number)
            .limit(limit)
        )
        with self._read() as connection:
            return tuple(
                Due(workflow_id(row.id, row.run, row.stage), Stage(row.stage), row.rank)
                for row in connection.execute(query)
            )

    def is_due(self, workflow: str) -> bool:
        """Whether the stage waits for a worker, or is in some worker's hands."""
        try:
            analysis_id, run, stage = parsed(workflow)
        except ValueError:
            return False
        query = sa.select(ANALYSES.c.number).where(
            ANALYSES.c.id == analysis_id,
            ANALYSES.c.run == run,
            ANALYSES.c.stage == stage,
            ANALYSES.c.state.in_(_WORKABLE),
        )
        with self._read() as connection:
            return connection.execute(query).first() is not None

    def is_alone(self, workflow: str) -> bool:
        """Whether the analysis is to be worked on with nothing beside it."""
        query = sa.select(ANALYSES.c.alone).where(ANALYSES.c.id == parsed(workflow)[0])
        with self._read() as connection:
            return bool(connection.execute(query).scalar())

    def held_by(self, worker: str) -> Mapping[str, Held]:
        """The turns of a worker: analysis id -> how the ledger sees it."""
        query = sa.select(ANALYSES.c.id, ANALYSES.c.attempts, ANALYSES.c.cancel_requested).where(
            # By the index on the state, however many have ended: this is asked several times a second.
            ANALYSES.c.state == State.RUNNING.value,
            ANALYSES.c.worker == worker,
        )
        with self._read() as connection:
            return {row.id: Held(row.attempts, bool(row.cancel_requested)) for row in connection.execute(query)}

    # Turns

    def begin(self, workflow: str, worker: str) -> Turn | None:
        """Begin a turn at a stage; None where that is not due, or another worker has it in hand.

        A cancellation that was asked for meanwhile is carried out.
        """
        analysis_id, run, stage = parsed(workflow)
        with self._write() as connection:
            try:
                row = row_of(connection, analysis_id, lock=True)
            except NotFound:
                return None
            if row.state not in _WORKABLE or (row.run, row.stage) != (run, stage) or row.worker not in (None, worker):
                return None
            if row.cancel_requested:
                end_turn(connection, self._outbox, row, State.CANCELLED)
                return None
            attempt = row.attempts + 1
            change(connection, row.id, state=State.RUNNING.value, attempts=attempt, worker=worker)
            if row.state == State.ACCEPTED.value:
                add_event(connection, row.id, "state", {"state": State.RUNNING.value})
            return Turn(
                analysis=row.id,
                run=run,
                stage=Stage(stage),
                tenant=row.tenant,
                order=codec.loads(Order, row.order_json),
                worker=worker,
                attempt=attempt,
                alone=bool(row.alone),
                released=frozenset(each["digest"] for each in row.released or ()),
            )

    def give_back(self, analysis_id: str, worker: str, attempt: int) -> None:
        """Let another turn begin: this one ends before its work is done. Nothing happens where it is over already."""
        with self._write() as connection:
            connection.execute(
                ANALYSES.update()
                .where(
                    ANALYSES.c.id == analysis_id,
                    ANALYSES.c.attempts == attempt,
                    ANALYSES.c.worker == worker,
                )
                .values(worker=None)
            )

    def note(self, turn: Turn, step: Step, status: str, **more: Any) -> None:
        """Tell of a step: `started`, `retry`. Raises TurnLost."""
        with self._write() as connection:
            _mine(connection, turn)
            add_event(connection, turn.analysis, "step", {"step": step.value, "status": status} | more)

    def progress(self, turn: Turn, progress: Progress) -> None:
        """Note how far a step is. Only the latest note is kept, so events do not grow with the slide. Raises TurnLost.

        What is done never counts down within a step.
        """
        with self._write() as connection:
            row = _mine(connection, turn)
            reached = progress.done
            if row.step == progress.step.value:
                reached = max(reached, row.done or 0)
            change(
                connection,
                row.id,
                step=progress.step.value,
                done=reached,
                total=progress.total,
                unit=progress.unit,
            )
            seq = add_event(connection, row.id, "progress", codec.dump(progress))
            connection.execute(
                EVENTS.delete().where(EVENTS.c.analysis_id == row.id, EVENTS.c.kind == "progress", EVENTS.c.seq < seq)
            )

    def finished_step(self, turn: Turn, step: Step, seconds: float) -> None:
        """Tell that a step has finished, once a run: what was taken over comes by here again. Raises TurnLost."""
        data = {"step": step.value, "status": "finished", "seconds": seconds, "run": turn.run}
        with self._write() as connection:
            _mine(connection, turn)
            told = connection.execute(
                sa.select(EVENTS.c.data).where(EVENTS.c.analysis_id == turn.analysis, EVENTS.c.kind == "step")
            ).scalars()
            key = (step.value, "finished", turn.run)
            if not any((each["step"], each["status"], each.get("run")) == key for each in told):
                add_event(connection, turn.analysis, "step", data)

    def advance(self, turn: Turn) -> None:
        """What is to be read is here: the analysis waits for inference. Raises TurnLost."""
        with self._write() as connection:
            row = _mine(connection, turn)
            change(connection, row.id, stage=Stage.INFER.value, worker=None)

    def reported(self, turn: Turn, report: Revision) -> None:
        """The report is on disk: its first revision, with its delivery. From here on nobody can cancel.

        Raises TurnLost; Cancelled where a cancellation came first.
        """
        with self._write() as connection:
            row = _mine(connection, turn)
            if row.cancel_requested:
                raise Cancelled("The analysis was cancelled.")
            self._revisions.add(connection, report)
            change(connection, row.id, stage=Stage.DELIVER.value, worker=None, delivering=True)
            self._outbox.add_stow(connection, row.id, report.number)
            append(
                connection,
                AuditEvent(
                    type=EventType.PATIENT_RECORD,
                    subtype="report-made",
                    action=Action.CREATE,
                    tenant=row.tenant,
                    actor="worker",
                    entity_kind="analysis",
                    entity=row.id,
                ),
            )

    def hold(self, turn: Turn, differences: Sequence[Difference]) -> None:
        """Hold the analysis until a person releases what does not agree. Raises TurnLost."""
        with self._write() as connection:
            row = _mine(connection, turn)
            if row.cancel_requested:
                end_turn(connection, self._outbox, row, State.CANCELLED)
                return
            hold(connection, row.id, differences)
            self._outbox.tell(connection, row.id, "analysis.held-identity")

    def finish(self, turn: Turn, state: State, failure: Failure | None = None) -> State:
        """End the analysis, and return the state that holds. Raises TurnLost.

        A requested cancellation wins over a failure.
        """
        with self._write() as connection:
            return end_turn(connection, self._outbox, _mine(connection, turn), state, failure)

    def complete_delivered(self, wait_s: float) -> tuple[str, ...]:
        """End the analyses whose report was stored in the archive, cannot be, or has been waited for long enough."""
        query = (
            sa.select(ANALYSES.c.id)
            .join(
                DELIVERIES,
                sa.and_(
                    DELIVERIES.c.analysis_id == ANALYSES.c.id,
                    DELIVERIES.c.channel == Channel.STOW.value,
                    DELIVERIES.c.revision == 1,
                ),
            )
            .where(
                ANALYSES.c.state == State.RUNNING.value,
                ANALYSES.c.stage == Stage.DELIVER.value,
                sa.or_(
                    DELIVERIES.c.state.in_((DeliveryState.DELIVERED.value, DeliveryState.DEAD.value)),
                    sa.and_(
                        DELIVERIES.c.state == DeliveryState.PENDING.value,
                        DELIVERIES.c.created < datetime.now(UTC) - timedelta(seconds=wait_s),
                    ),
                ),
            )
        )
        with self._read() as connection:
            waited = connection.execute(query).scalars().all()
        ended = []
        for analysis_id in waited:
            with self._write() as connection:
                row = row_of(connection, analysis_id, lock=True)
                if row.state == State.RUNNING.value and row.stage == Stage.DELIVER.value:
                    end_turn(connection, self._outbox, row, State.COMPLETED)
                    ended.append(analysis_id)
        return tuple(ended)


def _mine(connection: sa.Connection, turn: Turn) -> sa.Row[Any]:
    """The locked row of a turn. Raises TurnLost where the turn is another's now, or the analysis has ended."""
    row = row_of(connection, turn.analysis, lock=True)
    if (row.attempts, row.worker, row.state) != (turn.attempt, turn.worker, State.RUNNING.value):
        raise TurnLost("The analysis was taken over by another worker, or has ended meanwhile.")
    return row
