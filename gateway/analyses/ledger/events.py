"""What happens to an analysis, numbered from 1 without reuse: what its event stream replays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.schema import EVENTS


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an analysis. `seq` counts from 1 without reuse; `data` is JSON-ready."""

    seq: int
    time: datetime
    kind: str
    data: Mapping[str, Any]


def add_event(connection: sa.Connection, analysis_id: str, kind: str, data: Mapping[str, Any]) -> int:
    """Add one event and return its number. The caller's transaction holds the analysis's row, or has just made it."""
    last = connection.execute(
        sa.select(sa.func.coalesce(sa.func.max(EVENTS.c.seq), 0)).where(EVENTS.c.analysis_id == analysis_id)
    ).scalar_one()
    connection.execute(
        EVENTS.insert().values(
            analysis_id=analysis_id, seq=last + 1, time=datetime.now(UTC), kind=kind, data=dict(data)
        )
    )
    return int(last) + 1


def last_state(connection: sa.Connection, analysis_id: str) -> datetime:
    """When the analysis came into the state that it is in."""
    query = sa.select(EVENTS.c.time).where(EVENTS.c.analysis_id == analysis_id, EVENTS.c.kind == "state")
    time: datetime = connection.execute(query.order_by(EVENTS.c.seq.desc()).limit(1)).scalar_one()
    return time


def events_of(connection: sa.Connection, analysis_id: str, after: int, limit: int) -> tuple[Event, ...]:
    """Up to `limit` events with numbers above `after`, in order."""
    found = connection.execute(
        sa.select(EVENTS)
        .where(EVENTS.c.analysis_id == analysis_id, EVENTS.c.seq > after)
        .order_by(EVENTS.c.seq)
        .limit(limit)
    )
    return tuple(Event(row.seq, row.time, row.kind, row.data) for row in found)


def last_events(connection: sa.Connection, analysis_ids: Collection[str]) -> dict[str, int]:
    """The number of the last event of each analysis."""
    found = connection.execute(
        sa.select(EVENTS.c.analysis_id, sa.func.max(EVENTS.c.seq))
        .where(EVENTS.c.analysis_id.in_(analysis_ids))
        .group_by(EVENTS.c.analysis_id)
    )
    return {row[0]: row[1] for row in found}
