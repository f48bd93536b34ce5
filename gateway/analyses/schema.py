"""The tables of the ledger: the orders as accepted, what happened to each, which worker lives, which models serve."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; databases without time zones get it naive and give it back aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        found: datetime = value
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


METADATA = MetaData()

ANALYSES = Table(
    "analyses",
    METADATA,
    # The order of acceptance: pages and ties of priority go by it.
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("order_json", Text, nullable=False),
    Column("protocol", String(64), nullable=False),
    Column("priority", String(16), nullable=False),
    # 0 is served first.
    Column("rank", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("body_sha256", String(64), nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
    Column("failure_reason", String(64)),
    Column("failure_detail", Text),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    # Set when delivery begins: from then on the analysis can no longer be cancelled.
    Column("delivering", Boolean, nullable=False, default=False),
    # Runs that began since the analysis last moved forward.
    Column("attempts", Integer, nullable=False, default=0),
    Column("step", String(16)),
    Column("done", Integer),
    Column("total", Integer),
    Column("unit", String(16)),
    # The exact models that it is pinned to since it started (`gateway.analyses.pins`).
    Column("models", JSON),
    Index("ix_analyses_state_rank", "state", "rank", "number"),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("analysis_id", String(64), ForeignKey("analyses.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcTime, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("data", JSON, nullable=False),
)

WORKERS = Table(
    "workers",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("started", UtcTime, nullable=False),
    Column("beat", UtcTime, nullable=False),
    # What the worker last found of its parts: {name: true | false}.
    Column("parts", JSON, nullable=False),
    # The versions of the models it knows: [{name, version, ready, reason, state, folder, …}].
    Column("models", JSON, nullable=False),
)

MODEL_DECISIONS = Table(
    "model_decisions",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("model", String(128), nullable=False),
    Column("version", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("time", UtcTime, nullable=False),
    # Settled once, from `pending`; nothing else of a row is ever changed.
    Column("outcome", String(16), nullable=False),
    Column("reason", Text),
    Column("settled", UtcTime),
)
