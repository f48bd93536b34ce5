"""Who asks: one place for every door, REST and gRPC alike."""

from dataclasses import replace

import sqlalchemy as sa

from gateway.domain.principal import DEFAULT_TENANT, Principal, PrincipalKind, Scope
from gateway.operations.auth.api_key import ApiKey
from gateway.operations.auth.refusal import Credential, Refusals, Refused
from gateway.operations.auth.store import Store
from gateway.operations.settings import Settings

_SERVER_KEY = "key:default"


class Authenticator:
    """Turns what a request shows into its principal. Thread-safe."""

    def __init__(self, settings: Settings, engine: sa.Engine, key: ApiKey) -> None:
        self._key = key
        self._tenant = settings.tenant
        self._store = Store(engine)
        self._refusals = Refusals(self._store, settings.login_limit)

    def principal(self, authorization: str | None, certificate: bytes | None, address: str) -> Principal:
        """The principal of a request; may wait for the database or for the identity provider.

        `authorization`: that header's value, its bytes as Latin-1 (several are joined by commas, and so refused);
        `certificate`: the verified client certificate, DER; `address`: where the request comes from.
        Raises Unauthenticated, Forbidden, WrongTenant, TooManyRequests, all of them audited; StateError and its kinds.
        """
        known = self.known(authorization, certificate, address)
        if known is not None:
            return known
        try:
            return replace(self._login(authorization, certificate), address=address)
        except Refused as refused:
            raise self._refusals.note(refused, address) from None

    def known(self, authorization: str | None, certificate: bytes | None, address: str) -> Principal | None:
        """The principal where it can be told without waiting; None says nothing."""
        token = _bearer(authorization)
        if token is not None and self._key.matches(token.encode("latin-1", "replace")):
            return Principal(
                _SERVER_KEY,
                PrincipalKind.KEY,
                self._tenant or DEFAULT_TENANT,
                frozenset(Scope) - {Scope.ANALYSES_SIGN},
                name="the server's API key",
                address=address,
            )
        return None

    def _login(self, authorization: str | None, certificate: bytes | None) -> Principal:
        raise Refused(Credential.NONE if authorization is None else Credential.OTHER, "unknown")


def _bearer(authorization: str | None) -> str | None:
    """The token of `Bearer TOKEN` (RFC 6750 2.1; the scheme in any case)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
