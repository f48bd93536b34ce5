"""Tenants, callers, runs and deaths of an analysis; revisions, deliveries, feedback; leases; keys, clients; audit."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NEW = (
    "studies",
    "revisions",
    "deliveries",
    "feedback",
    "leases",
    "api_keys",
    "clients",
    "used_assertions",
    "access_tokens",
    "audit_head",
    "audit",
)


def upgrade() -> None:
    _analyses()
    with op.batch_alter_table("workers") as batch:
        batch.add_column(sa.Column("host", sa.String(255), nullable=False, server_default=""))
        batch.add_column(sa.Column("pid", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("beats", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("beats", sa.Integer, nullable=False),
    )
    _results()
    _access()
    _audit()


def _analyses() -> None:
    with op.batch_alter_table("analyses") as batch:
        batch.add_column(sa.Column("tenant", sa.String(64), nullable=False, server_default="default"))
        batch.add_column(sa.Column("caller", sa.String(255), nullable=False, server_default="key:default"))
        batch.add_column(sa.Column("accession", sa.String(64)))
        batch.add_column(sa.Column("patient_id", sa.String(64)))
        batch.add_column(sa.Column("patient_issuer", sa.String(64)))
        batch.add_column(sa.Column("run", sa.Integer, nullable=False, server_default="1"))
        batch.add_column(sa.Column("stage", sa.String(16), nullable=False, server_default="fetch"))
        batch.add_column(sa.Column("worker", sa.String(64)))
        batch.add_column(sa.Column("alone", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("deaths", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("mark", sa.String(64)))
        batch.add_column(sa.Column("deadline", sa.DateTime(timezone=True)))
        batch.add_column(sa.Column("held", sa.JSON))
        batch.add_column(sa.Column("released", sa.JSON))
    op.create_index("ix_analyses_tenant", "analyses", ["tenant", "number"])
    op.create_index("ix_analyses_accession", "analyses", ["tenant", "accession"])
    op.create_index("ix_analyses_patient", "analyses", ["patient_id"])
    op.create_table(
        "studies",
        sa.Column("study", sa.String(64), primary_key=True),
        sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id", ondelete="CASCADE"), primary_key=True),
    )
    op.create_index("ix_studies_analysis", "studies", ["analysis_id"])
    _fill()


def _fill() -> None:
    """Copy out of the orders what is searched for, and bind keys to the caller that every order had until now."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT number, id, order_json, idempotency_key FROM analyses")).all()
    for number, analysis_id, text, key in rows:
        order = json.loads(text)
        connection.execute(
            sa.text(
                "UPDATE analyses SET accession = :accession, patient_id = :patient, patient_issuer = :issuer, "
                "idempotency_key = :key WHERE number = :number"
            ),
            {
                "number": number,
                "accession": order["accession"],
                "patient": order["patient"]["id"],
                "issuer": order["patient"]["issuer"],
                "key": key and hashlib.sha256(f"default\0key:default\0{key}".encode()).hexdigest(),
            },
        )
        for study in {slide["study"] for specimen in order["specimens"] for slide in specimen["slides"]}:
            connection.execute(
                sa.text("INSERT INTO studies (study, analysis_id) VALUES (:study, :id)"),
                {"study": study, "id": analysis_id},
            )


def _results() -> None:
    analysis = sa.ForeignKey("analyses.id")
    op.create_table(
        "revisions",
        sa.Column("analysis_id", sa.String(64), analysis, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("folder", sa.String(64), nullable=False),
        sa.Column("report_sha256", sa.String(64), nullable=False),
        sa.Column("documents", sa.JSON, nullable=False),
        sa.Column("by", sa.String(255)),
        sa.Column("by_name", sa.String(255)),
        sa.Column("reason", sa.Text),
        sa.Column("made", sa.DateTime(timezone=True), nullable=False),
    )
    # What was completed has its report already; nobody knows its digest, and nobody can sign it.
    op.execute(
        "INSERT INTO revisions (analysis_id, number, state, folder, report_sha256, documents, made) "
        "SELECT id, 1, 'preliminary', 'artifacts', '', '[]', updated FROM analyses WHERE state = 'completed'"
    )
    op.create_table(
        "deliveries",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), nullable=False),
        sa.Column("revision", sa.Integer),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("next", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worker", sa.String(64)),
        sa.Column("reason", sa.String(64)),
        sa.Column("detail", sa.Text),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled", sa.DateTime(timezone=True)),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_state_next", "deliveries", ["state", "next"])
    op.create_index("ix_deliveries_analysis", "deliveries", ["analysis_id"])
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("finding", sa.JSON),
        sa.Column("series", sa.String(64)),
        sa.Column("comment", sa.Text),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_analysis", "feedback", ["analysis_id"])


def _access() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True)),
        sa.Column("revoked", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "clients",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("jwks", sa.JSON),
        sa.Column("jwks_url", sa.String(2048)),
        sa.Column("certificate_sha256", sa.String(64), unique=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "used_assertions",
        sa.Column("client", sa.String(255), primary_key=True),
        sa.Column("jti", sa.String(255), primary_key=True),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "access_tokens",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("client", sa.String(255), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
    )


def _audit() -> None:
    seq = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "audit",
        sa.Column("seq", seq, primary_key=True, autoincrement=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
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
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_audit_entity", "audit", ["entity"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", seq, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.execute(sa.text("INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, :zero)").bindparams(zero="0" * 64))
    if op.get_bind().dialect.name == "sqlite":
        for when in (
            "audit_no_update BEFORE UPDATE ON audit",
            "audit_no_delete BEFORE DELETE ON audit",
            # INSERT OR REPLACE deletes without the trigger of DELETE.
            "audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)",
        ):
            op.execute(f"CREATE TRIGGER {when} BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END")
        op.execute(
            "CREATE TRIGGER audit_moves_head AFTER INSERT ON audit "
            "BEGIN UPDATE audit_head SET seq = NEW.seq, hash = NEW.hash WHERE id = 1; END"
        )
    else:
        op.execute(
            "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
        )
        op.execute(
            "CREATE FUNCTION audit_moves_head() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN UPDATE audit_head SET seq = NEW.seq, hash = NEW.hash WHERE id = 1; RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_moves_head AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_moves_head()"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        for name in ("audit_append_only", "audit_moves_head"):
            op.execute(f"DROP TRIGGER {name} ON audit")
            op.execute(f"DROP FUNCTION {name}")
    for table in _NEW:
        op.drop_table(table)
    with op.batch_alter_table("workers") as batch:
        for name in ("host", "pid", "beats"):
            batch.drop_column(name)
    for index in ("ix_analyses_tenant", "ix_analyses_accession", "ix_analyses_patient"):
        op.drop_index(index, "analyses")
    with op.batch_alter_table("analyses") as batch:
        for name in (
            *("tenant", "caller", "accession", "patient_id", "patient_issuer", "run", "stage", "worker", "alone"),
            *("deaths", "mark", "deadline", "held", "released"),
        ):
            batch.drop_column(name)
