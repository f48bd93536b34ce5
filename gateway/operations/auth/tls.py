"""The server's TLS: its certificate, and the authorities of client certificates."""

import ssl

from gateway.operations.errors import InvalidSetting
from gateway.operations.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer for what listens; None where no certificate is set. Raises InvalidSetting.

    With PATHSERVE_TLS_CLIENT_AUTHORITIES a client certificate is asked for, not insisted on: who shows none may log in
    otherwise. One that is shown has to be valid.
    """
    certificate, key, authorities = settings.tls_certificate, settings.tls_key, settings.tls_client_authorities
    if certificate is None:
        if key is not None or authorities is not None:
            raise InvalidSetting(
                "PATHSERVE_TLS_KEY and PATHSERVE_TLS_CLIENT_AUTHORITIES need PATHSERVE_TLS_CERTIFICATE: set it too."
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty passphrase: asked for none, OpenSSL would ask at the terminal, and wait there.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError):
        raise InvalidSetting(
            "PATHSERVE_TLS_CERTIFICATE and PATHSERVE_TLS_KEY cannot be read as a certificate and its private key, in "
            "PEM and without a passphrase."
        ) from None
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except (ssl.SSLError, OSError):
            raise InvalidSetting(
                "PATHSERVE_TLS_CLIENT_AUTHORITIES cannot be read as certificates in PEM: check the file."
            ) from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
