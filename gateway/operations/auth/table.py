"""The tables of who may come in. No secret is kept: keys as digests, clients by their public keys or certificate."""

import sqlalchemy as sa

from gateway.operations.database import METADATA, UtcTime

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("expires", UtcTime),
    sa.Column("revoked", UtcTime),
)

CLIENTS = sa.Table(
    "clients",
    METADATA,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    # Its public keys, here or where it publishes them (RFC 7517); or its certificate (RFC 8705).
    sa.Column("jwks", sa.JSON(none_as_null=True)),
    sa.Column("jwks_url", sa.String(2048)),
    sa.Column("certificate_sha256", sa.String(64), unique=True),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("revoked", UtcTime),
)

USED_ASSERTIONS = sa.Table(
    "used_assertions",
    METADATA,
    # A client assertion is taken once (RFC 7523 3).
    sa.Column("client", sa.String(255), primary_key=True),
    sa.Column("jti", sa.String(255), primary_key=True),
    sa.Column("expires", UtcTime, nullable=False),
)

ACCESS_TOKENS = sa.Table(
    "access_tokens",
    METADATA,
    # What a client got for its assertion. Kept here, as a digest, any server of the database knows it, and it ends with
    # the client; a signed one would need a key that all servers share and would outlive a revocation.
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("client", sa.String(255), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("expires", UtcTime, nullable=False),
)
