"""Further API keys, for sites without an identity provider: random, shown once, kept as digests."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from gateway.domain.principal import MACHINE_SCOPES, Principal, PrincipalKind, Scope
from gateway.operations.audit import Action, AuditEvent, EventType, append
from gateway.operations.auth.refusal import Credential, Refused
from gateway.operations.auth.store import Store
from gateway.operations.auth.table import API_KEYS
from gateway.operations.errors import InvalidInput, NotFound, Unauthenticated

PREFIX = "pathserve_key_"
"""What keys begin with, so that a scanner for leaked secrets finds them."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without its text."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    created: datetime
    expires: datetime | None
    revoked: datetime | None


class Keys:
    """The keys in the database. Thread-safe. Every method raises StateError and its kinds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self, name: str, scopes: Iterable[Scope], tenant: str, expires: datetime | None, by: str
    ) -> tuple[KeyRecord, str]:
        """A new key and its text, which is kept nowhere. `by` is who made it. Raises InvalidInput."""
        allowed = checked_scopes(scopes)
        text = PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(secrets.token_hex(6), checked_name(name), tenant, allowed, datetime.now(UTC), expires, None)
        values = {
            "id": record.id,
            "sha256": _digest(text),
            "name": record.name,
            "tenant": tenant,
            "scopes": sorted(allowed),
            "created": record.created,
            "expires": expires,
        }
        with self._store.write() as connection:
            connection.execute(API_KEYS.insert().values(values))
            append(connection, changed("key-created", Action.CREATE, by, tenant, "api-key", record.id, allowed))
        return record, text

    def all(self) -> tuple[KeyRecord, ...]:
        """Every key ever made, oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.created, API_KEYS.c.id)).all()
        return tuple(_record(row) for row in rows)

    def revoke(self, key: str, by: str) -> None:
        """From now on (a few seconds later where it was in use) it opens nothing. Raises NotFound."""
        with self._store.write() as connection:
            row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.id == key).with_for_update()).first()
            if row is None:
                raise NotFound("There is no API key with this id; see `pathserve keys list`.")
            if row.revoked is None:
                connection.execute(API_KEYS.update().where(API_KEYS.c.id == key).values(revoked=datetime.now(UTC)))
                append(connection, changed("key-revoked", Action.DELETE, by, row.tenant, "api-key", key))

    def principal(self, text: str) -> Principal:
        """Whom a key names. Raises Refused."""
        digest = _digest(text)
        with self._store.read() as connection:
            row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.sha256 == digest)).first()
        if row is None or not hmac.compare_digest(row.sha256, digest):
            raise Refused(Credential.KEY, "unknown")
        found = _record(row)
        subject = f"key:{found.id}"
        for since, reason, said in (
            (found.revoked, "revoked", "This API key was revoked: ask for a new one."),
            (found.expires, "expired", "This API key has expired: ask for a new one."),
        ):
            if since is not None and since <= datetime.now(UTC):
                raise Refused(Credential.KEY, reason, Unauthenticated(said), subject=subject, tenant=found.tenant)
        return Principal(subject, PrincipalKind.KEY, found.tenant, found.scopes, name=found.name)


def checked_scopes(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes for something that is no person. Raises InvalidInput."""
    found = frozenset(scopes)
    if not found:
        raise InvalidInput("Give at least one scope.")
    if Scope.ANALYSES_SIGN in found:
        raise InvalidInput("Only a person signs: analyses:sign cannot be given to a key or to a client.")
    return found


def checked_name(name: str) -> str:
    """A name for people to read. Raises InvalidInput."""
    if not (0 < len(name) <= 200 and name.isprintable()):
        raise InvalidInput("A name has 1 to 200 printable characters.")
    return name


def changed(
    subtype: str, action: Action, by: str, tenant: str, kind: str, entity: str, scopes: Iterable[Scope] = ()
) -> AuditEvent:
    """The record of a change to who may come in."""
    detail: dict[str, Any] = {"scopes": sorted(scopes)} if scopes else {}
    return AuditEvent(
        type=EventType.SECURITY_ALERT,
        subtype=subtype,
        action=action,
        tenant=tenant,
        actor=by,
        actor_kind=PrincipalKind.DEVICE.value,
        entity_kind=kind,
        entity=entity,
        detail=detail,
    )


def scopes_in(names: Iterable[str]) -> frozenset[Scope]:
    """What a row says; a scope of another version of this server is none here."""
    return frozenset(scope for scope in MACHINE_SCOPES if scope.value in names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _record(row: sa.Row[Any]) -> KeyRecord:
    return KeyRecord(row.id, row.name, row.tenant, scopes_in(row.scopes), row.created, row.expires, row.revoked)
