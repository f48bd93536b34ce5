"""The ledger: every accepted order, its state and its events, in our own database (DESIGN.md law 2).

State transitions are guarded in SQL (`UPDATE … WHERE state = …`), so an analysis ends exactly once whoever races.
The HTTP process reads and writes this and nothing else; the worker turns accepted rows into durable workflows.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.analyses.choices import ChoiceLog
from gateway.analyses.schema import ANALYSES, EVENTS, WORKERS
from gateway.domain.analysis import Analysis, Failure, Progress, State, Step
from gateway.domain.order import Order, Priority
from gateway.domain.principal import DEFAULT_TENANT
from gateway.domain.uids import new_analysis_id
from gateway.operations import codec
from gateway.operations.database import database_errors, open_database
from gateway.operations.errors import (
    Cancelled,
    Conflict,
    IdempotencyConflict,
    NotFound,
)

_RANK = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}
_FINAL = tuple(state.value for state in State if state.final)


@dataclass(frozen=True, slots=True)
class Record:
    """An analysis with what only the ledger knows of it. `number` orders by acceptance.

    `models`: name and version of each that it is pinned to, an ensemble's steps too; empty before it starts.
    """

    analysis: Analysis
    number: int
    cancel_requested: bool
    delivering: bool
    attempts: int
    progress: Progress | None
    models: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an analysis. `seq` counts from 1 without reuse; `data` is JSON-ready."""

    seq: int
    time: datetime
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's last heartbeat."""

    id: str
    beat: datetime
    parts: Mapping[str, bool]
    models: Sequence[Mapping[str, Any]]

    def alive(self, now: datetime, within_s: float = 10.0) -> bool:
        return (now - self.beat).total_seconds() <= within_s


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures for the metrics: analyses by state, and the oldest unfinished one's age in seconds by priority."""

    by_state: Mapping[str, int] = field(default_factory=dict)
    oldest_s: Mapping[str, float] = field(default_factory=dict)


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The ledger of one state folder. Thread-safe; every method is one transaction. `choices`: which models serve."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(ledger_writes=True)
        self.choices = ChoiceLog(self._read, self._write)

    @classmethod
    def open(cls, url: str, state: Path) -> "Ledger":
        """Open (create, migrate; one process at a time) the database. Raises InvalidSetting, StateError, DiskFull."""
        return cls(open_database(url, state))

    def close(self) -> None:
        self._engine.dispose()

    # Orders

    def accept(self, order: Order, idempotency_key: str | None = None) -> tuple[Record, bool]:
        """Write the order down; on disk when this returns. The flag is False where the key was known already.

        Raises IdempotencyConflict where the key was used with another order.
        """
        text = codec.dumps(order)
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._write() as connection:
            if idempotency_key is not None:
                row = connection.execute(
                    sa.select(ANALYSES).where(ANALYSES.c.idempotency_key == idempotency_key)
                ).first()
                if row is not None:
                    if row.body_sha256 != digest:
                        raise IdempotencyConflict(
                            "This Idempotency-Key was used with another order; use a new key for a new order."
                        )
                    return _record(row), False
            now = _now()
            analysis_id = new_analysis_id()
            row = connection.execute(
                ANALYSES.insert()
                .values(
                    id=analysis_id,
                    order_json=text,
                    protocol=order.protocol,
                    priority=order.priority.value,
                    rank=_RANK[order.priority],
                    state=State.ACCEPTED.value,
                    tenant=DEFAULT_TENANT,
                    caller="key:default",
                    accession=order.accession,
                    patient_id=order.patient.id,
                    patient_issuer=order.patient.issuer,
                    idempotency_key=idempotency_key,
                    body_sha256=digest,
                    created=now,
                    updated=now,
                    cancel_requested=False,
                    delivering=False,
                    attempts=0,
                )
                .returning(*ANALYSES.c)
            ).one()
            _add_event(connection, analysis_id, "state", {"state": State.ACCEPTED.value})
            return _record(row), True

    def get(self, analysis_id: str) -> Record:
        """One analysis. Raises NotFound."""
        with self._read() as connection:
            return _record(_row(connection, analysis_id))

    def page(self, limit: int, before: int | None = None) -> tuple[Record, ...]:
        """Up to `limit` analyses, newest first, of those accepted before number `before`."""
        query = sa.select(ANALYSES).order_by(ANALYSES.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(ANALYSES.c.number < before)
        with self._read() as connection:
            return tuple(_record(row) for row in connection.execute(query))

    def cancel(self, analysis_id: str) -> Record:
        """End an accepted analysis as cancelled; ask the worker to end a running one. Repeating it changes nothing.

        Raises NotFound, and Conflict where it has ended otherwise or its delivery has begun.
        """
        with self._write() as connection:
            row = _row(connection, analysis_id)
            state = State(row.state)
            if state in (State.ACCEPTED, State.HELD_IDENTITY):
                _end(connection, analysis_id, state, State.CANCELLED, None)
            elif state is State.RUNNING and not row.delivering:
                connection.execute(
                    ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(cancel_requested=True, updated=_now())
                )
            elif state is State.RUNNING:
                raise Conflict("The report is being delivered; the analysis can no longer be cancelled.")
            elif state is not State.CANCELLED:
                raise Conflict(f"The analysis has already ended ({state.value}); there is nothing to cancel.")
            return _record(_row(connection, analysis_id))

    # The worker's side

    def claim(self) -> str | None:
        """Set the next accepted analysis (STAT, URGENT, ROUTINE, then age) to running; its id, or None."""
        waiting = (
            sa.select(ANALYSES.c.id)
            .where(ANALYSES.c.state == State.ACCEPTED.value)
            .order_by(ANALYSES.c.rank, ANALYSES.c.number)
            .limit(1)
        )
        with self._read() as connection:
            if connection.execute(waiting).first() is None:
                return None
        with self._write() as connection:
            analysis_id: str | None = connection.execute(waiting).scalar()
            if analysis_id is None:
                return None
            moved = connection.execute(
                ANALYSES.update()
                .where(ANALYSES.c.id == analysis_id, ANALYSES.c.state == State.ACCEPTED.value)
                .values(state=State.RUNNING.value, updated=_now())
            ).rowcount
            if moved != 1:
                return None
            _add_event(connection, analysis_id, "state", {"state": State.RUNNING.value})
            return analysis_id

    def running(self) -> dict[str, bool]:
        """The running analyses, oldest first: id -> cancellation requested."""
        query = (
            sa.select(ANALYSES.c.id, ANALYSES.c.cancel_requested)
            .where(ANALYSES.c.state == State.RUNNING.value)
            .order_by(ANALYSES.c.number)
        )
        with self._read() as connection:
            return {row.id: bool(row.cancel_requested) for row in connection.execute(query)}

    def pin(self, analysis_id: str, models: Mapping[str, Any]) -> None:
        """Note which exact models an analysis uses, as `Pins.to_json` gives them."""
        with self._write() as connection:
            connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(models=dict(models)))

    def pinned(self) -> tuple[Mapping[str, Any], ...]:
        """What `pin` noted of every analysis that has begun and not ended."""
        query = sa.select(ANALYSES.c.models).where(
            ANALYSES.c.state.not_in((State.ACCEPTED.value, *_FINAL)), ANALYSES.c.models.is_not(None)
        )
        with self._read() as connection:
            return tuple(connection.execute(query).scalars())

    def count_attempt(self, analysis_id: str) -> int:
        """Count one more begun run and return the count since the analysis last moved forward."""
        with self._write() as connection:
            return int(
                connection.execute(
                    ANALYSES.update()
                    .where(ANALYSES.c.id == analysis_id)
                    .values(attempts=ANALYSES.c.attempts + 1)
                    .returning(ANALYSES.c.attempts)
                ).scalar_one()
            )

    def forgive_attempt(self, analysis_id: str) -> None:
        """Take one begun run back: it was stopped in good order, the analysis is not to blame."""
        with self._write() as connection:
            connection.execute(
                ANALYSES.update()
                .where(ANALYSES.c.id == analysis_id, ANALYSES.c.attempts > 0)
                .values(attempts=ANALYSES.c.attempts - 1)
            )

    def record_progress(self, analysis_id: str, progress: Progress) -> None:
        """Note how far a step is. Only the latest note of each step is kept, so events do not grow with the slide."""
        with self._write() as connection:
            row = _row(connection, analysis_id)
            if row.state != State.RUNNING.value:
                return
            same = row.step == progress.step.value
            reached = max(progress.done, row.done or 0) if same else progress.done
            forward = not same or reached > (row.done or 0)
            connection.execute(
                ANALYSES.update()
                .where(ANALYSES.c.id == analysis_id)
                .values(
                    step=progress.step.value,
                    done=reached,
                    total=progress.total,
                    unit=progress.unit,
                    updated=_now(),
                    attempts=1 if forward else row.attempts,
                )
            )
            seq = _add_event(connection, analysis_id, "progress", codec.dump(progress))
            connection.execute(
                EVENTS.delete().where(
                    EVENTS.c.analysis_id == analysis_id, EVENTS.c.kind == "progress", EVENTS.c.seq < seq
                )
            )

    def record_event(self, analysis_id: str, kind: str, data: Mapping[str, Any]) -> None:
        with self._write() as connection:
            _add_event(connection, analysis_id, kind, data)

    def record_finished(self, analysis_id: str, step: Step, seconds: float) -> None:
        """Note that a step has finished, once: a recovered run comes by here again."""
        data = {"step": step.value, "status": "finished", "seconds": seconds}
        steps = sa.select(EVENTS.c.data).where(EVENTS.c.analysis_id == analysis_id, EVENTS.c.kind == "step")
        with self._write() as connection:
            noted = connection.execute(steps).scalars()
            if not any((each["step"], each["status"]) == (step.value, "finished") for each in noted):
                _add_event(connection, analysis_id, "step", data)

    def begin_delivery(self, analysis_id: str) -> None:
        """Pass the point of no return: from here on the analysis cannot be cancelled. Repeating it is allowed.

        Raises Cancelled where a cancellation came first.
        """
        with self._write() as connection:
            moved = connection.execute(
                ANALYSES.update()
                .where(
                    ANALYSES.c.id == analysis_id,
                    ANALYSES.c.state == State.RUNNING.value,
                    ANALYSES.c.cancel_requested.is_(False),
                )
                .values(delivering=True, updated=_now())
            ).rowcount
        if moved != 1:
            raise Cancelled("The analysis was cancelled.")

    def finish(self, analysis_id: str, state: State, failure: Failure | None = None) -> State:
        """End a running analysis once and return the state that holds afterwards.

        A requested cancellation wins over a failure.
        """
        with self._write() as connection:
            row = _row(connection, analysis_id)
            if row.state == State.RUNNING.value:
                if row.cancel_requested and state is State.FAILED:
                    state, failure = State.CANCELLED, None
                _end(connection, analysis_id, State.RUNNING, state, failure)
                return state
            return State(row.state)

    # Events, heartbeats, figures

    def events(self, analysis_id: str, after: int = 0, limit: int = 500) -> tuple[Event, ...]:
        query = (
            sa.select(EVENTS)
            .where(EVENTS.c.analysis_id == analysis_id, EVENTS.c.seq > after)
            .order_by(EVENTS.c.seq)
            .limit(limit)
        )
        with self._read() as connection:
            return tuple(Event(row.seq, row.time, row.kind, row.data) for row in connection.execute(query))

    def beat(
        self, worker_id: str, started: datetime, parts: Mapping[str, bool], models: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a worker's heartbeat down."""
        values = {"beat": _now(), "started": started, "parts": dict(parts), "models": [dict(each) for each in models]}
        with self._write() as connection:
            updated = connection.execute(WORKERS.update().where(WORKERS.c.id == worker_id).values(**values)).rowcount
            if updated == 0:
                connection.execute(WORKERS.insert().values(id=worker_id, **values))

    def leave(self, worker_id: str) -> None:
        """Take a worker's heartbeat away: it ended in good order."""
        with self._write() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.id == worker_id))

    def worker(self) -> WorkerStatus | None:
        """The worker that beat last."""
        with self._read() as connection:
            row = connection.execute(sa.select(WORKERS).order_by(WORKERS.c.beat.desc()).limit(1)).first()
        return None if row is None else WorkerStatus(row.id, row.beat, row.parts, row.models)

    def statistics(self) -> Statistics:
        """Analyses by state, and the age of the oldest unfinished one by priority."""
        counts = sa.select(ANALYSES.c.state, sa.func.count()).group_by(ANALYSES.c.state)
        oldest = (
            sa.select(ANALYSES.c.priority, sa.func.min(ANALYSES.c.created).label("created"))
            .where(ANALYSES.c.state.not_in(_FINAL))
            .group_by(ANALYSES.c.priority)
        )
        now = _now()
        with self._read() as connection:
            return Statistics(
                by_state={row[0]: row[1] for row in connection.execute(counts)},
                oldest_s={row.priority: (now - row.created).total_seconds() for row in connection.execute(oldest)},
            )

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with database_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with database_errors(), self._writer.begin() as connection:
            yield connection


