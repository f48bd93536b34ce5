"""The hospital's identity provider (OpenID Connect): whose access tokens name people and systems."""

import re
from collections.abc import Mapping
from typing import Any

from gateway.domain.principal import MACHINE_SCOPES, Principal, PrincipalKind, Scope
from gateway.operations.auth.fetch import get_json
from gateway.operations.auth.key_sets import ALGORITHMS, FetchedKeys, keys_in
from gateway.operations.auth.refusal import Credential, Refused
from gateway.operations.auth.tokens import Rules, is_name, thumbprint, verified
from gateway.operations.errors import (
    Forbidden,
    IdentityProviderUnavailable,
    InvalidSetting,
    TargetNotAllowed,
    Unauthenticated,
    WrongTenant,
)
from gateway.operations.outbound import authority
from gateway.operations.settings import Settings

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Only an ID token has these (OpenID Connect Core 1.0, 2 and 3.3.2.11): it says who logged in at a client, not who may
# call us.
_ID_TOKEN_CLAIMS = frozenset({"nonce", "at_hash", "c_hash"})
# What Keycloak says in a claim of what is no access token.
_OTHER_TOKENS = ("ID", "Refresh", "Offline", "Logout")


class IdentityProvider:
    """Verifies its access tokens (RFC 9068 where they say so). Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is fetched before a token comes. Raises InvalidSetting."""
        issuer = settings.oidc_issuer or ""
        try:
            # Its host by any port: many a provider has its keys beside its pages.
            self._hosts = (authority(issuer).rpartition(":")[0], *settings.outbound_hosts)
        except TargetNotAllowed:
            raise InvalidSetting(
                "PATHSERVE_OIDC_ISSUER is not an address of the form https://HOST[:PORT]/PATH (http:// on loopback)."
            ) from None
        self._issuer = issuer
        self._tenant = settings.tenant
        self._rules = Rules(
            credential=Credential.TOKEN,
            algorithms=ALGORITHMS,
            types=(None, "jwt", "at+jwt", "application/at+jwt"),
            audience=settings.oidc_audience,
            subject=_subject,
            issuer=issuer,
        )
        self._keys = FetchedKeys(self._fetch)

    def principal(self, token: str, certificate: bytes | None) -> tuple[Principal, float]:
        """Whom the token names, and its `exp`. Raises Refused, IdentityProviderUnavailable."""
        claims = verified(token, self._keys.find, self._rules)
        kind, subject = _kind(claims), _subject(claims)
        if _ID_TOKEN_CLAIMS & claims.keys() or claims.get("typ") in _OTHER_TOKENS:
            said = Unauthenticated("This is an ID or refresh token: send the access token.")
            raise Refused(Credential.TOKEN, "id-token", said, subject=subject)
        _check_binding(claims, certificate, subject)
        scopes = _scopes(claims)
        if kind is PrincipalKind.SYSTEM:
            scopes &= MACHINE_SCOPES
        names = (claims.get("name"), claims.get("preferred_username"))
        name = next((str(each) for each in names if is_name(each)), None)
        tenant = self._tenant_of(claims, subject)
        return Principal(subject, kind, tenant, scopes, name=name), float(claims["exp"])

    def count_keys(self) -> int:
        """How many keys it publishes now. Raises IdentityProviderUnavailable."""
        try:
            return len(keys_in(self._fetch()))
        except (TargetNotAllowed, ValueError):
            raise IdentityProviderUnavailable(
                "The identity provider's keys cannot be fetched from where it says they are."
            ) from None

    def _tenant_of(self, claims: Mapping[str, Any], subject: str) -> str:
        claimed = claims.get("tenant")
        if claimed is None:
            if self._tenant is None:
                said = Forbidden("The token names no tenant: its issuer has to add the claim `tenant`.")
                raise Refused(Credential.TOKEN, "no-tenant", said, subject=subject)
            return self._tenant
        if not isinstance(claimed, str) or not _TENANT.fullmatch(claimed):
            said = Forbidden("The token's claim `tenant` is no name of a tenant.")
            raise Refused(Credential.TOKEN, "no-tenant", said, subject=subject)
        if self._tenant is not None and claimed != self._tenant:
            wrong = WrongTenant("The token belongs to a tenant that this server does not serve.")
            raise Refused(Credential.TOKEN, "wrong-tenant", wrong, subject=subject, tenant=claimed)
        return claimed

    def _fetch(self) -> Any:
        """Its keys, from where its metadata say (OpenID Connect Discovery 1.0, 4)."""
        metadata = get_json(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", self._hosts)
        address = metadata.get("jwks_uri") if isinstance(metadata, dict) else None
        if not isinstance(address, str) or metadata.get("issuer") != self._issuer:
            raise IdentityProviderUnavailable(
                "The identity provider's metadata name another issuer or no keys; check PATHSERVE_OIDC_ISSUER."
            )
        return get_json(address, self._hosts)


def _subject(claims: Mapping[str, Any]) -> str:
    return f"{_kind(claims).value}:{claims['sub']}"


def _kind(claims: Mapping[str, Any]) -> PrincipalKind:
    """A system where the token is a program's own: it says so (Entra ID, Auth0, Keycloak), or names it as subject."""
    clients = [claims[name] for name in ("client_id", "azp", "appid", "cid") if name in claims]
    own = (
        claims["sub"] in clients
        or claims.get("idtyp") == "app"
        or claims.get("gty") == "client-credentials"
        or claims["sub"] in [f"{client}@clients" for client in clients]
        or claims.get("preferred_username") in [f"service-account-{client}".lower() for client in clients]
    )
    return PrincipalKind.SYSTEM if own else PrincipalKind.PERSON


def _scopes(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Those of ours among its scopes: `scope` (RFC 8693 4.2) or `scp`, as a list or with blanks between them."""
    named = claims.get("scope", claims.get("scp", ""))
    words = named.split() if isinstance(named, str) else named if isinstance(named, list) else ()
    return frozenset(scope for scope in Scope if scope.value in words)


def _check_binding(claims: Mapping[str, Any], certificate: bytes | None, subject: str) -> None:
    """A token that is bound to a key is good only with that key (RFC 8705 3; RFC 7800)."""
    bound = claims.get("cnf")
    if bound is None:
        return
    expected = bound.get("x5t#S256") if isinstance(bound, dict) else None
    if certificate is None or expected != thumbprint(certificate):
        said = Unauthenticated("The token is bound to a client certificate that did not come with it.")
        raise Refused(Credential.TOKEN, "certificate", said, subject=subject)
