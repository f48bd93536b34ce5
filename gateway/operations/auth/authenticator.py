"""Who asks: one place for every door, REST and gRPC alike."""

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import sqlalchemy as sa

from gateway.domain.principal import DEFAULT_TENANT, MACHINE_SCOPES, Principal, PrincipalKind
from gateway.operations.audit import Action, AuditEvent, EventType, append
from gateway.operations.auth import grants, keys
from gateway.operations.auth.api_key import ApiKey
from gateway.operations.auth.clients import Clients
from gateway.operations.auth.grants import Form, Grant, Grants
from gateway.operations.auth.keys import Keys
from gateway.operations.auth.oidc import IdentityProvider
from gateway.operations.auth.refusal import Credential, Refusals, Refused
from gateway.operations.auth.store import Store
from gateway.operations.errors import InvalidSetting, WrongTenant
from gateway.operations.limits import RequestLimit
from gateway.operations.settings import Settings

TOKEN_PATH = "/oauth/token"  # noqa: S105
_REMEMBERED_S = 5.0
"""How long a login is taken as good without looking again: so late may a revocation come."""
_REMEMBERED = 10_000
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Login:
    """A login that was good; `expires` is when it ends, in seconds since 1970."""

    principal: Principal
    expires: float
    checked: float


class Authenticator:
    """Turns what a request shows into its principal. Thread-safe."""

    def __init__(self, settings: Settings, engine: sa.Engine, key: ApiKey) -> None:
        """Raises InvalidSetting."""
        self._key = key
        self._tenant = settings.tenant
        tenant = settings.tenant or DEFAULT_TENANT
        self._server = Principal("key:default", PrincipalKind.KEY, tenant, MACHINE_SCOPES, name="the server's API key")
        self._store = Store(engine)
        self._refusals = Refusals(self._store, settings.login_limit)
        self._keys = Keys(self._store)
        self._clients = Clients(self._store)
        self._grants = Grants(
            self._store, self._clients, _public(settings) + TOKEN_PATH, RequestLimit(settings.rate_limit)
        )
        self._provider = None if settings.oidc_issuer is None else IdentityProvider(settings)
        self._lock = threading.Lock()
        self._logins: OrderedDict[bytes, _Login] = OrderedDict()

    def principal(self, authorization: str | None, certificate: bytes | None, address: str) -> Principal:
        """The principal of a request; may wait for the database or for the identity provider.

        `authorization`: that header's value, its bytes as Latin-1 (several are joined by commas, and so refused);
        `certificate`: the verified client certificate, DER; `address`: where the request comes from.
        Raises Unauthenticated, Forbidden, WrongTenant, TooManyRequests, all of them audited;
        IdentityProviderUnavailable; StateError and its kinds.
        """
        known = self.known(authorization, certificate, address)
        if known is not None:
            return known
        try:
            found, expires = self._login(authorization, certificate)
            self._check_tenant(found)
        except Refused as refused:
            raise self._refusals.note(refused, address) from None
        principal = replace(found, address=address)
        shown = _shown(authorization, certificate)
        if shown not in self._logins:
            self._audit_login(principal)
        self._remember(shown, _Login(found, expires, time.monotonic()))
        return principal

    def known(self, authorization: str | None, certificate: bytes | None, address: str) -> Principal | None:
        """The principal where it can be told without waiting; None says nothing."""
        token = _bearer(authorization)
        if token is not None and self._key.matches(token.encode("latin-1", "replace")):
            return replace(self._server, address=address)
        login = self._logins.get(_shown(authorization, certificate))
        if login is None or time.monotonic() - login.checked > _REMEMBERED_S or login.expires <= time.time():
            return None
        return replace(login.principal, address=address)

    def grant(self, form: Form, address: str) -> Grant:
        """An access token for a client's signed assertion, which the form of a token request holds.

        Raises Unauthenticated, TooManyRequests; GrantRefused; IdentityProviderUnavailable; StateError and its kinds.
        Refused logins are audited.
        """
        try:
            return self._grants.issue(form, address)
        except Refused as refused:
            raise self._refusals.note(refused, address) from None

    def _login(self, authorization: str | None, certificate: bytes | None) -> tuple[Principal, float]:
        """The principal, and when its login ends. Raises Refused."""
        if authorization is None:
            if certificate is None:
                raise Refused(Credential.NONE, "none")
            return self._clients.by_certificate(certificate)
        token = _bearer(authorization)
        if token is None:
            raise Refused(Credential.OTHER, "malformed")
        if token.startswith(keys.PREFIX):
            return self._keys.principal(token), _NEVER
        if token.startswith(grants.PREFIX):
            return self._grants.principal(token)
        if self._provider is not None and token.count(".") == 2:
            return self._provider.principal(token, certificate)
        raise Refused(Credential.OTHER, "unknown")

    def _check_tenant(self, found: Principal) -> None:
        if self._tenant is not None and found.tenant != self._tenant:
            raise Refused(
                Credential.CERTIFICATE if found.subject.startswith("client:") else Credential.KEY,
                "wrong-tenant",
                WrongTenant("This belongs to a tenant that this server does not serve."),
                subject=found.subject,
                tenant=found.tenant,
            )

    def _remember(self, shown: bytes, login: _Login) -> None:
        with self._lock:
            self._logins.pop(shown, None)
            self._logins[shown] = login
            if len(self._logins) > _REMEMBERED:
                self._logins.popitem(last=False)

    def _audit_login(self, principal: Principal) -> None:
        """People's logins are records, once a token; what systems do is known by what they do."""
        if principal.kind is not PrincipalKind.PERSON:
            return
        with self._store.write() as connection:
            append(
                connection,
                AuditEvent(
                    type=EventType.USER_AUTHENTICATION,
                    subtype="login",
                    action=Action.EXECUTE,
                    tenant=principal.tenant,
                ).by(principal),
            )


def _public(settings: Settings) -> str:
    """The address that clients reach us by, without a closing slash."""
    address = settings.public_url or "http://localhost"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise InvalidSetting("PATHSERVE_PUBLIC_URL is not an address of the form https://HOST[:PORT][/PATH].")
    return address.rstrip("/")


def _bearer(authorization: str | None) -> str | None:
    """The token of `Bearer TOKEN` (RFC 6750 2.1; the scheme in any case)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _shown(authorization: str | None, certificate: bytes | None) -> bytes:
    """What a login is remembered by; no secret is kept in memory."""
    digest = hashlib.sha256(certificate or b"").digest()
    return hashlib.sha256(digest + (authorization or "").encode("utf-8", "surrogateescape")).digest()