def _row(connection: sa.Connection, analysis_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id)).first()
    if row is None:
        raise NotFound("There is no analysis with this id.")
    return row


def _end(connection: sa.Connection, analysis_id: str, before: State, after: State, failure: Failure | None) -> None:
    moved = connection.execute(
        ANALYSES.update()
        .where(ANALYSES.c.id == analysis_id, ANALYSES.c.state == before.value)
        .values(
            state=after.value,
            updated=_now(),
            failure_reason=failure.reason if failure else None,
            failure_detail=failure.detail if failure else None,
        )
    ).rowcount
    if moved == 1:
        data = {"state": after.value} | ({"reason": failure.reason, "detail": failure.detail} if failure else {})
        _add_event(connection, analysis_id, "state", data)


def _add_event(connection: sa.Connection, analysis_id: str, kind: str, data: Mapping[str, Any]) -> int:
    last = connection.execute(
        sa.select(sa.func.coalesce(sa.func.max(EVENTS.c.seq), 0)).where(EVENTS.c.analysis_id == analysis_id)
    ).scalar_one()
    connection.execute(
        EVENTS.insert().values(analysis_id=analysis_id, seq=last + 1, time=_now(), kind=kind, data=dict(data))
    )
    return int(last) + 1


def _record(row: sa.Row[Any]) -> Record:
    return Record(
        analysis=Analysis(
            id=row.id,
            order=codec.loads(Order, row.order_json),
            state=State(row.state),
            created=row.created,
            updated=row.updated,
            failure=Failure(row.failure_reason, row.failure_detail) if row.failure_reason else None,
        ),
        number=row.number,
        cancel_requested=bool(row.cancel_requested),
        delivering=bool(row.delivering),
        attempts=row.attempts,
        progress=Progress(Step(row.step), row.done, row.total, row.unit) if row.step else None,
        models=tuple((pin["model"], pin["version"]) for pin in row.models["pins"]) if row.models else (),
    )
