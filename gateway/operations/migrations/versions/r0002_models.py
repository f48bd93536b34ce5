"""Which version of a model serves, by whose decision; and the exact models that each analysis is pinned to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_decisions",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("settled", sa.DateTime(timezone=True)),
        sqlite_autoincrement=True,
    )
    op.add_column("analyses", sa.Column("models", sa.JSON))


def downgrade() -> None:
    op.drop_column("analyses", "models")
    op.drop_table("model_decisions")
