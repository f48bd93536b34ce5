"""The ledger: every accepted order, its state and its events, in our own database (DESIGN.md law 2).

Servers and workers read and write this and nothing else of each other; what an analysis is, is what its row says.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger import transitions
from gateway.analyses.ledger.accepting import Acceptance, Asked
from gateway.analyses.ledger.choices import ChoiceLog
from gateway.analyses.ledger.events import Event, events_of, last_events
from gateway.analyses.ledger.feedback import FeedbackLog
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.queries import AnalysisQuery, Page, page
from gateway.analyses.ledger.records import Record, record_of
from gateway.analyses.ledger.rescues import Rescues
from gateway.analyses.ledger.revisions import Revisions
from gateway.analyses.ledger.runs import Runs
from gateway.analyses.ledger.schema import ANALYSES, STUDIES
from gateway.analyses.ledger.transitions import FINAL, now, row_of
from gateway.analyses.ledger.workers import Workers, WorkerStatus
from gateway.domain.analysis import State
from gateway.domain.order import Order, Priority
from gateway.domain.principal import Principal
from gateway.operations import codec
from gateway.operations.audit.trail import AuditTrail
from gateway.operations.database import database_errors, open_database
from gateway.operations.errors import PathserveError, WrongTenant

__all__ = ["AnalysisQuery", "Event", "Ledger", "Page", "Record", "Statistics", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures for the metrics: analyses by state, and the oldest unfinished one's age in seconds by priority."""

    by_state: Mapping[str, int] = field(default_factory=dict)
    oldest_s: Mapping[str, float] = field(default_factory=dict)


