"""The first ledger: analyses, their events, and the workers' heartbeats."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "analyses",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("order_json", sa.Text, nullable=False),
        sa.Column("protocol", sa.String(64), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failure_reason", sa.String(64)),
        sa.Column("failure_detail", sa.Text),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("delivering", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("step", sa.String(16)),
        sa.Column("done", sa.Integer),
        sa.Column("total", sa.Integer),
        sa.Column("unit", sa.String(16)),
        # Numbers are never used twice, so a page's cursor stays true after a purge.
        sqlite_autoincrement=True,
    )
    op.create_index("ix_analyses_state_rank", "analyses", ["state", "rank", "number"])
    op.create_table(
        "events",
        sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat", sa.DateTime(timezone=True), nullable=False),
        sa.Column("parts", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.drop_table("events")
    op.drop_table("analyses")
