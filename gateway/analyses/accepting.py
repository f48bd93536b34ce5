"""Accepting orders: each is on disk when its caller is answered, and many that come at once share one transaction."""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from gateway.analyses.choices import Transaction
from gateway.analyses.records import RANK, Record, record_of
from gateway.analyses.schema import ANALYSES, EVENTS, STUDIES
from gateway.analyses.transitions import audit_event, now
from gateway.domain.analysis import State
from gateway.domain.order import Order
from gateway.domain.principal import Principal
from gateway.domain.uids import new_analysis_id
from gateway.operations import audit
from gateway.operations.audit import Action
from gateway.operations.audit.table import AUDIT_HEAD
from gateway.operations.errors import IdempotencyConflict, PathserveError

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


class Acceptance:
    """Accepts for all threads of this process. What waits while one transaction is on its way to the disk shares the
    next, so that many orders cost few of them; a thread that comes alone waits for nobody."""

    def __init__(self, write: Transaction) -> None:
        self._write = write
        self._waiting: list[tuple[list[Asked], Future[list[Outcome]]]] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, asked: list[Asked]) -> list[Outcome]:
        """On disk when this returns, each order on its own merits: the answers are in the order of `asked`."""
        answer: Future[list[Outcome]] = Future()
        with self._lock:
            self._waiting.append((asked, answer))
        with self._turn:
            # Whoever had the turn before may have taken these along.
            if not answer.done():
                with self._lock:
                    taken, self._waiting = self._waiting, []
                self._settle(taken)
        return answer.result()

    def _settle(self, taken: list[tuple[list[Asked], Future[list[Outcome]]]]) -> None:
        try:
            with self._write() as connection:
                outcomes = accept(connection, [each for asked, _ in taken for each in asked])
        except BaseException as error:
            if len(taken) > 1 and not getattr(error, "retryable", False):
                # Something of one that this database does not take: the others are not to suffer for it.
                for each in taken:
                    self._settle([each])
                return
            for _, answer in taken:
                answer.set_exception(error)
            return
        for asked, answer in taken:
            answer.set_result(outcomes[: len(asked)])
            del outcomes[: len(asked)]


def accept(connection: sa.Connection, asked: Sequence[Asked]) -> list[Outcome]:
    """Write the orders down within a transaction, in few statements whatever their number."""
    # All processes accept one after the other, from here on: a key is looked up before it is used, numbers follow each
    # other, and nobody who holds an analysis waits for us.
    connection.execute(sa.select(AUDIT_HEAD.c.id).with_for_update())
    keys = [None if each.key is None else _key_digest(each.by, each.key) for each in asked]
    known = _known(connection, [key for key in keys if key is not None])
    fresh: list[tuple[Asked, dict[str, Any]]] = []
    first: dict[str, int] = {}
    # What each comes to: an outcome, or which of the fresh ones it is and whether it is the one that made it.
    places: list[Outcome | tuple[int, bool]] = []
    for each, key in zip(asked, keys, strict=True):
        body = hashlib.sha256(each.text.encode()).hexdigest()
        if key is not None and key in known:
            places.append((record_of(known[key]), False) if known[key].body_sha256 == body else _used())
        elif key is not None and key in first:
            place = first[key]
            places.append((place, False) if fresh[place][1]["body_sha256"] == body else _used())
        else:
            if key is not None:
                first[key] = len(fresh)
            places.append((len(fresh), True))
            fresh.append((each, _values(each, key, body)))
    records = _inserted(connection, fresh)
    return [
        place if isinstance(place, PathserveError) or isinstance(place[0], Record) else (records[place[0]], place[1])
        for place in places
    ]


def _inserted(connection: sa.Connection, fresh: list[tuple[Asked, dict[str, Any]]]) -> list[Record]:
    if not fresh:
        return []
    values = [each for _, each in fresh]
    rows = {row.id: row for row in connection.execute(ANALYSES.insert().returning(*ANALYSES.c), values)}
    accepted = {"state": State.ACCEPTED.value}
    connection.execute(
        EVENTS.insert(),
        [
            {"analysis_id": each["id"], "seq": 1, "time": each["created"], "kind": "state", "data": accepted}
            for each in values
        ],
    )
    studies = [
        {"study": study, "analysis_id": each["id"]}
        for asked, each in fresh
        for study in sorted({slide.study for specimen in asked.order.specimens for slide in specimen.slides})
    ]
    if studies:
        connection.execute(STUDIES.insert(), studies)
    audit.append(
        connection,
        *(
            audit_event(
                asked.by, each["tenant"], each["id"], "analysis-created", Action.CREATE, protocol=each["protocol"]
            )
            for asked, each in fresh
        ),
    )
    return [record_of(rows[each["id"]], asked.order) for asked, each in fresh]


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


def _known(connection: sa.Connection, keys: list[str]) -> dict[str, sa.Row[Any]]:
    if not keys:
        return {}
    rows = connection.execute(sa.select(ANALYSES).where(ANALYSES.c.idempotency_key.in_(keys)))
    return {row.idempotency_key: row for row in rows}


def _key_digest(by: Principal, key: str) -> str:
    """A key is its caller's own: nobody else's is the same."""
    return hashlib.sha256(f"{by.tenant}\0{by.subject}\0{key}".encode()).hexdigest()


def _used() -> IdempotencyConflict:
    return IdempotencyConflict("This Idempotency-Key was used with another order; use a new key for a new order.")
