"""Accepting orders: each is on disk when its caller is answered, and many that come at once share one transaction."""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway.analyses.ledger.choices import Transaction
from gateway.analyses.ledger.records import RANK, Record, record_of
from gateway.analyses.ledger.schema import ANALYSES, EVENTS, STUDIES
from gateway.analyses.ledger.transitions import audit_event, now
from gateway.domain.analysis import State
from gateway.domain.order import Order
from gateway.domain.principal import Principal
from gateway.domain.uids import new_analysis_id
from gateway.operations import audit
from gateway.operations.audit import Action
from gateway.operations.errors import IdempotencyConflict, PathserveError, StateBusy

Accepted = tuple[Record, bool]
"""The analysis, and whether it is new (False: the key was known already)."""
Outcome = Accepted | PathserveError


class Asked(NamedTuple):
    """One order to be accepted; `text` is its canonical JSON."""

    order: Order
    text: str
    by: Principal
    key: str | None
    deadline_s: float | None


class _Waiting(NamedTuple):
    """Orders of one thread. `turn` comes to True where the thread is to take all that wait, to False where another has
    answered it."""

    asked: list[Asked]
    turn: Future[bool]
    answer: Future[list[Outcome]]


class Acceptance:
    """Accepts for all threads of this process. What waits while one transaction is on its way to the disk shares the
    next, so that many orders cost few of them; a thread that comes alone waits for nobody."""

    def __init__(self, write: Transaction) -> None:
        self._write = write
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()
        self._busy = False

    def __call__(self, asked: list[Asked]) -> list[Outcome]:
        """On disk when this returns, each order on its own merits: the answers are in the order of `asked`."""
        if not asked:
            return []
        mine = _Waiting(asked, Future(), Future())
        with self._lock:
            self._waiting.append(mine)
            if not self._busy:
                self._busy = True
                mine.turn.set_result(True)
        if mine.turn.result():
            self._lead()
        return mine.answer.result()

    def _lead(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        try:
            self._settle(taken)
        finally:
            # Each waits for itself, not for a lock: those that are answered do not stand in the way of who is next.
            for each in taken:
                if not each.turn.done():
                    each.turn.set_result(False)
            with self._lock:
                if self._waiting:
                    self._waiting[0].turn.set_result(True)
                else:
                    self._busy = False

    def _settle(self, taken: list[_Waiting]) -> None:
        try:
            with self._write() as connection:
                outcomes = accept(connection, [order for each in taken for order in each.asked])
        except BaseException as error:
            if len(taken) > 1 and not getattr(error, "retryable", False):
                # Something of one that this database does not take: the others are not to suffer for it.
                for each in taken:
                    self._settle([each])
                return
            for each in taken:
                each.answer.set_exception(error)
            return
        for each in taken:
            each.answer.set_result(outcomes[: len(each.asked)])
            del outcomes[: len(each.asked)]


def accept(connection: sa.Connection, asked: Sequence[Asked]) -> list[Outcome]:
    """Write the orders down within a transaction, in few statements whatever their number."""
    bodies = [hashlib.sha256(each.text.encode()).hexdigest() for each in asked]
    keys = [None if each.key is None else _key_digest(each.by, each.key) for each in asked]
    # Of those with the same key the first is written down; whose place each takes:
    first: dict[str, int] = {}
    leads = [place if key is None else first.setdefault(key, place) for place, key in enumerate(keys)]
    fresh = {
        place: _values(asked[place], keys[place], bodies[place]) for place, lead in enumerate(leads) if place == lead
    }
    numbers = _numbers(connection, list(fresh.values()))
    made = {
        place: values | {"number": numbers[values["id"]]} for place, values in fresh.items() if values["id"] in numbers
    }
    if made:
        _tell(connection, [(asked[place], values["id"], values["created"]) for place, values in made.items()])
    known = _known(connection, [key for place in fresh if place not in made and (key := keys[place]) is not None])
    outcomes: list[Outcome] = []
    for place, lead in enumerate(leads):
        row = SimpleNamespace(**_UNTOLD | made[lead]) if lead in made else known.get(keys[lead])
        if row is None:
            raise StateBusy("An order with this Idempotency-Key was taken away just now; try again in a moment.")
        if row.body_sha256 != bodies[place]:
            outcomes.append(
                IdempotencyConflict("This Idempotency-Key was used with another order; use a new key for a new order.")
            )
        else:
            outcomes.append(
                (record_of(row, asked[lead].order if lead in made else None), lead in made and place == lead)
            )
    return outcomes


_UNTOLD = {
    column.name: column.default.arg if isinstance(column.default, sa.ColumnDefault) else None for column in ANALYSES.c
}
"""What a new row has where the insert says nothing."""


def _numbers(connection: sa.Connection, fresh: list[dict[str, Any]]) -> dict[str, int]:
    """Insert the new analyses: the numbers by id of those whose key was not known. Others that use the same key now are
    waited for."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(ANALYSES).on_conflict_do_nothing(index_elements=[ANALYSES.c.idempotency_key])
    rows = connection.execute(statement.returning(ANALYSES.c.id, ANALYSES.c.number), fresh)
    return {row.id: row.number for row in rows}


def _tell(connection: sa.Connection, made: list[tuple[Asked, str, datetime]]) -> None:
    """Their studies, first events and audit records."""
    accepted = {"state": State.ACCEPTED.value}
    connection.execute(
        EVENTS.insert(),
        [
            {"analysis_id": analysis_id, "seq": 1, "time": time, "kind": "state", "data": accepted}
            for _, analysis_id, time in made
        ],
    )
    studies = [
        {"study": study, "analysis_id": analysis_id}
        for asked, analysis_id, _ in made
        for study in sorted({slide.study for specimen in asked.order.specimens for slide in specimen.slides})
    ]
    if studies:
        connection.execute(STUDIES.insert(), studies)
    audit.append(
        connection,
        *(
            audit_event(
                asked.by,
                asked.by.tenant,
                analysis_id,
                "analysis-created",
                Action.CREATE,
                protocol=asked.order.protocol,
            )
            for asked, analysis_id, _ in made
        ),
    )


def _values(asked: Asked, key: str | None, body_sha256: str) -> dict[str, Any]:
    order, time = asked.order, now()
    return {
        "id": new_analysis_id(),
        "order_json": asked.text,
        "protocol": order.protocol,
        "priority": order.priority.value,
        "rank": RANK[order.priority],
        "state": State.ACCEPTED.value,
        "tenant": asked.by.tenant,
        "caller": asked.by.subject,
        "accession": order.accession,
        "patient_id": order.patient.id,
        "patient_issuer": order.patient.issuer,
        "idempotency_key": key,
        "body_sha256": body_sha256,
        "created": time,
        "updated": time,
        "deadline": None if asked.deadline_s is None else time + timedelta(seconds=asked.deadline_s),
    }


def _known(connection: sa.Connection, keys: list[str]) -> dict[str | None, sa.Row[Any]]:
    if not keys:
        return {}
    rows = connection.execute(sa.select(ANALYSES).where(ANALYSES.c.idempotency_key.in_(keys)))
    return {row.idempotency_key: row for row in rows}


def _key_digest(by: Principal, key: str) -> str:
    """A key is its caller's own: nobody else's is the same."""
    return hashlib.sha256(f"{by.tenant}\0{by.subject}\0{key}".encode()).hexdigest()
