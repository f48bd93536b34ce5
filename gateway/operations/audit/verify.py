"""Whether the audit trail is what was written: every hash, every link, the head, and the signed anchors."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateway.operations.audit.anchors import Anchors
from gateway.operations.audit.canonical import COLUMNS, GENESIS, digest_of
from gateway.operations.audit.records import BATCH, AuditQuery, AuditRecord, page
from gateway.operations.audit.table import AUDIT, AUDIT_HEAD


class Damage(StrEnum):
    """How a trail is broken."""

    CHANGED = "changed"
    MISSING = "missing"
    INSERTED = "inserted"
    CUT = "cut"
    REWRITTEN = "rewritten"
    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where the trail is not what was written. `seq` 0: not a record's."""

    seq: int
    damage: Damage
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: the records that were checked, the last of them, the anchors that agree, and the first break."""

    records: int
    hash: str
    anchors: int
    broken: Break | None


def verify(engine: sa.Engine, state: Path, expected: tuple[int, str] | None = None) -> Verdict:
    """Check the whole trail. Only reads; a server may go on writing meanwhile.

    `state`: where this server's anchors lie. `expected`: number and hash of a record, noted elsewhere. Raises
    SQLAlchemyError, StateError.
    """
    noted = {} if expected is None else {expected[0]: expected[1]}
    # Before the head is read, so that none is of a record that comes after it.
    anchors: dict[int, str] = {}
    for anchor in Anchors(state).read():
        if not anchor.genuine or anchors.get(anchor.seq, anchor.hash) != anchor.hash:
            return Verdict(0, GENESIS, 0, Break(anchor.seq, Damage.ANCHOR, _FORGED))
        anchors[anchor.seq] = anchor.hash
    with engine.connect() as connection:
        # One statement, so that both are of the same moment.
        last = sa.select(sa.func.max(AUDIT.c.seq)).scalar_subquery()
        head = connection.execute(
            sa.select(AUDIT_HEAD.c.seq, AUDIT_HEAD.c.hash, last.label("last")).where(AUDIT_HEAD.c.id == 1)
        ).first()
    previous, expects, agreed = GENESIS, 1, 0
    for record in _records(engine, max(head.last or 0, head.seq) if head is not None else None):
        broken = record if isinstance(record, Break) else _wrong(record, expects, previous)
        if broken is not None:
            return Verdict(expects - 1, previous, agreed, broken)
        assert isinstance(record, AuditRecord)
        for known, sentence in ((anchors, _REWRITTEN), (noted, _UNEXPECTED)):
            if known.get(record.seq, record.hash) != record.hash:
                broken = Break(record.seq, Damage.REWRITTEN, sentence.format(seq=record.seq))
                return Verdict(expects, record.hash, agreed, broken)
        agreed += record.seq in anchors
        previous, expects = record.hash, record.seq + 1
    end = expects - 1
    beyond = [seq for seq in (*anchors, *noted) if seq > end]
    broken = _end(end, previous, None if head is None else (head.seq, head.hash), beyond)
    return Verdict(end, previous, agreed, broken)


_FORGED = "An anchor in audit-anchors.jsonl is not signed by this server's key, or contradicts another one."
_REWRITTEN = (
    "Record {seq} is not the one that an anchor was signed for: the trail was rewritten, in this record or before it."
)
_UNEXPECTED = "Record {seq} is not the one that was expected: the trail was rewritten, in this record or before it."


def _wrong(record: AuditRecord, expects: int, previous: str) -> Break | None:
    seq = record.seq
    if seq < expects:
        return Break(seq, Damage.INSERTED, f"Record {seq} stands where no record can be: it was inserted.")
    if seq > expects:
        gap = str(expects) if seq == expects + 1 else f"{expects} to {seq - 1}"
        return Break(expects, Damage.MISSING, f"Record {gap} is missing: it was removed.")
    try:
        digest = digest_of({name: getattr(record, name) for name in COLUMNS})
    except (TypeError, ValueError):  # a value of a kind that we never write
        digest = ""
    if digest != record.hash:
        return Break(seq, Damage.CHANGED, f"Record {seq} is not what was written: it was changed, or put there.")
    if record.previous != previous:
        before = max(1, seq - 1)
        return Break(
            before,
            Damage.CHANGED,
            f"Record {before} was changed and hashed anew: record {seq} was chained to another one.",
        )
    return None


def _end(seq: int, digest: str, head: tuple[int, str] | None, beyond: list[int]) -> Break | None:
    if head is None:
        return Break(seq, Damage.CUT, "The head of the trail is missing: nobody can tell what was cut off its end.")
    last = max([head[0], *beyond])
    if seq < last:
        return Break(seq + 1, Damage.CUT, f"The trail ends with record {seq}, but had {last}: its end was cut off.")
    if seq > head[0]:
        return Break(
            head[0] + 1, Damage.INSERTED, f"Record {head[0] + 1} stands after the head of the trail: it was inserted."
        )
    if digest != head[1]:
        return Break(seq, Damage.CHANGED, f"Record {seq} is not the one that the head of the trail knows.")
    return None


def _records(engine: sa.Engine, last: int | None) -> Iterator[AuditRecord | Break]:
    """The records up to `last` (None = all). What cannot even be read is a break where it stands."""
    after: int | None = None
    while True:
        with engine.connect() as connection:
            batch = _batch(connection, after)
        for record in batch:
            if last is not None and isinstance(record, AuditRecord) and record.seq > last:
                return
            yield record
        if len(batch) < BATCH:
            return
        after = batch[-1].seq


def _batch(connection: sa.Connection, after: int | None) -> list[AuditRecord] | list[AuditRecord | Break]:
    query = AuditQuery()
    below = -(2**63) if after is None else after
    try:
        return page(connection, query, below)
    except (SQLAlchemyError, ValueError, TypeError):
        # Either the database is gone, which the next statement says too, or one of these rows is not ours.
        connection.rollback()
    seqs = sa.select(AUDIT.c.seq).where(AUDIT.c.seq > below).order_by(AUDIT.c.seq).limit(BATCH)
    found: list[AuditRecord | Break] = []
    for seq in connection.execute(seqs).scalars().all():
        try:
            found += page(connection, query, seq - 1, 1)
        except (SQLAlchemyError, ValueError, TypeError):
            found.append(Break(seq, Damage.CHANGED, f"Record {seq} cannot be read: it was changed."))
            break
    return found