class Ledger:
    """The ledger of one database. Thread-safe; every method is one transaction, or shares one with its like.

    Its parts: `workers`, `runs` (their turns), `choices` (which models serve), `revisions`, `feedback`, `outbox`, and
    `trail`, the audit's.

    Whoever calls names itself (`by`): it works in its own tenant only, and what it changes is audited in the same
    transaction. All methods raise StateError (DatabaseUnavailable, StateBusy, DiskFull) where the database cannot be
    used; those of one analysis raise NotFound, and WrongTenant where it is another tenant's.
    """

    def __init__(self, engine: sa.Engine, webhooks: Sequence[str] = ()) -> None:
        self._engine = engine
        self._writer = engine.execution_options(ledger_writes=True)
        # Each statement sees what is committed in either case; without a transaction around it, it costs one round trip
        # in place of three.
        postgresql = engine.dialect.name == "postgresql"
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT") if postgresql else engine
        self._acceptance = Acceptance(self._write)
        self.workers = Workers(self._read, self._write)
        self.choices = ChoiceLog(self._read, self._write)
        self.revisions = Revisions(self._read, self._write)
        self.feedback = FeedbackLog(self._read, self._write)
        self.outbox = Outbox(self._read, self._write, webhooks)
        self.runs = Runs(self._read, self._write, self.outbox)
        self.rescues = Rescues(self._read, self._write, self.outbox)
        self.trail = AuditTrail(self._read, self._write)
        self.audit = self.trail.append

    @classmethod
    def open(cls, url: str, state: Path, webhooks: Sequence[str] = ()) -> "Ledger":
        """Open (create, migrate; one process at a time) the database. `webhooks`: who is told what becomes of analyses.

        Raises InvalidSetting, StateError, DiskFull.
        """
        return cls(open_database(url, state), webhooks)

    @property
    def engine(self) -> sa.Engine:
        """The database, for the tables that others keep in it."""
        return self._engine

    def close(self) -> None:
        self._engine.dispose()

    # Orders

    def accept(
        self,
        order: Order,
        by: Principal,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Record, bool]:
        """Write the order down; on disk when this returns. The flag is False where the key was known already.

        It is to end within `deadline_s` seconds from now. Raises IdempotencyConflict where the key was used with
        another order.
        """
        [outcome] = self._acceptance([Asked(order, codec.dumps(order), by, idempotency_key, deadline_s)])
        if isinstance(outcome, PathserveError):
            raise outcome
        return outcome

    def accept_batch(
        self, orders: Sequence[tuple[Order, str | None]], by: Principal, deadline_s: float | None = None
    ) -> list[Record | PathserveError]:
        """Write orders down, each with its key, in one transaction; each is accepted or refused on its own merits."""
        asked = [Asked(order, codec.dumps(order), by, key, deadline_s) for order, key in orders]
        return [outcome if isinstance(outcome, PathserveError) else outcome[0] for outcome in self._acceptance(asked)]

    def get(self, analysis_id: str, tenant: str | None = None) -> Record:
        """One analysis; of this tenant, where one is given. Raises NotFound, WrongTenant."""
        with self._read() as connection:
            row = row_of(connection, analysis_id)
        if tenant is not None and row.tenant != tenant:
            raise WrongTenant("The analysis belongs to another tenant.")
        return record_of(row)

    def page(self, tenant: str, query: AnalysisQuery, limit: int, cursor: str | None = None) -> Page:
        """Up to `limit` of a tenant's analyses, newest first. Raises InvalidInput for a cursor of another query."""
        with self._read() as connection:
            return page(connection, tenant, query, limit, cursor)

    def tenants_of(self, study: str, states: Collection[State]) -> frozenset[str]:
        """The tenants that have analyses of a study in one of these states."""
        query = sa.select(ANALYSES.c.tenant).distinct().join(STUDIES, STUDIES.c.analysis_id == ANALYSES.c.id)
        chosen = query.where(STUDIES.c.study == study, ANALYSES.c.state.in_([state.value for state in states]))
        with self._read() as connection:
            return frozenset(connection.execute(chosen).scalars())

    def events(self, analysis_id: str, after: int = 0, limit: int = 500) -> tuple[Event, ...]:
        """Up to `limit` events of an analysis after the one with number `after`."""
        with self._read() as connection:
            return events_of(connection, analysis_id, after, limit)

    def last_events(self, analysis_ids: Collection[str]) -> dict[str, int]:
        """The number of the last event of each analysis."""
        with self._read() as connection:
            return last_events(connection, analysis_ids)

    def cancel(self, analysis_id: str, by: Principal, if_match: str | None = None) -> Record:
        """End a waiting analysis as cancelled; ask its worker to end a running one. Repeating it changes nothing.

        Raises PreconditionFailed, and Conflict where it has ended otherwise or its delivery has begun.
        """
        with self._write() as connection:
            transitions.cancel(connection, self.outbox, analysis_id, by, if_match)
            return record_of(row_of(connection, analysis_id))

    def retry(
        self, analysis_id: str, by: Principal, if_match: str | None = None, deadline_s: float | None = None
    ) -> Record:
        """Begin a failed or cancelled analysis anew, to end within `deadline_s` seconds from now.

        Raises PreconditionFailed, Conflict.
        """
        with self._write() as connection:
            transitions.retry(connection, analysis_id, by, if_match, deadline_s)
            return record_of(row_of(connection, analysis_id))

    def prioritise(self, analysis_id: str, priority: Priority, by: Principal, if_match: str | None = None) -> Record:
        """Change the priority of an analysis that has not ended. Raises PreconditionFailed, Conflict."""
        with self._write() as connection:
            transitions.prioritise(connection, analysis_id, priority, by, if_match)
            return record_of(row_of(connection, analysis_id))

    def release(self, analysis_id: str, reason: str, by: Principal) -> Record:
        """Let a held analysis go on, in spite of exactly the differences that it is held for. Raises Conflict."""
        with self._write() as connection:
            transitions.release(connection, self.outbox, analysis_id, reason, by)
            return record_of(row_of(connection, analysis_id))

    def released(self, analysis_id: str) -> frozenset[str]:
        """The digests of the differences that persons have released of an analysis."""
        with self._read() as connection:
            return frozenset(each["digest"] for each in row_of(connection, analysis_id).released or ())

    # The models in use

    def pin(self, analysis_id: str, models: Mapping[str, Any]) -> None:
        """Note which exact models an analysis uses, as `Pins.to_json` gives them."""
        with self._write() as connection:
            connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(models=dict(models)))

    def pinned(self) -> tuple[Mapping[str, Any], ...]:
        """What `pin` noted of every analysis that has begun and not ended."""
        query = sa.select(ANALYSES.c.models).where(
            ANALYSES.c.state.not_in((State.ACCEPTED.value, *FINAL)), ANALYSES.c.models.is_not(None)
        )
        with self._read() as connection:
            return tuple(connection.execute(query).scalars())

    def pins(self, analysis_id: str) -> Mapping[str, Any] | None:
        """What `pin` noted of one analysis; None before it starts."""
        with self._read() as connection:
            noted: Mapping[str, Any] | None = row_of(connection, analysis_id).models
            return noted

    # Figures

    def statistics(self) -> Statistics:
        """Analyses by state, and the age of the oldest unfinished one by priority."""
        counts = sa.select(ANALYSES.c.state, sa.func.count()).group_by(ANALYSES.c.state)
        oldest = (
            sa.select(ANALYSES.c.priority, sa.func.min(ANALYSES.c.created).label("created"))
            .where(ANALYSES.c.state.not_in(FINAL))
            .group_by(ANALYSES.c.priority)
        )
        time = now()
        with self._read() as connection:
            return Statistics(
                by_state={row[0]: row[1] for row in connection.execute(counts)},
                oldest_s={row.priority: (time - row.created).total_seconds() for row in connection.execute(oldest)},
            )

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with database_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with database_errors(), self._writer.begin() as connection:
            yield connection
