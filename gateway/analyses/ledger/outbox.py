"""The outbox: what is to leave the house, each a row that is written in the transaction of what it tells.

A row's id never changes, whatever is tried: the archive knows its objects by UID, a webhook's target knows the id
itself. So a try may be repeated at any time, and what counts is only which rows are settled. A try is fenced as a turn
of an analysis is: every write of it names the worker and the try.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.delivery_rows import (
    change,
    change_fenced,
    delivery_of,
    locked,
    parts_of,
    record_of,
    workflow_of,
)
from gateway.analyses.ledger.events import add_event
from gateway.analyses.ledger.holding import hold
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, EVENTS, REVISIONS
from gateway.domain.analysis import Progress, State, Step
from gateway.domain.delivery import Channel, Delivery, DeliveryState, target_name
from gateway.domain.identity import Difference
from gateway.domain.order import Priority
from gateway.domain.principal import Principal, PrincipalKind
from gateway.operations import audit, codec
from gateway.operations.audit import EventType
from gateway.operations.errors import Conflict, IdentityMismatch, KillsWorker, NotFound

Transaction = Callable[[], AbstractContextManager[sa.Connection]]

ARCHIVE = "archive"
"""The target of every STOW."""
REPORT = "report"
"""What a STOW brings."""


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to be tried now. `workflow` names the try; `rank` is that of its analysis (0 first), a webhook's above
    every report's: targets that do not answer keep no report waiting."""

    id: str
    workflow: str
    rank: int


