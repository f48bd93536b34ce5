"""What a DICOMweb server is shown: TLS with our certificate, and who we are (basic, bearer, OAuth 2.0).

OAuth 2.0 client credentials are one POST (RFC 6749 4.4). The libraries for it (authlib, httpx-auth) bring clients of
their own that follow redirects, have no bound on an answer, and do not tell a refusal from a token server that is down;
an `httpx.Auth` cannot repeat a request without reading the refused answer to its end, however long that is.
"""

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlencode

import httpx

from gateway.archive.access import Access, OAuthClient
from gateway.archive.dicomweb_wire import Limits, Wire
from gateway.archive.metrics import PACS_TOKENS
from gateway.operations.certificates import valid_until
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, InvalidSetting

_ANSWER_BYTES = 256 * 1024
_MARGIN_S = 30.0
_NOT_ONE = "The token server's answer is no token: check PATHSERVE_ARCHIVE_OAUTH_URL."


class Trust:
    """The TLS of one archive: whom we trust, and the certificate that we show. Certificates are always verified.

    Files that were replaced (a renewed certificate) are read anew. Thread-safe.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._made: tuple[object, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The context for one conversation. Raises as `check`, and ArchiveRefused (our certificate has expired)."""
        certificate = self._access.certificate
        if certificate is not None and _expired(certificate):
            raise ArchiveRefused(
                "Our client certificate (PATHSERVE_ARCHIVE_CERTIFICATE) has expired: have it renewed by its authority."
            )
        return self.check()

    def check(self) -> ssl.SSLContext:
        """The context, expired or not. Raises InvalidSetting (an unreadable file, or no certificate or key in it)."""
        access = self._access
        state = [_state_of(file) for file in (access.authorities, access.certificate, access.key) if file is not None]
        with self._lock:
            if self._made is None or self._made[0] != state:
                self._made = state, _tls_context(access)
            return self._made[1]


def _expired(certificate: Path) -> bool:
    return time.time() > valid_until(certificate, "PATHSERVE_ARCHIVE_CERTIFICATE").timestamp()


def _state_of(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _tls_context(access: Access) -> ssl.SSLContext:
    try:
        # Without a file of our own, the operating system's authorities: a hospital installs its own there.
        context = ssl.create_default_context(cafile=access.authorities)
    except ssl.SSLError:
        raise InvalidSetting("PATHSERVE_ARCHIVE_AUTHORITIES is not a file of certificates in PEM.") from None
    except OSError as error:
        raise _unreadable("PATHSERVE_ARCHIVE_AUTHORITIES", error) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.certificate is not None:
        _load_certificate(context, access.certificate, access.key)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    names = "PATHSERVE_ARCHIVE_KEY" if key else "PATHSERVE_ARCHIVE_CERTIFICATE"
    for file in (key,) if key else ():
        try:
            file.open("rb").close()  # OpenSSL does not say which of the two it could not read
        except OSError as error:
            raise _unreadable(names, error) from None
    try:
        # An empty passphrase: asked for none, OpenSSL would ask at the terminal, and wait there.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidSetting(
                "The private key (PATHSERVE_ARCHIVE_KEY) does not belong to PATHSERVE_ARCHIVE_CERTIFICATE."
            ) from None
        raise InvalidSetting(f"{names} holds no private key in PEM that can be read without a passphrase.") from None
    except OSError as error:
        raise _unreadable("PATHSERVE_ARCHIVE_CERTIFICATE", error) from None


def _unreadable(setting: str, error: OSError) -> InvalidSetting:
    return InvalidSetting(f"The file that {setting} names cannot be read ({error.strerror}): check its name and mode.")


class Credentials(Protocol):
    """What goes into the Authorization field."""

    def authorization(self) -> str | None:
        """The field's value, or None to send none. Raises ArchiveRefused, ArchiveUnavailable."""

    def renew(self, refused: str | None) -> bool:
        """True where there is another value than the refused one, so that a second try is worth it. Raises alike."""


