"""The tables of the ledger: the orders as accepted, what happened to each, what left the house, which worker lives,
which models serve."""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from gateway.operations.database import METADATA, UtcTime

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
    # Who ordered it, and for which tenant: every use of the row names the tenant.
    Column("tenant", String(64), nullable=False),
    Column("caller", String(255), nullable=False),
    # What pages are filtered by, and what is purged: as in the order.
    Column("accession", String(64)),
    Column("patient_id", String(64)),
    Column("patient_issuer", String(64)),
    # The key as the caller gave it is known to that caller alone: this is a digest of tenant, caller and key.
    Column("idempotency_key", String(255), unique=True),
    Column("body_sha256", String(64), nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
    Column("failure_reason", String(64)),
    Column("failure_detail", Text),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    # Set when delivery begins: from then on the analysis can no longer be cancelled.
    Column("delivering", Boolean, nullable=False, default=False),
    # Begun turns at the work, over all of its life: the token that fences a worker off which comes too late.
    Column("attempts", Integer, nullable=False, default=0),
    # Counts up with every retry by a person; names the durable workflows of the analysis.
    Column("run", Integer, nullable=False, default=1),
    # The stage that is next or at work: fetch, infer, deliver.
    Column("stage", String(16), nullable=False, default="fetch"),
    # The worker (`workers.id`) that works on it now; None while it waits.
    Column("worker", String(64)),
    # Set at a death of its worker: from then on it runs with nothing beside it.
    Column("alone", Boolean, nullable=False, default=False),
    # Deaths that count against it, and how far it had come (`step:done`) at the last death of all.
    Column("deaths", Integer, nullable=False, default=0),
    Column("mark", String(64)),
    # By when it has ended, whatever it does.
    Column("deadline", UtcTime),
    # Why it is held, and what a person has released: [{"attribute", "series", "digest"}].
    Column("held", JSON(none_as_null=True)),
    Column("released", JSON(none_as_null=True)),
    Column("step", String(16)),
    Column("done", Integer),
    Column("total", Integer),
    Column("unit", String(16)),
    # The exact models that it is pinned to since it started (`gateway.analyses.pins`).
    Column("models", JSON(none_as_null=True)),
    Index("ix_analyses_state_rank", "state", "rank", "number"),
    Index("ix_analyses_tenant", "tenant", "number"),
    Index("ix_analyses_accession", "tenant", "accession"),
    Index("ix_analyses_patient", "patient_id"),
)

STUDIES = Table(
    "studies",
    METADATA,
    # The studies that an order names: how the analyses of a slide are found.
    Column("study", String(64), primary_key=True),
    Column("analysis_id", String(64), ForeignKey("analyses.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_studies_analysis", "analysis_id"),
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
    Column("host", String(255), nullable=False, default=""),
    Column("pid", Integer, nullable=False, default=0),
    # Counts the heartbeats: whether a worker lives is seen from this, so that no clock's jump kills one.
    Column("beats", Integer, nullable=False, default=0),
)

LEASES = Table(
    "leases",
    METADATA,
    # What only one worker does at a time, e.g. `reaper`.
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    # Counts up as long as the holder lives, as a heartbeat does.
    Column("beats", Integer, nullable=False),
)

REVISIONS = Table(
    "revisions",
    METADATA,
    Column("analysis_id", String(64), ForeignKey("analyses.id"), primary_key=True),
    # 1 is the machine's report; each signature and each correction is one more. None is ever changed.
    Column("number", Integer, primary_key=True, autoincrement=False),
    # preliminary, final, amended (`domain.report.ReportState`).
    Column("state", String(16), nullable=False),
    # The folder of its files below the analysis's folder.
    Column("folder", String(64), nullable=False),
    # Digest of its report.json.
    Column("report_sha256", String(64), nullable=False),
    # SOP instance UIDs of its structured reports, one a study.
    Column("documents", JSON, nullable=False),
    # Who signed or corrected it; None for the machine's.
    Column("by", String(255)),
    Column("by_name", String(255)),
    Column("reason", Text),
    Column("made", UtcTime, nullable=False),
)

DELIVERIES = Table(
    "deliveries",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    # Never changes over all tries: it is the webhook-id too.
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("analysis_id", String(64), ForeignKey("analyses.id"), nullable=False),
    Column("revision", Integer),
    # stow, webhook.
    Column("channel", String(16), nullable=False),
    # The name of the target among the settings, never its address.
    Column("target", String(255), nullable=False),
    # What a webhook says (no patient data); None for a STOW, whose objects lie in the revision's folder.
    Column("event", String(64), nullable=False),
    Column("body", JSON),
    # pending, delivered, held, dead.
    Column("state", String(16), nullable=False),
    # Tries since it was written or replayed, and the replays; together they name the durable workflow of a try.
    Column("tries", Integer, nullable=False, default=0),
    Column("replays", Integer, nullable=False, default=0),
    # Objects of it that are stored already.
    Column("done", Integer, nullable=False, default=0),
    Column("next", UtcTime, nullable=False),
    Column("worker", String(64)),
    Column("reason", String(64)),
    Column("detail", Text),
    Column("created", UtcTime, nullable=False),
    Column("settled", UtcTime),
    Index("ix_deliveries_state_next", "state", "next"),
    Index("ix_deliveries_analysis", "analysis_id"),
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("analysis_id", String(64), ForeignKey("analyses.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    # agree, amend, reject.
    Column("verdict", String(16), nullable=False),
    # {"code", "scheme", "display"}
    Column("finding", JSON),
    Column("series", String(64)),
    Column("comment", Text),
    Column("by", String(255), nullable=False),
    Column("time", UtcTime, nullable=False),
    Index("ix_feedback_analysis", "analysis_id"),
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
