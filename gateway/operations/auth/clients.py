"""Registered clients: systems that show a certificate (RFC 8705), or sign an assertion with their key (RFC 7523)."""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
import sqlalchemy as sa
from cryptography.x509 import load_der_x509_certificate

from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.operations.audit import Action, append
from gateway.operations.auth.fetch import get_json
from gateway.operations.auth.key_sets import ALGORITHMS, FetchedKeys, find_key, keys_in
from gateway.operations.auth.keys import changed, checked_name, checked_scopes, scopes_in
from gateway.operations.auth.refusal import Credential, Refused
from gateway.operations.auth.store import Store
from gateway.operations.auth.table import ACCESS_TOKENS, CLIENTS
from gateway.operations.auth.tokens import is_name
from gateway.operations.errors import Conflict, InvalidInput, NotFound, TargetNotAllowed, Unauthenticated
from gateway.operations.outbound import authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client: its keys, or where it publishes them, or the SHA-256 of its certificate (DER, hexadecimal)."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    jwks: Mapping[str, Any] | None = None
    jwks_url: str | None = None
    certificate_sha256: str | None = None
    revoked: datetime | None = None

    @property
    def principal(self) -> Principal:
        return Principal(f"client:{self.id}", PrincipalKind.SYSTEM, self.tenant, self.scopes, name=self.name)


class Clients:
    """The clients in the database. Thread-safe. Every method raises StateError and its kinds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fetched: dict[str, FetchedKeys] = {}
        self._lock = threading.Lock()

    def add(self, client: Client, by: str) -> None:
        """Register it; one that was revoked may be registered anew. Raises InvalidInput, Conflict."""
        _check(client)
        values = {
            "id": client.id,
            "name": client.name,
            "tenant": client.tenant,
            "scopes": sorted(client.scopes),
            "jwks": client.jwks,
            "jwks_url": client.jwks_url,
            "certificate_sha256": client.certificate_sha256,
            "created": datetime.now(UTC),
            "revoked": None,
        }
        with self._store.write() as connection:
            same = taken = CLIENTS.c.id == client.id
            if client.certificate_sha256 is not None:
                taken = sa.or_(same, CLIENTS.c.certificate_sha256 == client.certificate_sha256)
            for row in connection.execute(sa.select(CLIENTS).where(taken).with_for_update()).all():
                if row.id != client.id or row.revoked is None:
                    raise Conflict(
                        f"The client {row.id} is registered with this id or certificate; revoke it first, or use "
                        "another one."
                    )
                connection.execute(CLIENTS.delete().where(same))
            connection.execute(CLIENTS.insert().values(values))
            append(
                connection,
                changed("client-added", Action.CREATE, by, client.tenant, "client", client.id, client.scopes),
            )

    def all(self) -> tuple[Client, ...]:
        """Every client, by id, revoked ones too."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(CLIENTS).order_by(CLIENTS.c.id)).all()
        return tuple(_client(row) for row in rows)

    def revoke(self, client: str, by: str) -> None:
        """From now on (a few seconds later where it was at work) it may do nothing, nor its tokens. Raises NotFound."""
        with self._store.write() as connection:
            same = CLIENTS.c.id == client
            row = connection.execute(sa.select(CLIENTS).where(same).with_for_update()).first()
            if row is None:
                raise NotFound("There is no client with this id; see `pathserve clients list`.")
            if row.revoked is None:
                # The certificate is free for another client.
                values = {"revoked": datetime.now(UTC), "certificate_sha256": None}
                connection.execute(CLIENTS.update().where(same).values(values))
                connection.execute(ACCESS_TOKENS.delete().where(ACCESS_TOKENS.c.client == client))
                append(connection, changed("client-revoked", Action.DELETE, by, row.tenant, "client", client))

    def get(self, client: str) -> Client | None:
        """The client of this id, unless it was revoked."""
        return self._first(CLIENTS.c.id == client)

    def by_certificate(self, certificate: bytes) -> tuple[Principal, float]:
        """Whom a verified certificate (DER) names, and when it ends, in seconds since 1970.

        Raises Refused where nobody is registered with it, or where it has ended: it was verified when the connection
        began, and a connection may outlive it.
        """
        found = self._first(CLIENTS.c.certificate_sha256 == hashlib.sha256(certificate).hexdigest())
        if found is None:
            raise Refused(Credential.CERTIFICATE, "unknown")
        ends = load_der_x509_certificate(certificate).not_valid_after_utc
        if ends <= datetime.now(UTC):
            said = Unauthenticated("The client certificate has expired: register the new one and connect again.")
            raise Refused(Credential.CERTIFICATE, "expired", said, subject=found.principal.subject, tenant=found.tenant)
        return found.principal, ends.timestamp()

    def find_key(self, client: Client, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of this client that may verify the algorithm. Raises IdentityProviderUnavailable."""
        if client.jwks is not None:
            return find_key(keys_in(client.jwks), kid, algorithm)
        if client.jwks_url is None:
            return None
        url = client.jwks_url
        with self._lock:
            # Whoever registered the client allowed its host.
            fetched = self._fetched.setdefault(url, FetchedKeys(lambda: get_json(url, (authority(url),))))
        return fetched.find(kid, algorithm)

    def _first(self, condition: sa.ColumnElement[bool]) -> Client | None:
        with self._store.read() as connection:
            row = connection.execute(sa.select(CLIENTS).where(condition, CLIENTS.c.revoked.is_(None))).first()
        return None if row is None else _client(row)


def _check(client: Client) -> None:
    checked_name(client.name)
    checked_scopes(client.scopes)
    if not is_name(client.id) or " " in client.id:
        raise InvalidInput("A client's id has 1 to 200 printable characters and no blanks.")
    if [client.jwks, client.jwks_url, client.certificate_sha256].count(None) != 2:
        raise InvalidInput("Give a client either its keys, or the address of its keys, or its certificate.")
    if client.jwks_url is not None:
        try:
            authority(client.jwks_url)
        except TargetNotAllowed as error:
            raise InvalidInput(error.detail) from None
    if client.jwks is not None:
        try:
            keys = keys_in(client.jwks)
        except ValueError:
            raise InvalidInput('The keys are no JSON Web Key Set: write {"keys": […]}.') from None
        if any({"d", "k"} & key.keys() for key in keys):
            raise InvalidInput("The key set holds a private or a symmetric key: give the public keys only.")
        if not any(find_key([key], None, algorithm) for key in keys for algorithm in sorted(ALGORITHMS)):
            raise InvalidInput(
                "The key set holds no key that can be used: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519."
            )


def _client(row: sa.Row[Any]) -> Client:
    return Client(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        scopes=scopes_in(row.scopes),
        jwks=row.jwks,
        jwks_url=row.jwks_url,
        certificate_sha256=row.certificate_sha256,
        revoked=row.revoked,
    )


def names_of(scopes: Iterable[Scope]) -> str:
    """Scopes as OAuth 2.0 writes them (RFC 6749 3.3)."""
    return " ".join(sorted(scope.value for scope in scopes))