class Outbox:
    """The table of deliveries, over the transactions of the ledger that it belongs to.

    `webhooks` are the addresses that are told how analyses end; rows hold their names.
    """

    def __init__(self, read: Transaction, write: Transaction, webhooks: Sequence[str] = ()) -> None:
        self._read = read
        self._write = write
        self._targets = tuple(dict.fromkeys(map(target_name, webhooks)))

    # Within the transaction of what is told

    def add_stow(self, connection: sa.Connection, analysis_id: str, revision: int) -> str:
        """The objects of a revision are to be stored in the archive; the delivery's id.

        Of an analysis that is tried again the revision's delivery may be there already: it goes on, once more.
        """
        known = (
            DELIVERIES.c.analysis_id == analysis_id,
            DELIVERIES.c.channel == Channel.STOW.value,
            DELIVERIES.c.revision == revision,
        )
        found = connection.execute(DELIVERIES.update().where(*known).values(**_anew()).returning(DELIVERIES.c.id))
        delivery_id: str | None = found.scalar()
        return delivery_id or self._add(connection, analysis_id, Channel.STOW, ARCHIVE, REPORT, revision)

    def tell(self, connection: sa.Connection, analysis_id: str, event: str, revision: int | None = None) -> None:
        """Tell every target what has just become of the analysis; its row says so already.

        `event` is `analysis.completed`, `.failed`, `.cancelled`, `.held-identity`, `.released`, `report.signed`,
        `.amended`, `delivery.dead`. `revision` is the report's, by default the latest there is.
        """
        if not self._targets:
            return
        row = connection.execute(
            sa.select(ANALYSES.c.state, ANALYSES.c.failure_reason).where(ANALYSES.c.id == analysis_id)
        ).one()
        if revision is None:
            latest = sa.select(sa.func.max(REVISIONS.c.number)).where(REVISIONS.c.analysis_id == analysis_id)
            revision = connection.execute(latest).scalar()
        analysis = f"/v1/analyses/{analysis_id}"
        links = {"analysis": analysis, "deliveries": f"{analysis}/deliveries"}
        if revision is not None:
            links["report"] = f"{analysis}/report?revision={revision}"
        data = {"analysis": analysis_id, "state": row.state, "revision": revision, "links": links}
        if row.failure_reason:
            data["reason"] = row.failure_reason
        body = {"type": event, "timestamp": _now().isoformat(), "data": data}
        for target in self._targets:
            self._add(connection, analysis_id, Channel.WEBHOOK, target, event, revision, body)

    def release(self, connection: sa.Connection, analysis_id: str) -> None:
        """What was held of the analysis goes on."""
        connection.execute(
            DELIVERIES.update()
            .where(DELIVERIES.c.analysis_id == analysis_id, DELIVERIES.c.state == DeliveryState.HELD.value)
            .values(state=DeliveryState.PENDING.value, next=_now(), reason=None, detail=None)
        )

    def withdraw(self, connection: sa.Connection, analysis_id: str) -> bool:
        """Take back what is held of an analysis that is cancelled; False where some of it has left already."""
        held = (DELIVERIES.c.analysis_id == analysis_id, DELIVERIES.c.state == DeliveryState.HELD.value)
        if connection.execute(sa.select(DELIVERIES.c.id).where(*held, DELIVERIES.c.done > 0)).first() is not None:
            return False
        connection.execute(DELIVERIES.delete().where(*held))
        return True

    def _add(
        self,
        connection: sa.Connection,
        analysis_id: str,
        channel: Channel,
        target: str,
        event: str,
        revision: int | None,
        body: Mapping[str, Any] | None = None,
    ) -> str:
        delivery_id = str(uuid.uuid4())
        tenant = sa.select(ANALYSES.c.tenant).where(ANALYSES.c.id == analysis_id).scalar_subquery()
        now = _now()
        connection.execute(
            DELIVERIES.insert().values(
                id=delivery_id,
                tenant=tenant,
                analysis_id=analysis_id,
                revision=revision,
                channel=channel.value,
                target=target,
                event=event,
                body=None if body is None else dict(body),
                state=DeliveryState.PENDING.value,
                tries=0,
                replays=0,
                done=0,
                next=now,
                created=now,
            )
        )
        return delivery_id

    # What is to be tried

    def due(self, limit: int) -> tuple[Due, ...]:
        """Up to `limit` deliveries to be tried now: reports before webhooks, by the rank of their analyses, by age."""
        later = sa.case((DELIVERIES.c.channel == Channel.WEBHOOK.value, len(Priority)), else_=0)
        rank = (ANALYSES.c.rank + later).label("rank")
        query = (
            sa.select(DELIVERIES, rank)
            .join(ANALYSES, ANALYSES.c.id == DELIVERIES.c.analysis_id)
            .where(
                DELIVERIES.c.state == DeliveryState.PENDING.value,
                DELIVERIES.c.worker.is_(None),
                DELIVERIES.c.next <= _now(),
            )
            .order_by(rank, DELIVERIES.c.number)
            .limit(limit)
        )
        with self._read() as connection:
            return tuple(Due(row.id, workflow_of(row), row.rank) for row in connection.execute(query))

    def begin(self, workflow: str, worker: str) -> Delivery | None:
        """Begin the try of this name; None where it is no longer due: another has begun it, or it is settled."""
        delivery_id, replays, tries = parts_of(workflow)
        with self._write() as connection:
            row = locked(connection, delivery_id)
            if row is None or row.worker is not None or row.state != DeliveryState.PENDING.value:
                return None
            if (row.replays, row.tries) != (replays, tries):
                return None
            begun = change(connection, delivery_id, worker=worker, tries=tries + 1)
            delivery = delivery_of(begun)
            _tell_step(connection, delivery, "started", attempt=delivery.tries)
            return delivery

    def renew(self, workflow: str) -> None:
        """Give the next try another name: the engine has ended the workflow of this one before it had begun."""
        delivery_id, replays, tries = parts_of(workflow)
        with self._write() as connection:
            connection.execute(
                DELIVERIES.update()
                .where(
                    DELIVERIES.c.id == delivery_id,
                    DELIVERIES.c.replays == replays,
                    DELIVERIES.c.tries == tries,
                    DELIVERIES.c.worker.is_(None),
                )
                .values(tries=tries + 1)
            )

    # How a try goes; each raises TurnLost where another has the delivery now

    def stored(self, delivery: Delivery, done: int, total: int) -> None:
        """So many of its objects are stored: a later try goes on after them."""
        with self._write() as connection:
            change_fenced(connection, delivery, done=done)
            if _is_step(connection, delivery):
                _note_progress(connection, delivery.analysis, done, total)

    def delivered(self, delivery: Delivery, seconds: float) -> None:
        """The target has it."""
        with self._write() as connection:
            change_fenced(
                connection,
                delivery,
                state=DeliveryState.DELIVERED.value,
                worker=None,
                reason=None,
                detail=None,
                settled=_now(),
            )
            _tell_step(connection, delivery, "finished", seconds=round(seconds, 3))
            kind = EventType.INSTANCES_TRANSFERRED if delivery.channel is Channel.STOW else EventType.EXPORT
            audit.append(connection, record_of(delivery, kind, "delivery-sent"))

    def again(self, delivery: Delivery, after_s: float, reason: str, detail: str) -> None:
        """It did not succeed; another try may, after so many seconds."""
        with self._write() as connection:
            due = _now() + timedelta(seconds=after_s)
            change_fenced(connection, delivery, worker=None, next=due, reason=reason, detail=detail)
            _tell_step(connection, delivery, "retry", attempt=delivery.tries, reason=reason)

    def dead(self, delivery: Delivery, reason: str, detail: str) -> None:
        """It will not succeed, or has been tried often enough: a dead letter, until somebody replays it."""
        with self._write() as connection:
            self._dead(connection, delivery, reason, detail)

    def _dead(self, connection: sa.Connection, delivery: Delivery, reason: str, detail: str) -> None:
        change_fenced(
            connection,
            delivery,
            state=DeliveryState.DEAD.value,
            worker=None,
            reason=reason,
            detail=detail,
            settled=_now(),
        )
        _tell_step(connection, delivery, "dead", attempt=delivery.tries, reason=reason)
        if delivery.channel is Channel.STOW:
            self.tell(connection, delivery.analysis, "delivery.dead", delivery.revision)
        record = record_of(delivery, EventType.EXPORT, "delivery-dead", audit.Outcome.SERIOUS_FAILURE, reason=reason)
        audit.append(connection, record)

    def hold(self, delivery: Delivery, differences: Sequence[Difference], detail: str) -> None:
        """Order and slides do not agree: it may not leave before a person has released the analysis (`release`)."""
        with self._write() as connection:
            reason = IdentityMismatch.reason
            change_fenced(
                connection, delivery, state=DeliveryState.HELD.value, worker=None, reason=reason, detail=detail
            )
            hold(connection, delivery.analysis, differences)
            self.tell(connection, delivery.analysis, "analysis.held-identity", delivery.revision)

    def give_back(self, delivery: Delivery) -> None:
        """The worker stops in the midst of the try: another one may begin at once."""
        with self._write() as connection:
            change_fenced(connection, delivery, worker=None, next=_now())

    def free(self, worker: str) -> int:
        """What a worker that is gone had in hand is due at once; how many deliveries that are."""
        in_hand = (DELIVERIES.c.state == DeliveryState.PENDING.value, DELIVERIES.c.worker == worker)
        with self._write() as connection:
            # Two may be here at once, for the same worker: both lock in one order.
            query = sa.select(DELIVERIES.c.id).where(*in_hand).order_by(DELIVERIES.c.number)
            found = connection.execute(query.with_for_update()).scalars().all()
            for delivery_id in found:
                change(connection, delivery_id, worker=None, next=_now())
            return len(found)

    def shift(self, seconds: float) -> None:
        """The wall clock has jumped by so many seconds: what waits, waits as long as it would have."""
        waiting = sa.select(DELIVERIES.c.id, DELIVERIES.c.next).where(DELIVERIES.c.state == DeliveryState.PENDING.value)
        with self._write() as connection:
            for row in connection.execute(waiting.order_by(DELIVERIES.c.number).with_for_update()).all():
                change(connection, row.id, next=row.next + timedelta(seconds=seconds))

    # By hand

    def replay(self, delivery_id: str, by: Principal) -> Delivery:
        """Try it again from the start, though it is dead or delivered; one that waits for its next try is due at once.

        Its id stays, so nothing can arrive twice. Raises NotFound (also for another tenant's, unless `by` is our own
        command line), Conflict where it is held or under way.
        """
        with self._write() as connection:
            row = locked(connection, delivery_id)
            if row is None or not (by.kind is PrincipalKind.DEVICE or row.tenant == by.tenant):
                raise NotFound("There is no delivery with this id.")
            if row.state == DeliveryState.HELD.value:
                raise Conflict("The delivery is held until its analysis is released; release that.")
            if row.worker is not None:
                raise Conflict("The delivery is under way; see what becomes of it.")
            values = {"next": _now()} if row.state == DeliveryState.PENDING.value else _anew()
            delivery = delivery_of(change(connection, delivery_id, **values))
            audit.append(connection, record_of(delivery, EventType.EXPORT, "delivery-replayed", by=by))
            return delivery

    # What there is

    def of(self, analysis_id: str) -> tuple[Delivery, ...]:
        """Every delivery of an analysis, oldest first."""
        return self.listing(analysis_id=analysis_id)

    def dead_letters(self) -> tuple[Delivery, ...]:
        """Every delivery that is dead, oldest first."""
        return self.listing(state=DeliveryState.DEAD)

    def listing(self, *, analysis_id: str | None = None, state: DeliveryState | None = None) -> tuple[Delivery, ...]:
        """The deliveries of an analysis, or in a state, or all of them; oldest first."""
        query = sa.select(DELIVERIES).order_by(DELIVERIES.c.number)
        if analysis_id is not None:
            query = query.where(DELIVERIES.c.analysis_id == analysis_id)
        if state is not None:
            query = query.where(DELIVERIES.c.state == state.value)
        with self._read() as connection:
            return tuple(map(delivery_of, connection.execute(query)))

    def killers(self) -> tuple[str, ...]:
        """The analyses that are dead letters: they killed their worker again and again."""
        given_up = (ANALYSES.c.state == State.FAILED.value, ANALYSES.c.failure_reason == KillsWorker.reason)
        with self._read() as connection:
            query = sa.select(ANALYSES.c.id).where(*given_up).order_by(ANALYSES.c.number)
            return tuple(connection.execute(query).scalars())

    def statistics(self) -> dict[tuple[Channel, DeliveryState], int]:
        """How many deliveries there are, by channel and state; every pair is named."""
        query = sa.select(DELIVERIES.c.channel, DELIVERIES.c.state, sa.func.count()).group_by(
            DELIVERIES.c.channel, DELIVERIES.c.state
        )
        counts = {(channel, state): 0 for channel in Channel for state in DeliveryState}
        with self._read() as connection:
            for channel, state, count in connection.execute(query):
                counts[Channel(channel), DeliveryState(state)] = count
        return counts


