"""For `pathserve doctor`: whether clients can reach us by TLS, and whether people could log in."""

from collections.abc import Iterable

from gateway.operations.auth.oidc import IdentityProvider
from gateway.operations.auth.tls import server_context
from gateway.operations.certificates import still_valid
from gateway.operations.doctor import Finding
from gateway.operations.settings import Settings


def probe(settings: Settings) -> Iterable[Finding]:
    """Raises InvalidSetting, IdentityProviderUnavailable."""
    server_context(settings)
    if settings.tls_certificate is not None:
        yield still_valid("server certificate", settings.tls_certificate, "PATHSERVE_TLS_CERTIFICATE")
    if settings.oidc_issuer is not None:
        count = IdentityProvider(settings).count_keys()
        sentence = f"its keys can be fetched ({count})" if count else "it publishes no keys: no token can be verified"
        yield "identity provider", count > 0, sentence
