"""The tables of the audit trail."""

import sqlalchemy as sa

from gateway.operations.database import METADATA, UtcTime

AUDIT = sa.Table(
    "audit",
    METADATA,
    # Without gaps from 1.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("subtype", sa.String(64), nullable=False),
    sa.Column("action", sa.String(1), nullable=False),
    sa.Column("outcome", sa.String(2), nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("actor_kind", sa.String(16), nullable=False),
    sa.Column("address", sa.String(64)),
    sa.Column("entity_kind", sa.String(32)),
    sa.Column("entity", sa.String(255)),
    sa.Column("detail", sa.JSON, nullable=False),
    # The chain: SHA-256 of the row before it, and of this row with that.
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Index("ix_audit_entity", "entity"),
)

AUDIT_HEAD = sa.Table(
    "audit_head",
    METADATA,
    # One row, id 1: the last record. It is what a record is chained to, and shows where the end was cut off.
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