def _now() -> datetime:
    return datetime.now(UTC)


def _is_step(connection: sa.Connection, delivery: Delivery) -> bool:
    """Whether the delivery is the last step of a running analysis; a later revision's is not."""
    if delivery.channel is not Channel.STOW or delivery.revision != 1:
        return False
    state = connection.execute(sa.select(ANALYSES.c.state).where(ANALYSES.c.id == delivery.analysis)).scalar()
    return bool(state == State.RUNNING.value)


def _tell_step(connection: sa.Connection, delivery: Delivery, status: str, **more: Any) -> None:
    if _is_step(connection, delivery):
        add_event(connection, delivery.analysis, "step", {"step": Step.DELIVER.value, "status": status} | more)


def _anew() -> dict[str, Any]:
    """The values of a row whose delivery begins once more from the start; its tries get names of their own."""
    return {
        "state": DeliveryState.PENDING.value,
        "replays": DELIVERIES.c.replays + 1,
        "tries": 0,
        "done": 0,
        "next": _now(),
        "worker": None,
        "reason": None,
        "detail": None,
        "settled": None,
    }


def _note_progress(connection: sa.Connection, analysis_id: str, done: int, total: int) -> None:
    """Note how many of the report's objects are stored. Only the latest note of each step is kept."""
    progress = Progress(Step.DELIVER, done, total, "objects")
    values = {"step": progress.step.value, "done": done, "total": total, "unit": progress.unit, "updated": _now()}
    connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(**values))
    seq = add_event(connection, analysis_id, "progress", codec.dump(progress))
    connection.execute(
        EVENTS.delete().where(EVENTS.c.analysis_id == analysis_id, EVENTS.c.kind == "progress", EVENTS.c.seq < seq)
    )
