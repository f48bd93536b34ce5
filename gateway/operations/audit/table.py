"""The tables of the audit trail."""

import sqlalchemy as sa

from gateway.operations.audit.canonical import CanonicalJson
from gateway.operations.database import METADATA, UtcTime

_Seq = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

AUDIT = sa.Table(
    "audit",
    METADATA,
    # Without gaps from 1.
    sa.Column("seq", _Seq, primary_key=True, autoincrement=False),
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
    sa.Column("detail", CanonicalJson, nullable=False),
    # The chain: SHA-256 of the row before it, and of this row with that.
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Index("ix_audit_entity", "entity"),
)

AUDIT_HEAD = sa.Table(
    "audit_head",
    METADATA,
    # One row, id 1: the last record, moved by a trigger of `audit`. It is what the next record is chained to, its lock
    # is the trail's, and it shows where the end was cut off.
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", _Seq, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
