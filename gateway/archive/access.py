"""How we show an archive who we are, and whom we trust: tokens, OAuth 2.0, client certificates, authorities."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from gateway.operations.errors import InvalidSetting
from gateway.operations.outbound import is_loopback
from gateway.operations.settings import Settings


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Us as a client of a token server (RFC 6749 4.4, client credentials). Raises InvalidSetting."""

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.username is not None or parts.fragment or not self.url.isprintable():
            raise InvalidSetting(
                "PATHSERVE_ARCHIVE_OAUTH_URL is not valid: write https://HOST[:PORT]/PATH of the token endpoint."
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise InvalidSetting(
                "PATHSERVE_ARCHIVE_OAUTH_URL would send the secret in the clear: write https:// (http:// on loopback)."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a DICOMweb archive is shown, and trusted by; a folder needs none of it. Raises InvalidSetting.

    `authorities` are trusted in place of the operating system's. With a certificate or authorities, TLS is spoken on
    loopback too.
    """

    token: str | None = field(default=None, repr=False)
    oauth: OAuthClient | None = None
    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None

    def __post_init__(self) -> None:
        if self.token is not None and self.oauth is not None:
            raise InvalidSetting("PATHSERVE_ARCHIVE_TOKEN and PATHSERVE_ARCHIVE_OAUTH_URL are both set: unset one.")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise InvalidSetting("PATHSERVE_ARCHIVE_TOKEN is not a token: it has blanks or other forbidden characters.")
        if self.key is not None and self.certificate is None:
            raise InvalidSetting("PATHSERVE_ARCHIVE_KEY is set without its PATHSERVE_ARCHIVE_CERTIFICATE: set both.")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The access that the settings `PATHSERVE_ARCHIVE_…` give. Raises InvalidSetting."""
        secret = settings.archive_oauth_client_secret
        oauth = None
        if settings.archive_oauth_url is not None and settings.archive_oauth_client_id is not None and secret:
            oauth = OAuthClient(
                settings.archive_oauth_url,
                settings.archive_oauth_client_id,
                secret.get_secret_value(),
                settings.archive_oauth_scope,
            )
        elif settings.archive_oauth_url or settings.archive_oauth_client_id or secret or settings.archive_oauth_scope:
            raise InvalidSetting(
                "OAuth 2.0 needs PATHSERVE_ARCHIVE_OAUTH_URL, _OAUTH_CLIENT_ID and _OAUTH_CLIENT_SECRET: set all three."
            )
        return cls(
            token=None if settings.archive_token is None else settings.archive_token.get_secret_value(),
            oauth=oauth,
            certificate=settings.archive_certificate,
            key=settings.archive_key,
            authorities=settings.archive_authorities,
        )

    def describe(self, address: str) -> str:
        """What the archive at this address is shown, without any secret: fit for `pathserve doctor`."""
        shown = []
        if self.oauth is not None:
            shown.append("OAuth 2.0 client credentials")
        elif self.token is not None:
            shown.append("a bearer token")
        elif "@" in address:
            shown.append("a user name and password")
        if self.certificate is not None:
            shown.append("a client certificate")
        return " and ".join(shown) or "no credentials"

    @property
    def needs_tls(self) -> bool:
        """True where plain HTTP would leave a certificate or authorities unused."""
        return self.certificate is not None or self.authorities is not None
