"""Our token endpoint: a registered client's signed assertion for a short access token (RFC 6749 4.4, RFC 7523 2.2).

As SMART Backend Services ask for it: `private_key_jwt`, each assertion taken once, at most five minutes of life.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import sqlalchemy as sa

from gateway.domain.principal import Principal, Scope
from gateway.operations.audit import Action, AuditEvent, EventType, append
from gateway.operations.auth.clients import Client, Clients, names_of
from gateway.operations.auth.refusal import Credential, Refused
from gateway.operations.auth.store import Store
from gateway.operations.auth.table import ACCESS_TOKENS, USED_ASSERTIONS
from gateway.operations.auth.tokens import LEEWAY_S, MAX_CHARACTERS, Rules, is_name, verified
from gateway.operations.errors import Unauthenticated
from gateway.operations.limits import RequestLimit

PREFIX = "pathserve_token_"
LIFETIME_S = 300
_ASSERTION_S = 300
_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_RULES = Rules(
    credential=Credential.ASSERTION,
    algorithms=("RS256", "RS384", "PS256", "PS384", "PS512", "ES256", "ES384"),
    types=(None, "jwt", "client-authentication+jwt"),
    audience="",
    subject=lambda claims: f"client:{claims['sub']}",
    require=("exp", "iss", "aud", "sub", "jti"),
)

Form = Mapping[str, Sequence[str]]


class GrantRefused(Exception):
    """The client is known, its request is not one that can be granted: `error` is a word of RFC 6749 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


@dataclass(frozen=True, slots=True)
class Grant:
    """An access token (RFC 6749 5.1)."""

    token: str
    expires_s: int
    scope: str


class Grants:
    """Issues access tokens and knows them again. Thread-safe. Every method raises StateError and its kinds."""

    def __init__(self, store: Store, clients: Clients, token_url: str, limit: RequestLimit) -> None:
        """`token_url`: the address of the token endpoint, which an assertion is made for. `limit`: of each client."""
        self._store = store
        self._clients = clients
        self._rules = replace(_RULES, audience=token_url)
        self._limit = limit

    def issue(self, form: Form, address: str) -> Grant:
        """A token for the form's assertion.

        Raises Refused, GrantRefused, TooManyRequests, IdentityProviderUnavailable.
        """
        client, claims = self._client(form)
        scopes = _wanted(form, client)
        token = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        used = {
            "client": client.id,
            "jti": claims["jti"],
            "expires": datetime.fromtimestamp(claims["exp"], UTC) + timedelta(seconds=LEEWAY_S),
        }
        issued = {
            "sha256": _digest(token),
            "client": client.id,
            "scopes": sorted(scopes),
            "expires": now + timedelta(seconds=LIFETIME_S),
        }
        with self._store.write() as connection:
            for table in (USED_ASSERTIONS, ACCESS_TOKENS):
                connection.execute(table.delete().where(table.c.expires < now))
            try:
                with connection.begin_nested():
                    connection.execute(USED_ASSERTIONS.insert().values(used))
            except sa.exc.IntegrityError:
                raise self._refused("replayed", client) from None
            # Only now: whoever sends a stolen assertion again must not use up the client's share.
            self._limit.check(client.principal.subject)
            connection.execute(ACCESS_TOKENS.insert().values(issued))
            append(
                connection,
                AuditEvent(
                    type=EventType.USER_AUTHENTICATION,
                    subtype="token-issued",
                    action=Action.EXECUTE,
                    tenant=client.tenant,
                    detail={"scopes": sorted(scopes)},
                ).by(replace(client.principal, address=address)),
            )
        return Grant(token, LIFETIME_S, names_of(scopes))

    def principal(self, token: str) -> tuple[Principal, float]:
        """Whom one of our tokens names, and when it ends, in seconds since 1970. Raises Refused."""
        digest = _digest(token)
        with self._store.read() as connection:
            row = connection.execute(sa.select(ACCESS_TOKENS).where(ACCESS_TOKENS.c.sha256 == digest)).first()
        client = None if row is None else self._clients.get(row.client)
        if row is None or client is None:
            raise Refused(Credential.TOKEN, "unknown")
        if row.expires <= datetime.now(UTC):
            said = Unauthenticated("The token has expired: get a new one.")
            raise Refused(Credential.TOKEN, "expired", said, subject=client.principal.subject, tenant=client.tenant)
        granted = frozenset(scope for scope in client.scopes if scope.value in row.scopes)
        return replace(client.principal, scopes=granted), row.expires.timestamp()

    def _client(self, form: Form) -> tuple[Client, Mapping[str, Any]]:
        """The client that the assertion proves, and its claims. Raises Refused, IdentityProviderUnavailable."""
        assertions = form.get("client_assertion", ())
        if len(assertions) != 1 or list(form.get("client_assertion_type", ())) != [_TYPE]:
            raise Refused(Credential.ASSERTION if assertions else Credential.NONE, "no-assertion")
        [assertion] = assertions
        client = self._clients.get(_claimed(assertion))
        if client is None or client.certificate_sha256 is not None:
            raise Refused(Credential.ASSERTION, "unknown")
        claims = verified(assertion, lambda kid, algorithm: self._clients.find_key(client, kid, algorithm), self._rules)
        if claims["iss"] != client.id or claims["sub"] != client.id:
            raise self._refused("issuer", client)
        if list(form.get("client_id", [client.id])) != [client.id]:
            raise self._refused("client-id", client)
        if claims["exp"] > time.time() + _ASSERTION_S + LEEWAY_S:
            raise self._refused("lives-too-long", client)
        if not is_name(claims["jti"]):
            raise self._refused("malformed", client)
        return client, claims

    def _refused(self, reason: str, client: Client) -> Refused:
        return Refused(Credential.ASSERTION, reason, subject=client.principal.subject, tenant=client.tenant)


def _claimed(assertion: str) -> str:
    """Who an assertion says it is from; nothing of it is verified, it only says whose keys to try."""
    if len(assertion) > MAX_CHARACTERS:
        raise Refused(Credential.ASSERTION, "too-large")
    try:
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise Refused(Credential.ASSERTION, "malformed") from None
    subject = claims.get("sub")
    if not is_name(subject):
        raise Refused(Credential.ASSERTION, "malformed")
    return str(subject)


def _wanted(form: Form, client: Client) -> frozenset[Scope]:
    """The scopes that the token gets: those asked for, or all that the client has. Raises GrantRefused."""
    if list(form.get("grant_type", ())) != ["client_credentials"]:
        raise GrantRefused("unsupported_grant_type", "Only grant_type=client_credentials is granted here.")
    asked = form.get("scope", ())
    if len(asked) > 1:
        raise GrantRefused("invalid_request", "Give scope once, with blanks between the scopes.")
    words = asked[0].split() if asked else [scope.value for scope in client.scopes]
    if not words or not set(words) <= {scope.value for scope in client.scopes}:
        raise GrantRefused("invalid_scope", "The client does not have all of these scopes.")
    return frozenset(scope for scope in client.scopes if scope.value in words)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("latin-1", "replace")).hexdigest()