class Fixed:
    """Credentials that stay as they were configured; none at all where both are None."""

    def __init__(self, token: str | None = None, user: str | None = None, password: str = "") -> None:
        self._value: str | None = None
        if token is not None:
            self._value = f"Bearer {token}"
        elif user is not None:
            self._value = _basic(user, password)

    def authorization(self) -> str | None:
        return self._value

    def renew(self, refused: str | None) -> bool:
        return False


class Tokens:
    """Access tokens of a token server, asked for when there is none, shortly before one expires, and when one is
    refused. Thread-safe: while one thread asks, the others wait for its answer."""

    def __init__(
        self,
        client: OAuthClient,
        tls: Callable[[], ssl.SSLContext],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._tls = tls
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._until = 0.0
        self._failures = 0
        self._failure: ArchiveRefused | ArchiveUnavailable | None = None

    def authorization(self) -> str:
        failures = self._failures
        with self._lock:
            if self._token is None or self._clock() >= self._until:
                self._ask(failures)
            return f"Bearer {self._token}"

    def renew(self, refused: str | None) -> bool:
        failures = self._failures
        with self._lock:
            if self._token is None or refused == f"Bearer {self._token}":
                self._token = None
                self._ask(failures)
            return True

    def _ask(self, failures: int) -> None:
        """Ask, unless another thread asked in vain since there had been so many failures: it waited for all."""
        if self._failure is not None and self._failures != failures:
            raise type(self._failure)(self._failure.detail)
        asked_at = self._clock()
        try:
            status, answer = self._exchange()
            self._token, lifetime_s = _token_in(status, answer)
        except (ArchiveRefused, ArchiveUnavailable) as error:
            PACS_TOKENS.labels(error.reason).inc()
            self._failures += 1
            self._failure = error
            raise
        PACS_TOKENS.labels("granted").inc()
        self._until = asked_at + lifetime_s - min(_MARGIN_S, lifetime_s / 5)

    def _exchange(self) -> tuple[int, bytes]:
        form = {"grant_type": "client_credentials"} | ({"scope": self._client.scope} if self._client.scope else {})
        body = [urlencode(form).encode()]
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(body[0])),
            # RFC 6749 2.3.1: both are form-encoded before they become a user name and a password.
            "Authorization": _basic(quote(self._client.client_id, safe=""), quote(self._client.client_secret, safe="")),
        }
        try:
            with (
                Wire(self._limits, self._tls()) as wire,
                wire.answer("POST", self._client.url, headers=headers, content=body) as response,
            ):
                answer = b""
                until = self._clock() + self._limits.read_s
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > _ANSWER_BYTES or self._clock() > until:
                        raise ArchiveRefused(_NOT_ONE)
                return response.status_code, answer
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ArchiveRefused(
                    "The certificate of the token server is not trusted: install its authority on this machine, or add "
                    "it to PATHSERVE_ARCHIVE_AUTHORITIES."
                ) from None
            raise ArchiveUnavailable("The token server cannot be reached: check that it runs.") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise ArchiveUnavailable("The token server does not answer: check that it runs, and its log.") from None


def _token_in(status: int, answer: bytes) -> tuple[str, float]:
    """The access token and its lifetime in seconds (RFC 6749 5.1), or what the server says instead (5.2)."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    if status == 429 or status >= 500:
        raise ArchiveUnavailable(f"The token server has trouble of its own (HTTP {status}): see its log.")
    if status != 200:
        said = found.get("error")
        why = said if isinstance(said, str) and said.replace("_", "").isalpha() and len(said) < 40 else f"HTTP {status}"
        raise ArchiveRefused(
            f"The token server refuses this client ({why}): check PATHSERVE_ARCHIVE_OAUTH_CLIENT_ID, "
            "_OAUTH_CLIENT_SECRET, _OAUTH_SCOPE and _OAUTH_URL."
        )
    token, kind, lifetime = found.get("access_token"), found.get("token_type", "Bearer"), found.get("expires_in")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ArchiveRefused(_NOT_ONE)
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ArchiveRefused("The token server gives no bearer tokens: have it configured to.")
    try:
        # A server that says nothing is asked again when the archive refuses the token.
        return token, float("inf") if lifetime is None else max(float(lifetime), 0.0)
    except (TypeError, ValueError):
        return token, float("inf")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
