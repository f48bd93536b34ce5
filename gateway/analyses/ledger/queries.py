"""Pages of analyses: filtered, newest first, and stable whatever is accepted meanwhile."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from gateway.analyses.ledger.records import Record, record_of
from gateway.analyses.ledger.schema import ANALYSES, STUDIES
from gateway.domain.analysis import State
from gateway.domain.order import Priority
from gateway.operations import codec
from gateway.operations.errors import InvalidInput

_CURSOR = re.compile(r"([0-9]{1,18})-([0-9a-f]{16})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisQuery:
    """Which analyses; None = whichever. `study` is one that the order names. The times are of acceptance; the first
    one counts as after, the second does not count as before."""

    state: State | None = None
    protocol: str | None = None
    priority: Priority | None = None
    accession: str | None = None
    patient_id: str | None = None
    patient_issuer: str | None = None
    study: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first; `next` is the cursor of the next page, None after the last."""

    items: tuple[Record, ...]
    next: str | None


def page(connection: sa.Connection, tenant: str, query: AnalysisQuery, limit: int, cursor: str | None) -> Page:
    """One page of a tenant's analyses. Raises InvalidInput where the cursor is not one of this query."""
    found = sa.select(ANALYSES).where(ANALYSES.c.tenant == tenant)
    for column, wanted in (
        (ANALYSES.c.state, query.state),
        (ANALYSES.c.protocol, query.protocol),
        (ANALYSES.c.priority, query.priority),
        (ANALYSES.c.accession, query.accession),
        (ANALYSES.c.patient_id, query.patient_id),
        (ANALYSES.c.patient_issuer, query.patient_issuer),
    ):
        if wanted is not None:
            found = found.where(column == str(wanted))
    if query.study is not None:
        found = found.where(ANALYSES.c.id.in_(sa.select(STUDIES.c.analysis_id).where(STUDIES.c.study == query.study)))
    if query.created_after is not None:
        found = found.where(ANALYSES.c.created >= query.created_after)
    if query.created_before is not None:
        found = found.where(ANALYSES.c.created < query.created_before)
    bound = _digest(tenant, query)
    if cursor is not None:
        found = found.where(ANALYSES.c.number < _number(cursor, bound))
    rows = connection.execute(found.order_by(ANALYSES.c.number.desc()).limit(limit + 1)).all()
    following = _cursor(rows[limit - 1].number, bound) if len(rows) > limit else None
    return Page(tuple(record_of(row) for row in rows[:limit]), following)


def _digest(tenant: str, query: AnalysisQuery) -> str:
    return hashlib.sha256(f"{tenant}\0{codec.dumps(query)}".encode()).hexdigest()[:16]


def _cursor(number: int, bound: str) -> str:
    return base64.urlsafe_b64encode(f"{number}-{bound}".encode()).decode().rstrip("=")


def _number(cursor: str, bound: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidInput("The cursor is not one that this server gave. Start again without it.")
    if match[2] != bound:
        raise InvalidInput("The cursor belongs to a list with other filters. Start again without it.")
    return int(match[1])
