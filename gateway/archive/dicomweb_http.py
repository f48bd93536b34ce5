"""HTTP with one DICOMweb server: its address, the limits, and every failure as a typed error in bounded time."""

import ipaddress
import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from gateway.archive.metrics import PACS_REQUEST_SECONDS
from gateway.domain.uids import is_uid
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, Cancelled, InvalidSetting

# httpx logs every URL at INFO, and our URLs hold UIDs, which lead to a patient.
logging.getLogger("httpx").setLevel(logging.WARNING)

_log = logging.getLogger(__name__)

DICOM_JSON = "application/dicom+json"
_SCHEME = "dicomweb://"
_MODALITY, _SERIES_INSTANCES = "00080060", "00201209"
_PAGE = 500
_T = TypeVar("_T")


class Transient(ArchiveUnavailable):
    """Worth another try at once: no connection, a broken one, or a server error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much we wait for. Seconds and bytes; `read_s` is the longest silence in an answer."""

    connect_s: float = 5.0
    read_s: float = 30.0
    answer_bytes: int = 32 * 2**20
    instance_bytes: int = 64 * 2**30
    slowest_bytes_s: float = 1024.0
    attempts: int = 3
    backoff_s: float = 0.5
    instances: int = 20_000
    visible_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is: base URL without a closing slash, and a user for basic authentication where it has one."""

    url: str
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def from_address(cls, address: str) -> Self:
        """The endpoint of `dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH`; plain HTTP on loopback, TLS elsewhere.

        Raises InvalidSetting.
        """
        wrong = InvalidSetting(
            "The archive address is not valid: write dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH, "
            "with special characters in USER and PASSWORD percent-encoded."
        )
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise wrong from None
        if not address.startswith(_SCHEME) or not host or parts.query or parts.fragment or not address.isprintable():
            raise wrong
        authority = f"[{host}]" if ":" in host else host
        if port is not None:
            authority += f":{port}"
        scheme = "http" if _is_loopback(host) else "https"
        return cls(
            url=f"{scheme}://{authority}{parts.path.rstrip('/')}",
            user=None if parts.username is None else unquote(parts.username),
            password=unquote(parts.password or ""),
        )

    @property
    def address(self) -> str:
        """The address without credentials."""
        return _SCHEME + self.url.partition("://")[2]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def never() -> bool:
    """The `cancelled` of an operation that nobody cancels."""
    return False


class Session:
    """One conversation with the server; close it (context manager) when the operation is over.

    Credentials go to this server only: redirects are refused, proxies and netrc of the environment are not used, and
    no URL that the server names is ever followed. Nothing is asked for compressed: gzip of JPEG costs ten times the
    time of the transfer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        tls: ssl.SSLContext,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        self.limits = limits
        self.cancelled = cancelled
        self._url = endpoint.url
        self._client = httpx.Client(
            auth=None if endpoint.user is None else httpx.BasicAuth(endpoint.user, endpoint.password),
            headers={"Accept-Encoding": "identity", "User-Agent": "pathserve"},
            timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s),
            follow_redirects=False,
            trust_env=False,
            verify=tls,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def check_cancelled(self) -> None:
        """Raise Cancelled where the caller has given up."""
        if self.cancelled():
            raise Cancelled("The analysis was cancelled.")

    def repeated(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, tried again after Transient failures, with growing, jittered pauses."""
        for tried in range(self.limits.attempts - 1):
            try:
                return work()
            except Transient:
                # Jitter keeps many workers from coming back in the same instant.
                self._pause(self.limits.backoff_s * 2**tried * random.uniform(0.5, 1.5))  # noqa: S311
        return work()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check_cancelled()
            time.sleep(min(left, 0.2))

    @contextmanager
    def request(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Sequence[tuple[str, str]] = (),
        content: Iterable[bytes] | None = None,
    ) -> Iterator[httpx.Response]:
        """One answer, its body unread. Status 2xx, 400, 404, 406, 409 and 415 are the caller's to judge.

        Raises Transient, ArchiveUnavailable, ArchiveRefused, also for what goes wrong while the caller reads.
        """
        began = time.monotonic()
        try:
            with (
                _translated(),
                self._client.stream(
                    method, self._url + path, headers=dict(headers), params=list(params), content=content
                ) as response,
            ):
                _judge(response)
                yield response
        finally:
            seconds = time.monotonic() - began
            PACS_REQUEST_SECONDS.labels(operation).observe(seconds)
            _log.debug("%s %s took %.3f s", operation, path, seconds)

    def pieces(self, response: httpx.Response, most: int) -> Iterator[bytes]:
        """The body of an answer in pieces; bounded in size, in silence, and in slowness.

        Raises Cancelled, ArchiveRefused (too long), ArchiveUnavailable (too slow).
        """
        began = time.monotonic()
        size = 0
        for piece in response.iter_bytes():
            self.check_cancelled()
            size += len(piece)
            if size > most:
                raise ArchiveRefused("The PACS sends more than a slide or a listing can hold: check its address.")
            if time.monotonic() - began > self.limits.read_s + size / self.limits.slowest_bytes_s:
                raise ArchiveUnavailable("The PACS sends too slowly: check the network between it and this server.")
            yield piece

    def listing(self, operation: str, path: str, params: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]] | None:
        """The answer to a search (QIDO-RS, PS3.18 10.6): its matches in DICOM JSON; None where it says 404.

        Raises ArchiveUnavailable, ArchiveRefused.
        """
        return self.repeated(lambda: self._listing(operation, path, params))

    def _listing(self, operation: str, path: str, params: Sequence[tuple[str, str]]) -> list[dict[str, Any]] | None:
        with self.request(operation, "GET", path, headers={"Accept": DICOM_JSON}, params=params) as response:
            if response.status_code == 404:
                return None
            if response.status_code == 204:
                return []
            if response.status_code != 200:
                raise ArchiveRefused(f"The PACS refused a search (HTTP {response.status_code}): check its address.")
            return matches(self.body(response))

    def body(self, response: httpx.Response) -> bytes:
        """The whole body of a short answer. Raises as `pieces`."""
        return b"".join(self.pieces(response, self.limits.answer_bytes))


def matches(body: bytes) -> list[dict[str, Any]]:
    """The data sets of a DICOM JSON array (PS3.18 F.2). Raises ArchiveRefused."""
    try:
        found = json.loads(body) if body.strip() else []
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(match, dict) for match in found):
        raise ArchiveRefused("The PACS did not answer in DICOM JSON: check that its address is that of DICOMweb.")
    return found


def all_pages(session: Session, path: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All matches of a search by their UID, page after page. Raises ArchiveRefused where a UID is not one."""
    seen: set[str] = set()
    # The parameter is repeated: servers ignore a list whose comma is percent-encoded.
    include = [("includefield", name) for name in (_MODALITY, _SERIES_INSTANCES)]
    offset = 0
    while True:
        page = session.listing("find", path, [*include, ("limit", str(_PAGE)), ("offset", str(offset))]) or []
        fresh = [(uid, match) for match in page if (uid := text(match, key) or "") not in seen]
        for uid, match in fresh:
            # It becomes a path and a URL: a UID is the only thing it may be.
            if not is_uid(uid):
                raise ArchiveRefused("The PACS lists an object whose UID is not valid: correct it in the PACS.")
            seen.add(uid)
            yield uid, match
        # Servers cut pages at limits of their own, and some know no offset: only a page without news is the last.
        if not fresh:
            return
        offset += len(page)
        if offset > session.limits.instances:
            raise ArchiveRefused("The PACS lists more objects than a slide has: check the order and the PACS.")


def values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    """The values of one attribute of a DICOM JSON data set; empty where it is absent or malformed."""
    element = dataset.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def text(dataset: Mapping[str, Any], tag: str) -> str | None:
    """The first value of one attribute of a DICOM JSON data set where that is text."""
    found = values(dataset, tag)
    return found[0] if found and isinstance(found[0], str) else None


def _judge(response: httpx.Response) -> None:
    status = response.status_code
    if status == 401:
        raise ArchiveRefused(
            "The PACS does not accept the user name or password (HTTP 401): correct them in the archive's address."
        )
    if status == 403:
        raise ArchiveRefused("The PACS does not allow this to the configured user (HTTP 403): grant it the right.")
    if status in (408, 429):
        raise ArchiveUnavailable(f"The PACS is too busy (HTTP {status}): try again later.")
    if status >= 500:
        raise Transient(f"The PACS reports an error of its own (HTTP {status}): see its log.")
    if 300 <= status < 400:
        raise ArchiveRefused(
            f"The PACS redirects elsewhere (HTTP {status}), which is never followed: configure its final address."
        )
    if not (200 <= status < 300 or status in (400, 404, 406, 409, 415)):
        raise ArchiveRefused(f"The PACS refused the request (HTTP {status}).")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout:
        raise Transient("The PACS cannot be reached in time: check that it runs and the network to it.") from None
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ArchiveRefused(
                "The certificate of the PACS is not trusted: install its authority on this machine."
            ) from None
        raise Transient("The PACS cannot be reached: check that it runs and the network to it.") from None
    except httpx.TimeoutException:
        raise ArchiveUnavailable("The PACS stopped answering: try again when it is well.") from None
    except httpx.TransportError:
        raise Transient("The PACS broke the connection: see its log.") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
        raise ArchiveRefused("The PACS answers in a way that cannot be read: check its address.") from None
